// Package claimsize says how large a list can become, and how large a PersistentVolumeClaim has to be for it.
package claimsize

import (
	"fmt"
	"io"
	"strconv"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

const mib = 1 << 20

// For returns the size in bytes of a claim for a list of that many bytes: a tenth and 32 MiB more, for what file systems
// keep for themselves and for an estimate that was short, in whole MiB.
func For(list int64) int64 { return ((list+list/10)/mib + 33) * mib }

// Parts of the Binary format (docs/format-binary.md), each at its largest.
const (
	chunkExtents = 8192
	// chunkBytes bounds a chunk's record without its extents.
	chunkBytes = 64
	// indexPoints is the largest number of points of the index, and pointBytes what one takes.
	indexPoints, pointBytes = 16384, 30
	// oddChunkBytes bounds what one chunk takes more whose unit is a single byte: that of a last extent which ends at a
	// capacity that is no multiple of the block.
	oddChunkBytes = chunkExtents * 20
)

// countDigits bounds the digits of the two counts in a JSON list's trailer.
const countDigits = 2 * 19

// Bound returns the size in bytes that no list with the header h exceeds, if every extent starts and ends at a multiple of
// block bytes, or at the capacity. With a granularity in the header that is known to be so for it; otherwise block is the
// caller's assumption about the driver.
//
// The longest JSON list has one line for each block, or for every second block if adjacent extents are merged. In the Binary
// format an extent takes a byte for its gap and one for its length as long as both are small, and longer ones take fewer
// bytes for each block that they span; so two bytes a block bound it, or one if adjacent extents are merged.
func Bound(h blocklist.Header, f blocklist.Format, block int64) (int64, error) {
	if h.GranularityBytes > 0 {
		block = h.GranularityBytes
	}
	if block <= 0 {
		return 0, fmt.Errorf("bound the size of a list: %d bytes are no block", block)
	}
	enc, err := blocklist.NewEncoder(io.Discard, f, h)
	if err != nil {
		return 0, fmt.Errorf("bound the size of a list: %w", err)
	}
	empty, err := enc.Finish()
	if err != nil {
		return 0, fmt.Errorf("bound the size of a list: %w", err)
	}
	blocks := (h.VolumeCapacityBytes-1)/block + 1
	extents := blocks
	if h.Merged {
		extents = (blocks + 1) / 2
	}
	if f == blocklist.JSON {
		line := int64(len(",\n"+`{"byte_offset":,"size_bytes":}`) + digits(h.VolumeCapacityBytes) + digits(block))
		return empty.ListBytes + countDigits + extents*line, nil
	}
	chunks := extents/chunkExtents + 1
	perBlock := int64(2)
	if h.Merged {
		perBlock = 1
	}
	return empty.ListBytes + blocks*perBlock + chunks*chunkBytes + min(chunks, indexPoints)*pointBytes + oddChunkBytes, nil
}

func digits(n int64) int { return len(strconv.FormatInt(n, 10)) }
