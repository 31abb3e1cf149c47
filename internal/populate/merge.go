package populate

import "github.com/cbt-populator/cbt-populator/api/blocklist"

// merger rounds extents outwards to a granularity and merges those that then touch or overlap, across the borders of
// batches. It keeps the last extent back until the next one shows that it is complete.
type merger struct {
	// granularity is a power of two, or 0 to merge only.
	granularity int64
	// capacity is where extents are clipped: the last granule of a volume may be cut short.
	capacity int64
	pending  blocklist.Extent
	out      []blocklist.Extent
}

// add takes extents, ascending, and returns those that are complete; the result is valid until the next call.
func (m *merger) add(extents []blocklist.Extent) []blocklist.Extent {
	out := m.out[:0]
	if m.pending.Length == 0 && len(extents) > 0 {
		start, end := m.round(extents[0])
		m.pending = blocklist.Extent{Offset: start, Length: end - start}
		extents = extents[1:]
	}
	if m.granularity == 0 && len(extents) > 0 && apart(m.pending.End(), extents) {
		last := len(extents) - 1
		out = append(append(out, m.pending), extents[:last]...)
		m.pending, m.out = extents[last], out
		return out
	}
	// The extent that grows is kept in registers: through memory each step would wait for the one before it.
	start, end := m.pending.Offset, m.pending.End()
	for _, e := range extents {
		nextStart, nextEnd := m.round(e)
		if nextStart <= end {
			end = max(end, nextEnd)
			continue
		}
		out = append(out, blocklist.Extent{Offset: start, Length: end - start})
		start, end = nextStart, nextEnd
	}
	m.pending = blocklist.Extent{Offset: start, Length: end - start}
	m.out = out
	return out
}

// apart reports whether no extent touches the one before it, the first one what ends at end: there is nothing to merge then,
// which is the usual case and takes a third of the time.
func apart(end int64, extents []blocklist.Extent) bool {
	for _, e := range extents {
		if e.Offset <= end {
			return false
		}
		end = e.Offset + e.Length
	}
	return true
}

// flush returns what is left.
func (m *merger) flush() []blocklist.Extent {
	m.out = m.out[:0]
	if m.pending.Length > 0 {
		m.out = append(m.out, m.pending)
		m.pending = blocklist.Extent{}
	}
	return m.out
}

// round returns the first and the last+1 byte of e, rounded outwards and clipped at the capacity.
func (m *merger) round(e blocklist.Extent) (start, end int64) {
	start, end = e.Offset, e.End()
	if m.granularity == 0 {
		return start, end
	}
	start &^= m.granularity - 1
	// end + granularity could overflow; the distance to the capacity cannot.
	if over := end & (m.granularity - 1); over != 0 {
		end += min(m.granularity-over, m.capacity-end)
	}
	return start, end
}
