package convert

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// ErrNotLister is the error for JSON that is not what the upstream lister prints, whole.
var ErrNotLister = errors.New("not a whole list of the upstream lister")

// listerTypes are the API's numbers for the block metadata types, which the lister prints in place of their names.
var listerTypes = map[blocklist.BlockMetadataType]int{blocklist.UnknownLength: 0, blocklist.FixedLength: 1, blocklist.VariableLength: 2}

// recordExtents is how many extents a written record holds: the hostpath driver's number.
const recordExtents = 256

// listedType returns the type as the API means it, by which all extents of a FIXED_LENGTH list have one length. A header of ours
// says what the driver said; rounding and merging have changed lengths since.
func listedType(h blocklist.Header) blocklist.BlockMetadataType {
	if h.BlockMetadataType == blocklist.FixedLength && (h.Merged || h.GranularityBytes > 0) {
		return blocklist.VariableLength
	}
	return h.BlockMetadataType
}

// writeLister writes the array of records that the upstream lister prints. An offset of 0 is written, not left out: the
// lister leaves it out, and its readers must take absent for 0, so they take both.
func writeLister(w *bufio.Writer, list List) error {
	_ = w.WriteByte('[') // w keeps its first error
	head := fmt.Appendf(nil, `{"block_metadata_type":%d,"volume_capacity_bytes":%d,"block_metadata":[`,
		listerTypes[listedType(list.Header)], list.Header.VolumeCapacityBytes)
	count := 0
	var buf []byte
	for batch, err := range list.Extents() {
		if err != nil {
			return err
		}
		for _, e := range batch {
			buf = buf[:0]
			switch {
			case count == 0:
				buf = append(buf, head...)
			case count%recordExtents == 0:
				buf = append(append(buf, "]},"...), head...)
			default:
				buf = append(buf, ',')
			}
			buf = appendObject(buf, e)
			if _, err := w.Write(buf); err != nil {
				return err
			}
			count++
		}
	}
	if count > 0 {
		_, _ = w.WriteString("]}") // w keeps its first error
	}
	_, err := w.WriteString("]\n")
	return err
}

// The layout of the upstream lister's table.
const (
	tableHead = "Record#   VolCapBytes  BlockMetadataType   ByteOffset     SizeBytes\n" +
		"------- -------------- ----------------- -------------- --------------\n"
	tableRow = "%7d %14d %17s %14d %14d\n"
)

// writeTable writes the table that the upstream lister prints, with a record for every recordExtents extents.
func writeTable(w *bufio.Writer, list List) error {
	count, kind := 0, listedType(list.Header)
	for batch, err := range list.Extents() {
		if err != nil {
			return err
		}
		for _, e := range batch {
			if count == 0 {
				_, _ = w.WriteString(tableHead) // w keeps its first error
			}
			_, err := fmt.Fprintf(w, tableRow, count/recordExtents+1, list.Header.VolumeCapacityBytes, kind, e.Offset, e.Length)
			if err != nil {
				return err
			}
			count++
		}
	}
	return nil
}

// ImportLister reads what the upstream lister prints as JSON and writes it to w as a Binary list. The lister's JSON tells
// type and capacity of a list that is not empty; all else is taken from h, whose capacity, if it is not 0, must agree. It
// fails with ErrNotLister for anything that is not such JSON from start to end, and with blocklist.ErrExtent if an extent
// may not follow the one before. It reads r twice, so that the order of a record's fields does not matter.
func ImportLister(ctx context.Context, w io.Writer, r io.ReadSeeker, h blocklist.Header) error {
	first := listerReader{ctx: ctx, header: h, extent: func(blocklist.Extent) error { return nil }}
	if err := first.read(r); err != nil {
		return err
	}
	h = first.header
	if h.BlockMetadataType == "" {
		h.BlockMetadataType = blocklist.UnknownLength
	}
	if h.VolumeCapacityBytes == 0 {
		return fmt.Errorf("%w: an empty list does not tell the size of the volume: say it", ErrNotLister)
	}
	e, err := blocklist.NewEncoder(w, blocklist.Binary, h)
	if err != nil {
		return err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read it again: %w", err)
	}
	one := make([]blocklist.Extent, 1)
	second := listerReader{ctx: ctx, header: h, extent: func(x blocklist.Extent) error {
		one[0] = x
		return e.Encode(one)
	}}
	if err := second.read(r); err != nil {
		return err
	}
	_, err = e.Finish()
	return err
}

