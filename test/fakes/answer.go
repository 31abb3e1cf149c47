package fakes

import (
	"slices"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
)

// Style is how a driver answers where the protocol leaves it a choice, or where drivers are known to err.
type Style struct {
	// Tail cuts the first extent of an answer off at the starting offset; else it is whole. VARIABLE_LENGTH only.
	Tail bool
	// Inclusive lists an extent that ends at the starting offset too, against the protocol.
	Inclusive bool
	// SplitBytes cuts extents that cross so many bytes from the starting offset, or a multiple, as a driver does that looks
	// at so much of the volume for each message; 0: never. VARIABLE_LENGTH only.
	SplitBytes int64
	// Skips leaves out an extent that begins before the starting offset, against the protocol.
	Skips bool
	// Regrids lets blocks begin at the starting offset instead of on the grid of 0, against the protocol. FIXED_LENGTH
	// only.
	Regrids bool
	// Deaf is a part of the volume of which DeafCalls calls see nothing, nor of what follows: a call that starts in it ends
	// at once, and one that starts before it ends there, as if complete. It strikes a call that reaches it.
	Deaf      Extent
	DeafCalls int
	// DeafStarts spares calls that start before Deaf.
	DeafStarts bool
	// Exclusive leaves out an extent that begins at the starting offset, unless that is 0, against the protocol.
	Exclusive bool
}

// messages cuts the extents from the starting offset into messages.
func (c *session) messages(v Volume) []reply {
	extents := v.Allocated
	if c.got.Delta {
		extents = v.Delta
	}
	from := c.got.StartingOffset
	if from > 0 && c.takes(IgnoreOffset, 0) {
		from = 0
	}
	blocks := c.server.deafen(c.cfg.Style.from(extents, from, v), from)
	if from > 0 && len(blocks) > 0 && !v.Fixed {
		c.beginEarlier(extents, blocks[0], from)
	}
	per := c.cfg.PerMessage
	if m := int(c.got.MaxResults); m > 0 {
		per = min(per, m)
	}
	var all []reply
	for part := range slices.Chunk(blocks, per) {
		all = append(all, reply{kind: v.kind(), capacity: v.Capacity, blocks: part})
	}
	if len(all) == 0 && c.cfg.EmptyMessage {
		all = append(all, v.blank())
	}
	return all
}

// endEarly returns errEarlyEnd after the fault's delay and message.
func (c *session) endEarly(f Fault) error {
	c.delay = f.Delay
	if err := c.wait(); err != nil {
		return err
	}
	if f.Flush {
		if err := c.send(c.cfg.Volume.blank()); err != nil {
			return err
		}
	}
	return errEarlyEnd
}

func (v Volume) kind() api.BlockMetadataType {
	if v.Fixed {
		return api.BlockMetadataType_FIXED_LENGTH
	}
	return api.BlockMetadataType_VARIABLE_LENGTH
}

// blank is a message without extents.
func (v Volume) blank() reply { return reply{kind: v.kind(), capacity: v.Capacity} }

// from returns what a driver of that style lists of extents when it is asked from an offset.
func (s Style) from(extents []Extent, from int64, v Volume) []*api.BlockMetadata {
	var blocks []*api.BlockMetadata
	for _, e := range extents {
		end := e.Offset + e.Size
		switch {
		case end < from, end == from && (from == 0 || !s.Inclusive), s.Skips && e.Offset < from && end > from,
			s.Exclusive && from > 0 && e.Offset == from:
			continue
		case e.Offset < from && end > from && s.Tail && !v.Fixed:
			e = Extent{Offset: from, Size: end - from}
		case s.Regrids && v.Fixed && from > 0:
			if over := (e.Offset - from) % e.Size; over > 0 {
				e.Offset += e.Size - over
			}
			if e.Offset+e.Size > v.Capacity {
				continue
			}
		}
		for cut := s.cut(e, from); cut > 0 && !v.Fixed; cut = s.cut(e, from) {
			blocks = append(blocks, &api.BlockMetadata{ByteOffset: e.Offset, SizeBytes: cut})
			e = Extent{Offset: e.Offset + cut, Size: e.Size - cut}
		}
		blocks = append(blocks, &api.BlockMetadata{ByteOffset: e.Offset, SizeBytes: e.Size})
	}
	return blocks
}

// deafen leaves out what a call from an offset does not see because of Style.Deaf.
func (s *Server) deafen(blocks []*api.BlockMetadata, from int64) []*api.BlockMetadata {
	s.mu.Lock()
	defer s.mu.Unlock()
	deaf := s.cfg.Style.Deaf
	if from >= deaf.Offset+deaf.Size || s.cfg.Style.DeafStarts && from < deaf.Offset {
		return blocks
	}
	for i, b := range blocks {
		if b.ByteOffset < deaf.Offset {
			continue
		}
		if s.deafCalls++; s.deafCalls <= s.cfg.Style.DeafCalls {
			return blocks[:i]
		}
		break
	}
	return blocks
}

// cut returns how much of e lies before the next place to cut; 0 if it lies there as a whole.
func (s Style) cut(e Extent, from int64) int64 {
	if s.SplitBytes == 0 || e.Offset < from {
		return 0
	}
	if left := s.SplitBytes - (e.Offset-from)%s.SplitBytes; left < e.Size {
		return left
	}
	return 0
}

// beginEarlier joins first to the extent before it if both touch at from, as a driver does that looks for runs from an
// earlier place than it was asked for.
func (c *session) beginEarlier(extents []Extent, first *api.BlockMetadata, from int64) {
	if first.ByteOffset != from || !c.takes(BeginsEarlier, 0) {
		return
	}
	for _, e := range extents {
		if e.Offset+e.Size == from {
			first.ByteOffset, first.SizeBytes = e.Offset, first.SizeBytes+e.Size
		}
	}
}
