package populate

import (
	"context"
	"iter"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Preview returns what a population with these options would write: the list's header, and its extents in batches that are
// valid until the next one is asked for; a failure of src is the last pair. It waits for the first extents, because the
// header needs what they tell. The extents can be walked over once.
func Preview(ctx context.Context, src Source, o *Options) (blocklist.Header, iter.Seq2[[]blocklist.Extent, error], error) {
	first, err := src.Next(ctx)
	empty := ended(err)
	if err != nil && !empty {
		return blocklist.Header{}, nil, err
	}
	h := o.header(src.Info())
	if err := ensureCapacity(ctx, src, &h); err != nil {
		return blocklist.Header{}, nil, err
	}
	raw := func(yield func([]blocklist.Extent, error) bool) {
		for batch := first; !empty; {
			if !yield(batch, nil) {
				return
			}
			if batch, err = src.Next(ctx); ended(err) {
				return
			} else if err != nil {
				yield(nil, err)
				return
			}
		}
	}
	if !h.Merged {
		return h, raw, nil
	}
	return h, merged(raw, &merger{granularity: h.GranularityBytes, capacity: h.VolumeCapacityBytes}), nil
}

// merged passes extents through m.
func merged(extents iter.Seq2[[]blocklist.Extent, error], m *merger) iter.Seq2[[]blocklist.Extent, error] {
	return func(yield func([]blocklist.Extent, error) bool) {
		for batch, err := range extents {
			if err != nil {
				yield(nil, err)
				return
			}
			if batch = m.add(batch); len(batch) > 0 && !yield(batch, nil) {
				return
			}
		}
		if rest := m.flush(); len(rest) > 0 {
			yield(rest, nil)
		}
	}
}
