package blocklist

import (
	"io"
	"iter"
)

// batcher is the inside of a Cursor: it returns the next extents, at least one, valid until the next call; io.EOF after
// the last ones.
type batcher interface {
	batch() ([]Extent, error)
}

// Cursor walks over extents in ascending order. It is not safe for concurrent use; several cursors of one File are
// independent of each other.
type Cursor struct {
	source batcher
	ready  []Extent
	extent Extent
	err    error
}

// Next advances to the next extent and reports whether there is one. After it returned false, Err tells the end from a
// failure.
func (c *Cursor) Next() bool {
	if len(c.ready) == 0 && !c.more() {
		return false
	}
	c.extent, c.ready = c.ready[0], c.ready[1:]
	return true
}

// Extent returns the extent to which Next advanced.
func (c *Cursor) Extent() Extent { return c.extent }

// NextBatch returns the next extents, as many as are decoded at once (up to 8192), and nil where Next returns false. The
// slice is valid until the next call of NextBatch or Next. It is the fastest way to read a list.
func (c *Cursor) NextBatch() []Extent {
	if len(c.ready) == 0 && !c.more() {
		return nil
	}
	b := c.ready
	c.ready = nil
	return b
}

// Err returns nil as long as nothing failed, and after the end if everything was right.
func (c *Cursor) Err() error {
	if c.err == io.EOF { //nolint:errorlint // the batcher's end; in an error, io.EOF is that of what the list was read from
		return nil
	}
	return c.err
}

// All iterates over the extents that are left. A failure is its last pair, with a zero Extent; no such pair means that
// the end was reached and everything was right, unless the loop was left early.
func (c *Cursor) All() iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for c.Next() {
			if !yield(c.extent, nil) {
				return
			}
		}
		if err := c.Err(); err != nil {
			yield(Extent{}, err)
		}
	}
}

// drain reads to the end and returns Err.
func (c *Cursor) drain() error {
	for more := true; more; {
		more = c.NextBatch() != nil
	}
	return c.Err()
}

func (c *Cursor) more() bool {
	if c.err != nil {
		return false
	}
	c.ready, c.err = c.source.batch()
	if c.err != nil {
		c.ready = nil
	}
	return c.err == nil
}
