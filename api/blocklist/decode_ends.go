package blocklist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/bits"
)

// readEnds reads header, trailer and index of a Binary list; a JSON list it verifies.
func readEnds(section *io.SectionReader, record *deviceRecord, l layout) (*File, error) {
	r, err := newReader(io.NewSectionReader(section, 0, section.Size()), l)
	if err != nil {
		return nil, err
	}
	d, ok := r.list.(*binaryDecoder)
	if !ok {
		return verifyList(section, record, l)
	}
	f := &File{bytes: section, format: Binary, layout: l, header: d.head}
	raw, err := readTrailerRecord(section)
	if err != nil {
		return nil, err
	}
	f.end = section.Size() - int64(len(raw))
	if err := f.parseTrailer(raw, d.src.offset()); err != nil {
		return nil, fmt.Errorf("trailer at byte %d: %w", f.end, err)
	}
	f.trailer.ListBytes = section.Size()
	if record != nil {
		f.trailer.ListSHA256 = record.sha256
	}
	f.Cursor = *f.From(0)
	return f, nil
}

// readTrailerRecord returns the end of a list from the trailer's record on.
func readTrailerRecord(section *io.SectionReader) ([]byte, error) {
	footer, err := readTail(section, int64(footerBytes))
	if err != nil {
		return nil, err
	}
	if string(footer[16:]) != endMagic {
		return nil, fmt.Errorf("%w: it does not end with a footer", ErrIncomplete)
	}
	if crc32.Checksum(footer[:12], castagnoli) != binary.LittleEndian.Uint32(footer[12:]) {
		return nil, fmt.Errorf("%w: the footer's CRC32C is wrong", ErrCorrupt)
	}
	if n := binary.LittleEndian.Uint64(footer); n != uint64(section.Size()) {
		return nil, fmt.Errorf("%w: the footer announces %d bytes, the list has %d", ErrCorrupt, n, section.Size())
	}
	length := binary.LittleEndian.Uint32(footer[8:])
	if length > maxRecord {
		return nil, fmt.Errorf("%w: the footer announces a trailer of %d bytes", ErrCorrupt, length)
	}
	return readTail(section, int64(length)+int64(footerBytes))
}

func readTail(section *io.SectionReader, n int64) ([]byte, error) {
	if n > section.Size() {
		return nil, fmt.Errorf("%w: it has %d bytes, its end alone takes %d", ErrIncomplete, section.Size(), n)
	}
	b := make([]byte, n)
	if _, err := section.ReadAt(b, section.Size()-n); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the last %d bytes: %w", n, err)
	}
	return b, nil
}

// parseTrailer fills in counts and index from the list's end, where raw begins at f.end and the first chunk at byte
// start. As everywhere, it demands that encoding the result gives the same bytes.
func (f *File) parseTrailer(raw []byte, start int64) error {
	length, n := uvarint(raw)
	if n == 0 || length != uint64(len(raw)-n-footerBytes) {
		return fmt.Errorf("%w: its length is not the footer's", ErrCorrupt)
	}
	field, body, err := openRecord(raw[n:][:length])
	if err != nil {
		return err
	}
	if field != trailerField {
		return fmt.Errorf("%w: the last record holds field %d", ErrCorrupt, field)
	}
	count, body, okCount := cutUint(body, trailerEntryCount)
	changed, body, okChanged := cutUint(body, trailerChangedBytes)
	digest, body, okDigest := cutBytes(body, trailerSHA256)
	_, body, okComplete := cutUint(body, trailerComplete)
	rawIndex, _, okIndex := cutBytes(body, trailerIndex)
	if !okCount || !okChanged || !okDigest || !okComplete || !okIndex || len(digest) != 32 || count > math.MaxInt64 || changed > math.MaxInt64 {
		return fmt.Errorf("%w: a field is broken", ErrCorrupt)
	}
	f.trailer = Trailer{EntryCount: int64(count), ChangedBytes: int64(changed)}
	if f.points, err = parseIndex(rawIndex, f.layout, start, f.end, f.trailer); err != nil {
		return err
	}
	s := sequence{count: f.trailer.EntryCount, changed: f.trailer.ChangedBytes}
	if !bytes.Equal(raw, appendEnd(nil, f.end, &s, f.points, [32]byte(digest))) {
		return fmt.Errorf("%w: it is not in its canonical form", ErrCorrupt)
	}
	return nil
}

// parseIndex decodes an Index message for chunks that begin at byte start of the list and end at byte end.
func parseIndex(b []byte, l layout, start, end int64, t Trailer) (*index, error) {
	x := newIndex(l)
	stride, b, ok := cutUint(b, indexStride)
	columns := [3][]byte{}
	for i, field := range []int{indexListBytes, indexFirstOffset, indexChangedBytes} {
		var okColumn bool
		columns[i], b, okColumn = cutBytes(b, field)
		ok = ok && okColumn
	}
	if !ok || len(b) > 0 {
		return nil, fmt.Errorf("%w: its index is broken", ErrCorrupt)
	}
	at := point{position: start}
	for len(columns[0]) > 0 {
		var step [3]int64
		for i := range columns {
			v, n := uvarint(columns[i])
			if n == 0 || v > math.MaxInt64 {
				return nil, fmt.Errorf("%w: its index is broken", ErrCorrupt)
			}
			step[i], columns[i] = int64(v), columns[i][n:]
		}
		if step[0] > end-at.position || step[1] > math.MaxInt64-at.offset || step[2] > t.ChangedBytes-at.changed {
			return nil, fmt.Errorf("%w: its index does not fit the list", ErrCorrupt)
		}
		at.offset += step[1]
		x.points = append(x.points, at)
		at.position += step[0]
		at.changed += step[2]
	}
	// The writer's stride and number of points follow from the number of chunks.
	chunks := t.EntryCount / int64(l.chunkEntries)
	if t.EntryCount%int64(l.chunkEntries) > 0 {
		chunks++
	}
	x.stride, x.chunks = max(1, int64(stride)), chunks
	if bits.OnesCount64(uint64(x.stride)) != 1 || at.position != end || at.changed != t.ChangedBytes ||
		(chunks+x.stride-1)/x.stride != int64(len(x.points)) || len(x.points) > l.indexPoints ||
		x.stride > 1 && len(x.points) <= l.indexPoints/2 {
		return nil, fmt.Errorf("%w: its index does not fit the list", ErrCorrupt)
	}
	return &x, nil
}
