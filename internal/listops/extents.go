// Package listops computes with lists of extents: sets, parts, counts. All of it streams in constant memory; what goes
// in and what comes out are ascending extents that do not overlap.
package listops

import (
	"iter"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Extents are the extents of a list in ascending order, in batches that are valid until the next one is asked for. A
// failure is the last pair, with a nil batch; no such pair means that the list's end was reached, unless the loop was
// left early.
type Extents = iter.Seq2[[]blocklist.Extent, error]

// Of returns the extents that c has left. They can be walked over once.
func Of(c *blocklist.Cursor) Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		for b := c.NextBatch(); b != nil; b = c.NextBatch() {
			if !yield(b, nil) {
				return
			}
		}
		if err := c.Err(); err != nil {
			yield(nil, err)
		}
	}
}
