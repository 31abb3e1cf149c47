package snapmeta

import (
	"fmt"
	"math"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// ViolationError says which promise of the protocol a stream broke, and where. Nothing that such a server sent can be
// trusted.
type ViolationError struct {
	// RPC counts the calls of this stream, from 1; Message counts the messages of that call, from 1.
	RPC, Message int
	// Offset is the byte offset of the extent at fault, or where the list had got to.
	Offset int64
	// Rule says what was promised and what came instead.
	Rule string
}

// Error implements error.
func (e *ViolationError) Error() string {
	return fmt.Sprintf("message %d of call %d, offset %d: %s", e.Message, e.RPC, e.Offset, e.Rule)
}

// changedError says that what a call tells of all of its messages is not what an earlier call told. No promise is broken (it is
// constant over one call only; drivers report the live volume's capacity, and may be replaced by a version with other blocks), but
// the list cannot be continued.
type changedError struct{ what string }

func changed(what string, before, now any) error {
	return &changedError{fmt.Sprintf("%s changed from %v to %v while its blocks were being listed", what, before, now)}
}

func (e *changedError) Error() string { return e.what }

// message is one message of a stream, free of the API's types.
type message struct {
	kind     api.BlockMetadataType
	capacity int64
	extents  []blocklist.Extent
}

// checker holds what a stream has promised so far, over all of its calls.
type checker struct {
	kind     api.BlockMetadataType
	capacity int64
	// blockSize is the size of the first FIXED_LENGTH extent, and phase how far it lies from a multiple of that.
	blockSize, phase int64
	// end is where the extent accepted last ends, and runStart where the run of adjacent extents that ends there
	// starts: all of [runStart, end) was accepted.
	runStart, end int64
	// rpc and messages count the calls, and the messages of the current one.
	rpc, messages int
	// first is set until the first extent of the current call.
	first bool
	// start is where the list begins, if not at 0, and fresh is set until its first extent.
	start int64
	fresh bool
}

func (c *checker) violation(offset int64, format string, args ...any) error {
	return &ViolationError{RPC: c.rpc, Message: c.messages, Offset: offset, Rule: fmt.Sprintf(format, args...)}
}

// beginCall says that a new call starts, at c.end.
func (c *checker) beginCall() {
	c.rpc++
	c.messages = 0
	c.first = true
}

// accept checks m and returns its extents, a part of m.extents that is adjusted in place: the first extent of a continued
// stream may have been accepted before, in whole or in part.
func (c *checker) accept(m message) ([]blocklist.Extent, error) {
	c.messages++
	if err := c.acceptInfo(m); err != nil {
		return nil, err
	}
	extents := m.extents
	if c.first && len(extents) > 0 {
		c.first = false
		if e := extents[0]; c.resized(e) {
			return nil, changed("the size of the volume's blocks", c.blockSize, e.Length)
		}
		var err error
		if extents, err = c.continued(extents); err != nil {
			return nil, err
		}
	}
	c.fresh = c.fresh && len(extents) == 0
	for i := c.acceptPlain(extents); i < len(extents); i += 1 + c.acceptPlain(extents[i+1:]) {
		extents[i] = c.clipped(extents[i])
		if err := c.acceptExtent(extents[i]); err != nil {
			return nil, err
		}
		c.advance(extents[i])
	}
	return extents, nil
}

// acceptPlain accepts the extents up to the first one that takes a closer look, and returns their number. It is written
// for speed: it decides for nearly all extents of nearly all lists.
func (c *checker) acceptPlain(extents []blocklist.Extent) int {
	end, runStart, capacity := c.end, c.runStart, c.capacity
	size, sized := c.blockSize, c.kind == api.BlockMetadataType_FIXED_LENGTH
	n := 0
	for _, e := range extents {
		if e.Length <= 0 || e.Offset < end || e.Offset > capacity-e.Length || sized && e.Length != size {
			break
		}
		if e.Offset != end {
			runStart = e.Offset
		}
		end = e.Offset + e.Length
		n++
	}
	c.end, c.runStart = end, runStart
	return n
}

// advance takes e as the last extent of the list so far.
func (c *checker) advance(e blocklist.Extent) {
	if e.Offset != c.end {
		c.runStart = e.Offset
	}
	c.end = e.End()
}

func (c *checker) acceptInfo(m message) error {
	if m.kind != api.BlockMetadataType_FIXED_LENGTH && m.kind != api.BlockMetadataType_VARIABLE_LENGTH {
		return c.violation(c.end, "the block metadata type is FIXED_LENGTH or VARIABLE_LENGTH, not %s", m.kind)
	}
	if m.capacity <= 0 {
		return c.violation(c.end, "the volume's capacity is positive, not %d", m.capacity)
	}
	if c.capacity == 0 {
		c.kind, c.capacity = m.kind, m.capacity
		return nil
	}
	if m.kind != c.kind {
		if c.messages == 1 {
			return changed("the volume's block metadata type", c.kind, m.kind)
		}
		return c.violation(c.end, "the block metadata type is constant, but changed from %s to %s", c.kind, m.kind)
	}
	if m.capacity != c.capacity {
		if c.messages == 1 {
			return changed("the volume's capacity in bytes", c.capacity, m.capacity)
		}
		return c.violation(c.end, "the volume's capacity is constant, but changed from %d to %d", c.capacity, m.capacity)
	}
	return nil
}

// continued treats the first extent of a call. It may start before the offset that was asked for, but ends after it; what
// was accepted before is cut off, so that nothing is listed twice and nothing is lost. The last piece of what was accepted,
// repeated by a server that reads the offset inclusively, is dropped. A FIXED_LENGTH extent that overlaps in part is not on
// the grid of those before it and cannot be cut to size; it falls to the check for overlaps. A list that begins at the
// offset keeps the extent whole.
func (c *checker) continued(extents []blocklist.Extent) ([]blocklist.Extent, error) {
	e := extents[0]
	if c.end == 0 || e.Offset < 0 || e.Length <= 0 || e.Offset > math.MaxInt64-e.Length || e.Offset >= c.end {
		return extents, nil
	}
	switch {
	case e.End() < c.end:
		return nil, c.violation(e.Offset, "the first extent of a call ends after the offset that was asked for, %d, not at %d", c.end, e.End())
	case c.fresh && e.End() > c.end:
		// What lies before start is the business of whoever lists that part of the volume.
		c.runStart, c.end = e.Offset, e.Offset
		return extents, nil
	case e.Offset < c.runStart && c.runStart > c.start:
		return nil, c.violation(e.Offset, "the first extent of a call, up to %d, covers bytes before %d that an earlier call had left out", e.End(), c.runStart)
	case e.End() == c.end:
		return extents[1:], nil
	case c.kind == api.BlockMetadataType_VARIABLE_LENGTH:
		extents[0] = blocklist.Extent{Offset: c.end, Length: e.End() - c.end}
	}
	return extents, nil
}

// clipped returns e without what lies past the capacity, if e is the last block of a FIXED_LENGTH volume whose capacity is no multiple
// of the block size: all of its blocks have one size, so the last one ends there.
func (c *checker) clipped(e blocklist.Extent) blocklist.Extent {
	size, phase := c.blockSize, c.phase
	if size == 0 {
		size, phase = e.Length, 0
	}
	if c.kind != api.BlockMetadataType_FIXED_LENGTH || size <= 0 || e.Length != size || e.Offset < 0 ||
		e.Offset >= c.capacity || e.Offset <= c.capacity-size || e.Offset%size != phase {
		return e
	}
	if c.blockSize == 0 {
		c.blockSize = size
	}
	return blocklist.Extent{Offset: e.Offset, Length: c.capacity - e.Offset}
}

// resized reports whether e is no block of a FIXED_LENGTH stream with the blocks of the extents before, nor the last one cut short.
func (c *checker) resized(e blocklist.Extent) bool {
	return c.kind == api.BlockMetadataType_FIXED_LENGTH && c.blockSize > 0 && e.Length > 0 && e.Length != c.blockSize &&
		(e.Length > c.blockSize || e.End() != c.capacity)
}

// acceptExtent checks e, the successor of what was accepted so far.
func (c *checker) acceptExtent(e blocklist.Extent) error {
	if err := e.Check(c.end, c.capacity); err != nil {
		return c.violation(e.Offset, "%v", err)
	}
	if c.kind != api.BlockMetadataType_FIXED_LENGTH || e.Length == c.blockSize {
		return nil
	}
	if c.blockSize == 0 {
		c.blockSize, c.phase = e.Length, e.Offset%e.Length
		return nil
	}
	// The last block of a volume whose capacity is no multiple of the block size may be shorter, because nothing lies past the
	// capacity.
	if !c.resized(e) {
		return nil
	}
	return c.violation(e.Offset, "extents of a FIXED_LENGTH stream have one size, but it changed from %d to %d", c.blockSize, e.Length)
}

// full reports whether the list has reached the volume's capacity, so that no extent can follow.
func (c *checker) full() bool { return c.capacity > 0 && c.end == c.capacity }
