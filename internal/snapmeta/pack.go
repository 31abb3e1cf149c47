package snapmeta

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Extents that wait for their turn are packed, because the memory for them bounds how far streams may read ahead, and so
// how seldom the service is called. A piece is
//
//	shift (1 byte), width (1 byte), number of extents (2 bytes)
//
// and then, if all of its extents are equally long and no gap is wide, which is the usual case,
//
//	the first offset and the length (uvarints), then for each further extent its gap (width bytes: 1 or 2)
//
// so that no branch depends on an extent; or else, with a width of 0, for each extent
//
//	gap<<1 (uvarint) if it is as long as the one before it in the piece, or gap<<1|1 and its length (uvarints)
//
// where a gap is counted from the end of the extent before it, for the first one from 0, and all are in units of 1<<shift
// bytes. It never leaves the process.
const (
	// pieceExtents is the largest number of extents of a piece.
	pieceExtents = 1024
	// headBytes is the size of what every piece begins with.
	headBytes = 4
	// maxPieceBytes is the largest size of a piece.
	maxPieceBytes = headBytes + pieceExtents*2*binary.MaxVarintLen64
)

// pack appends a piece of extents, ascending and between 1 and pieceExtents of them, to to.
func pack(to []byte, extents []blocklist.Extent) []byte {
	first, end := extents[0], extents[0].Offset
	all, unequal, widest := uint64(0), int64(0), int64(0)
	for _, e := range extents {
		all |= uint64(e.Offset) | uint64(e.Length)
		unequal |= e.Length ^ first.Length
		widest = max(widest, e.Offset-end)
		end = e.Offset + e.Length
	}
	shift := min(bits.TrailingZeros64(all), 62)
	width := 0
	switch units := widest >> shift; {
	case unequal != 0 || units > math.MaxUint16:
	case units > math.MaxUint8:
		width = 2
	default:
		width = 1
	}
	to = append(to, byte(shift), byte(width))
	to = binary.LittleEndian.AppendUint16(to, uint16(len(extents)))
	if width == 0 {
		return packAny(to, extents, shift)
	}
	to = binary.AppendUvarint(to, uint64(first.Offset)>>shift)
	to = binary.AppendUvarint(to, uint64(first.Length)>>shift)
	return packEqual(to, extents, shift&63, width)
}

// packEqual appends the gaps between extents of one length.
func packEqual(to []byte, extents []blocklist.Extent, shift, width int) []byte {
	n := len(to)
	to = slices.Grow(to, width*len(extents))[:n+width*(len(extents)-1)]
	gaps, length, end := to[n:], extents[0].Length, extents[0].End()
	extents = extents[1:]
	if width == 1 {
		gaps = gaps[:len(extents)]
		for i, e := range extents {
			gaps[i] = byte((e.Offset - end) >> shift)
			end = e.Offset + length
		}
		return to
	}
	for i, e := range extents {
		binary.LittleEndian.PutUint16(gaps[2*i:], uint16((e.Offset-end)>>shift))
		end = e.Offset + length
	}
	return to
}

// packAny appends extents of any lengths and gaps.
func packAny(to []byte, extents []blocklist.Extent, shift int) []byte {
	end, length := int64(0), int64(0)
	for _, e := range extents {
		gap := uint64(e.Offset-end) >> shift << 1
		if e.Length == length {
			to = binary.AppendUvarint(to, gap)
		} else {
			to = binary.AppendUvarint(to, gap|1)
			to = binary.AppendUvarint(to, uint64(e.Length)>>shift)
			length = e.Length
		}
		end = e.End()
	}
	return to
}

// unpack returns the extents of the piece at the start of from, in the memory of reuse, and what follows the piece.
func unpack(reuse []blocklist.Extent, from []byte) ([]blocklist.Extent, []byte) {
	shift, width, n := int(from[0]), int(from[1]), int(binary.LittleEndian.Uint16(from[2:]))
	from = from[headBytes:]
	if cap(reuse) < n {
		reuse = make([]blocklist.Extent, pieceExtents)
	}
	extents := reuse[:n]
	if width == 0 {
		return extents, unpackAny(extents, from, shift)
	}
	offset, size := binary.Uvarint(from)
	from = from[size:]
	length, size := binary.Uvarint(from)
	from = from[size:]
	extents[0] = blocklist.Extent{Offset: int64(offset << shift), Length: int64(length << shift)}
	gaps := width * (n - 1)
	unpackEqual(extents, from[:gaps], shift&63, width)
	return extents, from[gaps:]
}

// unpackEqual fills in the extents that follow the first one.
func unpackEqual(extents []blocklist.Extent, gaps []byte, shift, width int) {
	length, end := extents[0].Length, extents[0].End()
	extents = extents[1:]
	if width == 1 {
		for i, gap := range gaps[:len(extents)] {
			offset := end + int64(gap)<<shift
			extents[i] = blocklist.Extent{Offset: offset, Length: length}
			end = offset + length
		}
		return
	}
	for i := range extents {
		offset := end + int64(binary.LittleEndian.Uint16(gaps[2*i:]))<<shift
		extents[i] = blocklist.Extent{Offset: offset, Length: length}
		end = offset + length
	}
}

// unpackAny fills in all extents and returns what follows them.
func unpackAny(extents []blocklist.Extent, from []byte, shift int) []byte {
	end, length := int64(0), int64(0)
	for i := range extents {
		gap, size := binary.Uvarint(from)
		from = from[size:]
		if gap&1 != 0 {
			l, size := binary.Uvarint(from)
			from = from[size:]
			length = int64(l << shift)
		}
		offset := end + int64(gap>>1<<shift)
		extents[i] = blocklist.Extent{Offset: offset, Length: length}
		end = offset + length
	}
	return from
}
