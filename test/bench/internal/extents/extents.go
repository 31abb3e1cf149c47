// Package extents makes the list that everything is measured with: extents of 4 KiB with random gaps of 1 to 99 blocks
// between them, the same in every process, so that a server can send it and a reader can be compared with it without
// either holding it in memory.
package extents

import (
	"fmt"
	"math/rand/v2"
	"sort"
)

const (
	// Size is the length of every extent, in bytes.
	Size = 4096
	// maxGap is the largest gap, in blocks of Size. The smallest is 1, so that merging leaves the list as it is.
	maxGap = 99
	// patternLength is the number of extents after which the gaps repeat.
	patternLength = 1 << 20
	// unit is what the capacity is a multiple of.
	unit = 1 << 30
)

// List is a list of extents. It is safe for concurrent use.
type List struct {
	count int64
	// pattern holds the offsets of the first extents; span is how far the pattern reaches.
	pattern []int64
	span    int64
}

// New returns the list of count extents. A shorter list is the beginning of a longer one.
func New(count int64) *List {
	rng := rand.New(rand.NewPCG(1, 2))
	l := &List{count: count, pattern: make([]int64, patternLength)}
	for i := range l.pattern {
		l.span += Size * (1 + int64(rng.IntN(maxGap)))
		l.pattern[i] = l.span
		l.span += Size
	}
	return l
}

// Count returns the number of extents.
func (l *List) Count() int64 { return l.count }

// Offset returns where extent i begins, in bytes.
func (l *List) Offset(i int64) int64 {
	return i/patternLength*l.span + l.pattern[i%patternLength]
}

// Capacity returns the size of the volume, in bytes.
func (l *List) Capacity() int64 {
	return (l.end()/unit + 1) * unit
}

func (l *List) end() int64 {
	if l.count == 0 {
		return 0
	}
	return l.Offset(l.count-1) + Size
}

// From returns the index of the first extent that ends after offset; Count if none does.
func (l *List) From(offset int64) int64 {
	round := offset / l.span
	inRound := sort.Search(len(l.pattern), func(i int) bool { return l.pattern[i]+Size > offset%l.span })
	return min(round*patternLength+int64(inRound), l.count)
}

// Comparison compares what a reader got with the list, one extent after the other.
type Comparison struct {
	list *List
	// block is the size of the blocks that the reader rounds to, in bytes; 0 if it keeps extents.
	block int64
	next  int64
}

// Compare begins a comparison with a reader that rounds to blocks of that many bytes; 0: it does not round.
func (l *List) Compare(block int64) *Comparison { return &Comparison{list: l, block: block} }

// Add takes the reader's next extent, in bytes.
func (c *Comparison) Add(offset, length int64) error {
	if c.next >= c.list.count {
		return fmt.Errorf("WRONG LIST: %d+%d follows the last of %d extents", offset, length, c.list.count)
	}
	wantOffset, wantLength := c.list.Offset(c.next), int64(Size)
	c.next++
	if c.block > 0 {
		wantOffset, wantLength = wantOffset/c.block*c.block, c.block
		for c.next < c.list.count && c.list.Offset(c.next) < wantOffset+c.block {
			c.next++
		}
	}
	if offset != wantOffset || length != wantLength {
		return fmt.Errorf("WRONG LIST: %d+%d before extent %d, want %d+%d", offset, length, c.next, wantOffset, wantLength)
	}
	return nil
}

// Done says whether the reader got everything.
func (c *Comparison) Done() error {
	if c.next != c.list.count {
		return fmt.Errorf("WRONG LIST: it ends after %d of %d extents", c.next, c.list.count)
	}
	return nil
}
