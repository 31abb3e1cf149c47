package listops

import (
	"fmt"
	"math"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Part returns the header of a list that is not the whole answer about its snapshots: remark, in parentheses, follows
// the target's name, and there is no target handle, so that nobody takes the list for an increment that the next one
// could follow. (No VolumeSnapshot has such a name.)
func Part(h blocklist.Header, remark string) blocklist.Header {
	h.TargetSnapshot = fmt.Sprintf("%s (%s)", h.TargetSnapshot, remark)
	h.TargetSnapshotHandle = ""
	return h
}

// Clipped returns h for a list of whose extents some may have been cut, so that their lengths vary.
func Clipped(h blocklist.Header) blocklist.Header {
	if h.BlockMetadataType == blocklist.FixedLength {
		h.BlockMetadataType = blocklist.VariableLength
	}
	return h
}

// Range is the part of a volume from the byte From to the byte before To.
type Range struct{ From, To int64 }

// Everything is the range that leaves nothing out.
func Everything() Range { return Range{To: math.MaxInt64} }

// Clip returns what of the extents lies in r.
func Clip(in Extents, r Range) Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		var out []blocklist.Extent
		for batch, err := range in {
			if err != nil {
				yield(nil, err)
				return
			}
			out = out[:0]
			past := false
			for _, e := range batch {
				if past = e.Offset >= r.To; past {
					break
				}
				if x := cut(e, r); x.Length > 0 {
					out = append(out, x)
				}
			}
			if len(out) > 0 && !yield(out, nil) || past {
				return
			}
		}
	}
}

// cut returns the part of e that lies in r; its length is not positive if there is none.
func cut(e blocklist.Extent, r Range) blocklist.Extent {
	from, to := max(e.Offset, r.From), min(e.End(), r.To)
	return blocklist.Extent{Offset: from, Length: to - from}
}

// Page returns at most limit extents after the first skip ones.
func Page(in Extents, skip, limit int64) Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		if limit == 0 {
			return
		}
		for batch, err := range in {
			if err != nil {
				yield(nil, err)
				return
			}
			n := min(skip, int64(len(batch)))
			skip -= n
			batch = batch[n:]
			batch = batch[:min(limit, int64(len(batch)))]
			limit -= int64(len(batch))
			if len(batch) > 0 && !yield(batch, nil) || limit == 0 {
				return
			}
		}
	}
}

// Slices divides the volume into one range for each of workers, with equal changed bytes in them: changed is the sum of
// the lengths of all extents. A range begins where a worker's share does, or at the next multiple of align (a power of two)
// bytes of the volume, whether an extent goes on there or begins there: no aligned block belongs to two workers, and shares
// differ by less than two aligns even if the list is one extent. The ranges depend on the arguments alone: every worker can
// compute its own. The last one has no end.
func Slices(in Extents, changed int64, workers int, align int64) ([]Range, error) {
	each, rest := changed/int64(workers), changed%int64(workers)
	// share returns how many changed bytes come before the range of a worker. It does not overflow.
	share := func(worker int) int64 { return each*int64(worker) + min(int64(worker), rest) }
	ranges := make([]Range, 1, workers)
	before := int64(0) // changed bytes before the extent
	for batch, err := range in {
		if err != nil {
			return nil, err
		}
		for _, e := range batch {
			for len(ranges) < workers && share(len(ranges)) < before+e.Length {
				ranges = append(ranges, Range{From: alignUp(e.Offset+share(len(ranges))-before, align)})
			}
			before += e.Length
		}
	}
	for len(ranges) < workers {
		ranges = append(ranges, Range{From: math.MaxInt64}) // nothing is left for them
	}
	for i := range ranges[1:] {
		ranges[i].To = ranges[i+1].From
	}
	ranges[workers-1].To = math.MaxInt64
	return ranges, nil
}

// alignUp returns the first multiple of align from at on, or the largest offset if there is none.
func alignUp(at, align int64) int64 {
	over := at & (align - 1)
	if over == 0 {
		return at
	}
	return at + min(align-over, math.MaxInt64-at)
}
