package convert

import (
	"bufio"
	"fmt"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// writeDdrescue writes a mapfile in which the listed ranges are finished blocks and all others are not tried, so that
// `ddrescue -m` confines itself to the listed ones. The blocks of a mapfile are contiguous; neighbours of the same kind are
// merged.
func writeDdrescue(w *bufio.Writer, list List) error {
	_, _ = fmt.Fprintf(w, "# Mapfile of a list of changed blocks: ddrescue --force --synchronous --max-read-errors=0 --domain-mapfile=THIS SOURCE TARGET\n"+
		"# SOURCE must have at least %d bytes: what lies behind the end of a shorter one is left out without an error.\n"+
		"# current_pos  current_status  current_pass\n0x00000000     +               1\n#      pos        size  status\n", list.Header.VolumeCapacityBytes) // w keeps its first error
	end := int64(0)
	gap := func(to int64) {
		if to > end {
			_, _ = fmt.Fprintf(w, "0x%08X  0x%08X  ?\n", end, to-end) // w keeps its first error
		}
	}
	err := eachMerged(list, func(e blocklist.Extent) error {
		gap(e.Offset)
		end = e.End()
		_, err := fmt.Fprintf(w, "0x%08X  0x%08X  +\n", e.Offset, e.Length)
		return err
	})
	gap(list.Header.VolumeCapacityBytes)
	return err
}

// eachMerged calls each for every extent of list, adjacent ones merged, up to the first error.
func eachMerged(list List, each func(blocklist.Extent) error) error {
	var pending blocklist.Extent
	for batch, err := range list.Extents() {
		if err != nil {
			return err
		}
		for _, e := range batch {
			if pending.Length > 0 && pending.End() == e.Offset {
				pending.Length += e.Length
				continue
			}
			if pending.Length > 0 {
				if err := each(pending); err != nil {
					return err
				}
			}
			pending = e
		}
	}
	if pending.Length == 0 {
		return nil
	}
	return each(pending)
}
