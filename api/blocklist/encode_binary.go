package blocklist

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// layout holds the numbers of format version 1 that tests make small, so that short lists have many chunks.
type layout struct {
	// chunkEntries is the number of extents in every chunk but the last.
	chunkEntries int
	// indexPoints is the greatest number of points in the index; it is even.
	indexPoints int
}

var formatLayout = layout{chunkEntries: 8192, indexPoints: 16384}

// chunkHead is room for what precedes the packed values in a chunk: first_offset, unit_shift, the values' tag and length.
const chunkHead = 32

// maxRecord bounds the length of any record: a trailer with a full index of three columns of ten-byte numbers. A header
// with its strings and a chunk of 8192 times two ten-byte numbers are smaller.
const maxRecord = 512 << 10

type binaryEncoder struct {
	output
	sequence
	layout  layout
	pending []Extent // extents of the chunk that is not full yet
	body    []byte   // scratch for one chunk
	index   index
}

func newBinaryEncoder(w io.Writer, h Header, l layout) *binaryEncoder {
	e := &binaryEncoder{output: newOutput(w), sequence: newSequence(h), layout: l, index: newIndex(l)}
	e.buf = append(e.buf, magic...)
	e.buf = appendRecord(e.buf, headerField, appendHeader(nil, h))
	return e
}

// Encode implements Encoder.
func (e *binaryEncoder) Encode(extents []Extent) error {
	for len(extents) > 0 && e.err == nil {
		n := 1
		if len(e.pending) > 0 {
			n = min(len(extents), e.layout.chunkEntries-len(e.pending))
		}
		e.err = e.encode(extents[:n])
		extents = extents[n:]
	}
	return e.err
}

// encode appends extents to the chunk, in which there is room for them. The first one of a chunk comes alone.
func (e *binaryEncoder) encode(extents []Extent) error {
	changed := e.changed
	if err := e.add(extents); err != nil {
		return err
	}
	if len(e.pending) == 0 {
		// The gap before a chunk is none of its own.
		e.set = extents[0].Length
		e.index.next(point{position: e.offset(), offset: extents[0].Offset, changed: changed})
	}
	if e.pending = append(e.pending, extents...); len(e.pending) < e.layout.chunkEntries {
		return nil
	}
	e.appendChunk()
	return e.flush()
}

// Finish implements Encoder.
func (e *binaryEncoder) Finish() (Trailer, error) {
	if e.err != nil {
		return Trailer{}, e.err
	}
	if len(e.pending) > 0 {
		e.appendChunk()
	}
	e.buf = appendEnd(e.buf, e.offset(), &e.sequence, &e.index, e.digest())
	t, err := e.finish(&e.sequence)
	if err != nil {
		e.err = err
	}
	return t, err
}

// appendChunk ends the chunk.
func (e *binaryEncoder) appendChunk() {
	extents := e.pending
	e.pending = e.pending[:0]
	// The greatest power of two that divides every length in the chunk and every gap inside it.
	shift := bits.TrailingZeros64(uint64(e.set))
	if need := chunkHead + len(extents)*2*binary.MaxVarintLen64; len(e.body) < need {
		e.body = make([]byte, need)
	}
	n := putExtents(e.body[chunkHead:], extents, shift)
	var head [chunkHead]byte
	h := appendUint(head[:0], chunkFirstOffset, uint64(extents[0].Offset))
	h = appendUint(h, chunkUnitShift, uint64(shift))
	h = append(h, tag(chunkExtents, wireBytes))
	h = binary.AppendUvarint(h, uint64(n))
	start := chunkHead - len(h)
	copy(e.body[start:], h)
	e.buf = appendRecord(e.buf, chunkField, e.body[start:chunkHead+n])
}

// putExtents writes the packed values of a chunk to b and returns their length. b has room for two ten-byte numbers for
// each extent.
func putExtents(b []byte, extents []Extent, shift int) int {
	shift &= 63 // it is no larger; the compiler need not look for every extent
	n := 0
	end, length := extents[0].Offset, int64(0)
	for _, x := range extents {
		v := uint64(x.Offset-end) >> shift << 1
		end = x.Offset + x.Length
		if x.Length != length {
			length = x.Length
			n += putUvarint(b[n:], v|1)
			v = uint64(length) >> shift
		}
		n += putUvarint(b[n:], v)
	}
	return n
}

// putUvarint is binary.PutUvarint with a short way for the usual one or two bytes, which writes two and takes no branch:
// the gaps of a list come in both lengths, in an order that no processor predicts.
func putUvarint(b []byte, v uint64) int {
	if v >= 1<<14 {
		return binary.PutUvarint(b, v)
	}
	second := (0x7f - v) >> 63 // 1 if there is a second byte
	// The bits from the eighth on move up by one, to the second byte.
	binary.LittleEndian.PutUint16(b, uint16(v+v&^0x7f|second<<7))
	return 1 + int(second)
}
