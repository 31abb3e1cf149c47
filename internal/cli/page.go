package cli

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// page is a part of a list: of the extents that touch a range of the volume, some in the middle.
type page struct {
	// offset and limit count extents; a limit of 0 is none.
	offset, limit int64
	// offsetBytes and limitBytes are the range of the volume; a limit of 0 is none.
	offsetBytes, limitBytes byteCount

	// given extents were handed out; more says that others of the range follow them.
	given int64
	more  bool
}

func (p *page) register(s *pflag.FlagSet) {
	s.Int64Var(&p.offset, "offset", 0, "skip so many entries")
	s.Int64Var(&p.limit, "limit", 0, "print at most so many entries (0: all)")
	s.Var(&p.offsetBytes, "offset-bytes", "begin with the entry that ends after this byte of the volume, such as 1Gi")
	s.Var(&p.limitBytes, "limit-bytes", "end before the first entry that starts so many bytes or more after --offset-bytes (0: the volume's end)")
}

func (p *page) check() error {
	if p.offset < 0 || p.limit < 0 {
		return usagef("--offset %d, --limit %d: give numbers of entries from 0", p.offset, p.limit)
	}
	return nil
}

// whole reports whether the page is the whole list.
func (p *page) whole() bool {
	return p.offset == 0 && p.limit == 0 && p.offsetBytes == 0 && p.limitBytes == 0
}

// next is the offset of the page after this one.
func (p *page) next() int64 { return p.offset + p.given }

// of returns the part of extents that p describes. It goes one extent further, to know whether more follows.
func (p *page) of(extents listops.Extents) listops.Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		skipped := int64(0)
		for batch, err := range extents {
			if err != nil {
				yield(nil, err)
				return
			}
			// Of the extents those of the page follow each other.
			first, taken, ended := 0, 0, false
			for i := 0; i < len(batch) && !ended; i++ {
				switch {
				case batch[i].End() <= int64(p.offsetBytes):
				case batch[i].Offset >= p.endBytes():
					ended = true
				case skipped < p.offset:
					skipped++
				case p.limit > 0 && p.given == p.limit:
					p.more, ended = true, true
				default:
					if taken == 0 {
						first = i
					}
					taken++
					p.given++
				}
			}
			if taken > 0 && !yield(batch[first:first+taken], nil) || ended {
				return
			}
		}
	}
}

// endBytes is the end of the range of the volume.
func (p *page) endBytes() int64 {
	if p.limitBytes == 0 || p.limitBytes > math.MaxInt64-p.offsetBytes {
		return math.MaxInt64
	}
	return int64(p.offsetBytes + p.limitBytes)
}

// writeJSON writes the page as one JSON object, with the field names of a list. It is none: it has no trailer, and readers of
// lists refuse it.
func (p *page) writeJSON(w io.Writer, h blocklist.Header, extents listops.Extents) error {
	b := bufio.NewWriterSize(w, 256<<10)
	buf := fmt.Appendf(nil, "{\n\"mode\": \"%s\",\n\"block_metadata_type\": \"%s\",\n\"volume_capacity_bytes\": %d,\n", h.Mode, h.BlockMetadataType, h.VolumeCapacityBytes)
	buf = fmt.Appendf(buf, "\"offset\": %d,\n\"limit\": %d,\n\"offset_bytes\": %d,\n\"limit_bytes\": %d,\n\"block_metadata\": [", p.offset, p.limit, p.offsetBytes, p.limitBytes)
	separator := "\n"
	for batch, err := range extents {
		if err != nil {
			return err
		}
		for _, e := range batch {
			buf = append(append(buf, separator...), `{"byte_offset":`...)
			buf = append(strconv.AppendInt(buf, e.Offset, 10), `,"size_bytes":`...)
			buf = append(strconv.AppendInt(buf, e.Length, 10), '}')
			separator = ",\n"
		}
		if _, err := b.Write(buf); err != nil {
			return fmt.Errorf("write page: %w", err)
		}
		buf = buf[:0]
	}
	next := "null"
	if p.more {
		next = strconv.FormatInt(p.next(), 10)
	}
	buf = fmt.Appendf(buf, "\n],\n\"entry_count\": %d,\n\"next_offset\": %s\n}\n", p.given, next)
	if _, err := b.Write(buf); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}
