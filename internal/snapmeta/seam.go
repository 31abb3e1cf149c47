package snapmeta

import (
	"fmt"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// maxSeamRuns bounds what is remembered of the extents past a unit's end, so that a message of any size does not pin its
// memory.
const maxSeamRuns = 4096

// seam joins the list of one unit to that of the next. Two calls answered for the bytes between where the next unit
// begins and where the last message of the unit before it ends; both answers must cover the same bytes of it, however they
// cut them into extents. The list takes the first answer there, and continues with the second one as it would continue
// with the answer to a resumed call: what lies before end is dropped, and an extent across it is cut.
type seam struct {
	kind api.BlockMetadataType
	// start is where the next unit begins, and end where the last extent ends that the unit before it listed.
	start, end int64
	// runStart is where the run of adjacent extents begins that covers the byte before start; start if none does.
	runStart int64
	// runs are what the first answer covers from start on and the second one has not confirmed yet, ascending, not
	// adjacent; they reach up to known.
	runs  []blocklist.Extent
	known int64
	// at is how far the second answer was compared.
	at int64
}

// contradictionError says that two calls gave different answers about the same bytes.
type contradictionError struct {
	from, offset int64
	what         string
}

func (e *contradictionError) Error() string {
	return fmt.Sprintf("asked from offset %d, the service does not list what it lists when asked from before: %s at offset %d", e.from, e.what, e.offset)
}

// newSeam returns the seam at start. extents are of the message that passed it, the first that ends beyond start; runStart and
// end are the checker's from before it.
func newSeam(kind api.BlockMetadataType, start, runStart, end int64, extents []blocklist.Extent) *seam {
	s := &seam{kind: kind, start: start, runStart: start, at: start}
	if end == start {
		s.runStart = runStart
	}
	for _, e := range extents {
		if e.Offset != end {
			runStart = e.Offset
		}
		end = e.End()
		if runStart < start && end >= start {
			s.runStart = runStart
		}
		if end > start && len(s.runs) <= maxSeamRuns {
			s.remember(max(e.Offset, start), end)
		}
	}
	s.end, s.known = end, max(start, end)
	if len(s.runs) > maxSeamRuns {
		s.runs = s.runs[:maxSeamRuns]
		s.known = s.runs[maxSeamRuns-1].End()
	}
	return s
}

func (s *seam) remember(start, end int64) {
	if n := len(s.runs); n > 0 && s.runs[n-1].End() == start {
		s.runs[n-1].Length += end - start
		return
	}
	s.runs = append(s.runs, blocklist.Extent{Offset: start, Length: end - start})
}

// join takes extents of the next unit and returns those that continue the list, a part of extents that is adjusted in
// place. Once there are any, both answers agree.
func (s *seam) join(extents []blocklist.Extent) ([]blocklist.Extent, error) {
	for i, e := range extents {
		if e.Offset < s.start && e.Offset < s.runStart {
			return nil, s.contradiction(e.Offset, "an extent begins in bytes that were left out before")
		}
		if err := s.compare(e); err != nil {
			return nil, err
		}
		if e.End() <= s.end {
			continue
		}
		if e.Offset < s.end && s.kind == api.BlockMetadataType_FIXED_LENGTH {
			return nil, s.contradiction(e.Offset, "a block is off the grid of those before it")
		}
		if err := s.confirm(s.known); err != nil {
			return nil, err
		}
		if e.Offset < s.end {
			extents[i] = blocklist.Extent{Offset: s.end, Length: e.End() - s.end}
		}
		return extents[i:], nil
	}
	return nil, nil
}

// compare checks the part of e that both calls answered for.
func (s *seam) compare(e blocklist.Extent) error {
	start, end := max(e.Offset, s.at), min(e.End(), s.known)
	if start >= end {
		return nil
	}
	if err := s.confirm(start); err != nil {
		return err
	}
	for start < end {
		if len(s.runs) == 0 || start < s.runs[0].Offset {
			return s.contradiction(start, "an extent that was left out before")
		}
		n := min(end, s.runs[0].End())
		s.runs[0] = blocklist.Extent{Offset: n, Length: s.runs[0].End() - n}
		if s.runs[0].Length == 0 {
			s.runs = s.runs[1:]
		}
		start = n
	}
	s.at = end
	return nil
}

// confirm says that the second answer covers nothing more before offset.
func (s *seam) confirm(offset int64) error {
	if len(s.runs) > 0 && s.runs[0].Offset < offset {
		return s.contradiction(s.runs[0].Offset, "an extent is missing")
	}
	s.at = max(s.at, offset)
	return nil
}

func (s *seam) contradiction(offset int64, what string) error {
	return &contradictionError{from: s.start, offset: offset, what: what}
}
