package blocklist

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// binaryDecoder reads a list, or from a point in it, in exactly the form in which binaryEncoder writes it.
type binaryDecoder struct {
	src    source
	head   Header
	seq    sequence
	layout layout
	points index
	ready  []Extent
	// short: the last chunk was not full, so no other may follow.
	short bool
	total Trailer
	end   int64 // byte of the list behind the last chunk, known at the end
	// part is nil if the whole list is read and verified.
	part *part
}

func newBinaryDecoder(src source, l layout) (*binaryDecoder, error) {
	d := &binaryDecoder{src: src, layout: l, points: newIndex(l)}
	d.src.consume(len(magic))
	record, err := d.src.record("the header")
	if err != nil {
		return nil, err
	}
	if d.head, err = parseHeaderRecord(record); err != nil {
		return nil, fmt.Errorf("header at byte %d: %w", len(magic), err)
	}
	d.src.consume(frameBytes(record))
	d.seq = newSequence(d.head)
	return d, nil
}

func (d *binaryDecoder) header() Header   { return d.head }
func (d *binaryDecoder) trailer() Trailer { return d.total }

// frameBytes returns the length of a record with its length prefix.
func frameBytes(record []byte) int { return uvarintBytes(uint64(len(record))) + len(record) }

func uvarintBytes(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// record returns the record that comes next, without its length prefix. It does not consume it; the slice is valid
// until the next read.
func (s *source) record(what string) ([]byte, error) {
	s.want(binary.MaxVarintLen64)
	length, n := binary.Uvarint(s.rest())
	switch {
	case n == 0 && s.end-s.pos < binary.MaxVarintLen64:
		return nil, s.cut(what)
	case n <= 0 || n != uvarintBytes(length) || length > maxRecord:
		return nil, s.corrupt("a record's length is not that of any record")
	case !s.want(n + int(length)):
		return nil, s.cut(what)
	}
	return s.rest()[n : n+int(length)], nil
}

// batch implements batcher.
func (d *binaryDecoder) batch() ([]Extent, error) {
	if d.part != nil && d.src.offset() == d.part.end {
		return nil, d.part.arrive(&d.seq, d.src.offset())
	}
	record, err := d.src.record("a chunk or the trailer")
	if err != nil {
		return nil, err
	}
	field, body, err := openRecord(record)
	if err != nil {
		return nil, fmt.Errorf("record at byte %d: %w", d.src.offset(), err)
	}
	if field == trailerField && d.part == nil {
		if err := d.readTrailer(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
	if field != chunkField || d.short {
		return nil, d.src.corrupt("a record with field %d does not belong here", field)
	}
	return d.readChunk(body, frameBytes(record))
}

func (d *binaryDecoder) readChunk(body []byte, frame int) ([]Extent, error) {
	at := point{position: d.src.offset(), changed: d.seq.changed}
	extents, err := d.decodeChunk(body)
	if err != nil {
		return nil, fmt.Errorf("chunk at byte %d: %w", at.position, asCorrupt(err))
	}
	at.offset = extents[0].Offset
	if err := d.pass(at); err != nil {
		return nil, err
	}
	d.short = len(extents) < d.layout.chunkEntries
	d.src.consume(frame)
	return extents, nil
}

func (d *binaryDecoder) decodeChunk(body []byte) ([]Extent, error) {
	c, err := parseChunk(body)
	if err != nil {
		return nil, err
	}
	if c.firstOffset < d.seq.prevEnd || c.firstOffset > d.seq.limit {
		return nil, fmt.Errorf("%w: its first offset %d does not lie between %d and %d", ErrCorrupt, c.firstOffset, d.seq.prevEnd, d.seq.limit)
	}
	// Every extent takes at least one byte.
	if most := min(d.layout.chunkEntries, len(c.values)); len(d.ready) < most {
		d.ready = make([]Extent, most)
	}
	n, err := c.decode(d.ready, d.seq.limit)
	if err != nil {
		return nil, err
	}
	return d.ready[:n], d.seq.add(d.ready[:n])
}

func (d *binaryDecoder) pass(p point) error {
	if d.part != nil {
		return d.part.pass(p)
	}
	d.points.next(p)
	return nil
}

// readTrailer verifies the trailer's record and the footer. All of both is known beforehand.
func (d *binaryDecoder) readTrailer() error {
	d.end = d.src.offset()
	want := appendEnd(nil, d.end, &d.seq, &d.points, d.src.digest())
	if err := d.src.expect(want, "the trailer"); err != nil {
		return err
	}
	if err := d.src.expectEnd(); err != nil {
		return err
	}
	d.total = d.seq.trailer(&d.src)
	return nil
}

// chunk is a Chunk message: extents that are not decoded yet.
type chunk struct {
	firstOffset int64
	shift       uint
	values      []byte
}

// parseChunk takes the fields in the one order and form in which they are written.
func parseChunk(body []byte) (chunk, error) {
	var c chunk
	first, body, ok := cutUint(body, chunkFirstOffset)
	if !ok || first > math.MaxInt64 {
		return c, fmt.Errorf("%w: its first offset is not in its canonical form", ErrCorrupt)
	}
	shift, body, ok := cutUint(body, chunkUnitShift)
	if !ok || shift > 62 {
		return c, fmt.Errorf("%w: its unit shift is not in its canonical form", ErrCorrupt)
	}
	values, body, ok := cutBytes(body, chunkExtents)
	if !ok || len(values) == 0 || len(body) > 0 {
		return c, fmt.Errorf("%w: its extents are not in their canonical form", ErrCorrupt)
	}
	return chunk{firstOffset: int64(first), shift: uint(shift), values: values}, nil
}

// decode writes the chunk's extents to out, whose length is the most that a chunk holds, and returns their number. It
// checks that each ends at or before limit, and that the values are those that putExtents writes for them.
func (c chunk) decode(out []Extent, limit int64) (int, error) {
	b, n, i := c.values, 0, 0
	end, length, units := c.firstOffset, int64(0), uint64(0)
	for i < len(b) {
		v, size := shortUvarint(b[i:])
		i += size
		room := uint64(limit-end) >> c.shift // end never exceeds limit
		if size == 0 || v>>1 > room || n == len(out) {
			return 0, c.refuse(i, "a gap")
		}
		gap := v >> 1
		if v&1 != 0 {
			if v, size = shortUvarint(b[i:]); size == 0 || v == 0 || v > room || int64(v)<<c.shift == length {
				return 0, c.refuse(i, "a length")
			}
			i += size
			length = int64(v) << c.shift
			units |= v
		}
		units |= gap
		offset := end + int64(gap)<<c.shift
		if length == 0 || length > limit-offset {
			return 0, c.refuse(i, "an extent's end")
		}
		out[n] = Extent{offset, length}
		end = offset + length
		n++
	}
	if units&1 == 0 || out[0].Offset != c.firstOffset {
		return 0, fmt.Errorf("%w: its unit or its first gap is not canonical", ErrCorrupt)
	}
	return n, nil
}

func (c chunk) refuse(i int, what string) error {
	return fmt.Errorf("%w: %s at byte %d of its %d bytes of values is out of bounds", ErrCorrupt, what, i, len(c.values))
}

// shortUvarint is uvarint with a short way for one and two bytes.
func shortUvarint(b []byte) (uint64, int) {
	if len(b) >= 2 {
		if b[0] < 0x80 {
			return uint64(b[0]), 1
		}
		if b[1]-1 < 0x7f {
			return uint64(b[0]&0x7f) | uint64(b[1])<<7, 2
		}
	}
	return uvarint(b)
}

// asCorrupt marks a broken rule of the extents as what it is in a reader.
func asCorrupt(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}