// listerReader reads the lister's JSON once.
type listerReader struct {
	ctx    context.Context
	src    *failing
	dec    *json.Decoder
	header blocklist.Header
	extent func(blocklist.Extent) error
}

// failing remembers the error of the reader under a decoder, which gives no other way to tell it from its own.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

func (l *listerReader) read(r io.Reader) error {
	l.src = &failing{r: r}
	l.dec = json.NewDecoder(l.src)
	l.dec.DisallowUnknownFields()
	if err := l.delim('['); err != nil {
		return err
	}
	if err := l.array(l.record); err != nil {
		return err
	}
	switch _, err := l.dec.Token(); {
	case err == nil:
		return l.refuse("something follows the array")
	case !errors.Is(err, io.EOF) || l.src.err != nil:
		return l.broken(err)
	}
	return nil
}

// refuse says what is wrong, and where.
func (l *listerReader) refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s, at byte %d", ErrNotLister, fmt.Sprintf(format, args...), l.dec.InputOffset())
}

// broken wraps an error of the decoder. One of the reader under it is not the list's.
func (l *listerReader) broken(err error) error {
	switch {
	case l.src.err != nil:
		return fmt.Errorf("at byte %d: %w", l.dec.InputOffset(), l.src.err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return l.refuse("it ends too early")
	}
	return l.refuse("%v", err)
}

func (l *listerReader) delim(want json.Delim) error {
	t, err := l.dec.Token()
	if err != nil {
		return l.broken(err)
	}
	if t != want {
		return l.refuse("%v in place of %v", t, want)
	}
	return nil
}

// array reads the rest of an array, with each for its elements.
func (l *listerReader) array(each func() error) error {
	for l.dec.More() {
		if err := each(); err != nil {
			return err
		}
	}
	return l.delim(']')
}

// record reads one record; all records must agree about the volume.
func (l *listerReader) record() error {
	if err := l.ctx.Err(); err != nil {
		return context.Cause(l.ctx)
	}
	if err := l.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for l.dec.More() {
		t, err := l.dec.Token()
		if err != nil {
			return l.broken(err)
		}
		key, _ := t.(string)
		if seen[key] {
			return l.refuse("%q twice in a record", key)
		}
		seen[key] = true
		if err := l.field(key); err != nil {
			return err
		}
	}
	if !seen["block_metadata_type"] || !seen["volume_capacity_bytes"] {
		return l.refuse("a record without block_metadata_type or volume_capacity_bytes")
	}
	return l.delim('}')
}

func (l *listerReader) field(key string) error {
	switch key {
	case "block_metadata_type":
		return l.blockType()
	case "volume_capacity_bytes":
		var n int64
		if err := l.dec.Decode(&n); err != nil {
			return l.broken(err)
		}
		if n <= 0 || l.header.VolumeCapacityBytes != 0 && n != l.header.VolumeCapacityBytes {
			return l.refuse("the volume's capacity is %d, and was %d before", n, l.header.VolumeCapacityBytes)
		}
		l.header.VolumeCapacityBytes = n
		return nil
	case "block_metadata":
		return l.extents()
	}
	return l.refuse("a field %q", key)
}

// blockType reads the type, which the lister prints as a number; other programs print its name.
func (l *listerReader) blockType() error {
	t, err := l.dec.Token()
	if err != nil {
		return l.broken(err)
	}
	for name, number := range listerTypes {
		if name == blocklist.UnknownLength || t != float64(number) && t != string(name) {
			continue
		}
		if l.header.BlockMetadataType != "" && l.header.BlockMetadataType != name {
			return l.refuse("the type of the blocks is %s, and was %s before", name, l.header.BlockMetadataType)
		}
		l.header.BlockMetadataType = name
		return nil
	}
	return l.refuse("a block_metadata_type of %v", t)
}

// extents reads the extents of a record, which are null if there are none. An absent offset is 0.
func (l *listerReader) extents() error {
	t, err := l.dec.Token()
	switch {
	case err != nil:
		return l.broken(err)
	case t == nil:
		return nil
	case t != json.Delim('['):
		return l.refuse("block_metadata is %v", t)
	}
	return l.array(func() error {
		var e struct {
			Offset int64 `json:"byte_offset"`
			Size   int64 `json:"size_bytes"`
		}
		if err := l.dec.Decode(&e); err != nil {
			return l.broken(err)
		}
		if err := l.extent(blocklist.Extent{Offset: e.Offset, Length: e.Size}); err != nil {
			return fmt.Errorf("%w, before byte %d", err, l.dec.InputOffset())
		}
		return nil
	})
}
