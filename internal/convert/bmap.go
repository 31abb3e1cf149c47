package convert

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// maxBlock is the largest block of a block map, in bytes. bmaptool copies up to 1 MiB at once, in whole blocks.
const maxBlock = 64 << 10

// blockMap is what stands before the ranges of a block map.
type blockMap struct {
	capacity int64
	// block is the largest power of two up to maxBlock on whose multiples all extents begin and end, except one that
	// ends with the volume.
	block  int64
	mapped int64
}

// blocks returns the number of blocks in n bytes, counting a last one that is cut short.
func (m blockMap) blocks(n int64) int64 { return n/m.block + min(1, n%m.block) }

// writeBmap writes the XML of bmap-tools, version 2.0. There are no checksums of the ranges' content, which a list does
// not know; bmaptool then does not check them. Count and checksum stand before the ranges, so that this takes three walks
// over the extents.
func writeBmap(w *bufio.Writer, list List) error {
	m, err := surveyBlocks(list)
	if err != nil {
		return err
	}
	sum := sha256.New()
	buffered := bufio.NewWriter(sum)
	if err := m.write(buffered, list, strings.Repeat("0", 2*sha256.Size)); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return m.write(w, list, hex.EncodeToString(sum.Sum(nil)))
}

// surveyBlocks finds the size of a block and counts the mapped ones.
func surveyBlocks(list List) (blockMap, error) {
	m := blockMap{capacity: list.Header.VolumeCapacityBytes}
	edges, changed := uint64(maxBlock), int64(0)
	err := eachMerged(list, func(e blocklist.Extent) error {
		changed += e.Length
		edges |= uint64(e.Offset)
		if e.End() < m.capacity {
			edges |= uint64(e.End())
		}
		return nil
	})
	m.block = 1 << bits.TrailingZeros64(edges)
	m.mapped = m.blocks(changed)
	return m, err
}

func (m blockMap) write(w io.Writer, list List, checksum string) error {
	_, err := fmt.Fprintf(w, `<?xml version="1.0" ?>
<!-- Block map of a list of changed blocks, for the option bmap of bmaptool copy -->
<bmap version="2.0">
    <ImageSize> %d </ImageSize>
    <BlockSize> %d </BlockSize>
    <BlocksCount> %d </BlocksCount>
    <MappedBlocksCount> %d </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> %s </BmapFileChecksum>
    <BlockMap>
`, m.capacity, m.block, m.blocks(m.capacity), m.mapped, checksum)
	if err != nil {
		return err
	}
	err = eachMerged(list, func(e blocklist.Extent) error {
		first, last := e.Offset/m.block, m.blocks(e.End())-1
		if first == last {
			_, err := fmt.Fprintf(w, "        <Range> %d </Range>\n", first)
			return err
		}
		_, err := fmt.Fprintf(w, "        <Range> %d-%d </Range>\n", first, last)
		return err
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, "    </BlockMap>\n</bmap>\n")
	return err
}
