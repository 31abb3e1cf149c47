package snapmeta

import (
	"encoding/binary"
	"math/bits"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Extents that wait for their turn are packed, because the memory for them bounds how far streams may read ahead, and so
// how seldom the service is called. A piece is
//
//	shift (1 byte), number of extents (uvarint), then for each extent
//	gap<<1 (uvarint) if it is as long as the one before it in the piece, or gap<<1|1 and its length (uvarints)
//
// where the gap is counted from the end of the extent before it, for the first one from 0, and all are in units of
// 1<<shift bytes. Evenly spread blocks of 4 KiB take one or two bytes each. It never leaves the process.
const (
	// pieceExtents is the largest number of extents of a piece.
	pieceExtents = 1024
	// maxPieceBytes is the largest size of a piece.
	maxPieceBytes = 1 + binary.MaxVarintLen64 + pieceExtents*2*binary.MaxVarintLen64
)

// pack appends a piece of extents, ascending and at most pieceExtents of them, to to.
func pack(to []byte, extents []blocklist.Extent) []byte {
	var all uint64
	for _, e := range extents {
		all |= uint64(e.Offset) | uint64(e.Length)
	}
	shift := min(bits.TrailingZeros64(all), 62)
	to = append(to, byte(shift))
	to = binary.AppendUvarint(to, uint64(len(extents)))
	end, length := int64(0), int64(0)
	for _, e := range extents {
		gap := uint64(e.Offset-end) >> shift << 1
		switch {
		case e.Length == length && gap < 0x80:
			to = append(to, byte(gap))
		case e.Length == length:
			to = binary.AppendUvarint(to, gap)
		default:
			to = binary.AppendUvarint(to, gap|1)
			to = binary.AppendUvarint(to, uint64(e.Length)>>shift)
			length = e.Length
		}
		end = e.End()
	}
	return to
}

// unpack appends the extents of the piece at the start of from to extents, and returns what follows the piece.
func unpack(extents []blocklist.Extent, from []byte) ([]blocklist.Extent, []byte) {
	shift := from[0]
	n, size := binary.Uvarint(from[1:])
	from = from[1+size:]
	end, length := int64(0), int64(0)
	i := 0
	for range n {
		// One byte is the usual case.
		gap, size := uint64(from[i]), 1
		if gap >= 0x80 {
			gap, size = binary.Uvarint(from[i:])
		}
		i += size
		if gap&1 != 0 {
			l, size := binary.Uvarint(from[i:])
			i += size
			length = int64(l << shift)
		}
		offset := end + int64(gap>>1<<shift)
		extents = append(extents, blocklist.Extent{Offset: offset, Length: length})
		end = offset + length
	}
	return extents, from[i:]
}
