package snapmeta

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// seamCases have a boundary at 100, the last message of the unit before it, and what the next unit lists.
var seamCases = []struct {
	name string
	kind api.BlockMetadataType
	// run and end are the checker's from before the message.
	run, end int64
	message  []blocklist.Extent
	next     [][]blocklist.Extent
	want     []blocklist.Extent
	// text is part of the contradiction.
	text string
}{
	{"nothing in common", fixed, 80, 90, list(90, 10), [][]blocklist.Extent{list(120, 10)}, list(120, 10), ""},
	{"at the boundary", fixed, 80, 90, list(90, 10), [][]blocklist.Extent{list(100, 10, 120, 10)}, list(100, 10, 120, 10), ""},
	{"whole across it", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(90, 30, 130, 5)}, list(130, 5), ""},
	{"tail across it", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(100, 20, 130, 5)}, list(130, 5), ""},
	{"tail in pieces", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(100, 5, 105, 1), list(106, 14), list(130, 5)}, list(130, 5), ""},
	{"longer than before", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(90, 40)}, list(120, 10), ""},
	{"joined to the run before", variable, 50, 90, list(90, 30), [][]blocklist.Extent{list(60, 70)}, list(120, 10), ""},
	{"joined to a run of the message", variable, 0, 10, list(60, 30, 90, 10), [][]blocklist.Extent{list(60, 70)}, list(100, 30), ""},
	{"further extents of the message", fixed, 0, 0, list(90, 10, 100, 10, 120, 10), [][]blocklist.Extent{list(100, 10), list(120, 10, 140, 10)}, list(140, 10), ""},

	{"the rest is missing", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(130, 5)}, nil, "missing at offset 100"},
	{"a part of it is missing", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(100, 10, 112, 30)}, nil, "missing at offset 110"},
	{"an extent is missing", fixed, 0, 0, list(90, 10, 100, 10, 120, 10), [][]blocklist.Extent{list(120, 10)}, nil, "missing at offset 100"},
	{"the last is missing", fixed, 0, 0, list(90, 10, 100, 10, 120, 10), [][]blocklist.Extent{list(100, 10, 140, 10)}, nil, "missing at offset 120"},
	{"one too many", fixed, 0, 0, list(90, 10, 120, 10), [][]blocklist.Extent{list(100, 10)}, nil, "left out before at offset 100"},
	{"longer in between", variable, 0, 0, list(90, 15, 120, 10), [][]blocklist.Extent{list(90, 20)}, nil, "left out before at offset 105"},
	{"reaches back", variable, 0, 0, list(90, 30), [][]blocklist.Extent{list(80, 40)}, nil, "begins in bytes that were left out"},
	{"reaches back to nothing", variable, 0, 20, list(120, 10), [][]blocklist.Extent{list(99, 31)}, nil, "begins in bytes that were left out"},
	{"off the grid", fixed, 80, 90, list(90, 10, 104, 10), [][]blocklist.Extent{list(104, 10), list(110, 10)}, nil, "off the grid"},
}

func TestSeam(t *testing.T) {
	for _, c := range seamCases {
		t.Run(c.name, func(t *testing.T) {
			s := newSeam(c.kind, 100, c.run, c.end, c.message)
			var got []blocklist.Extent
			var err error
			for _, extents := range c.next {
				if got, err = s.join(extents); err != nil || len(got) > 0 {
					break
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("%v, want %q", err, c.text)
			}
		})
	}
}

// TestSeamOfALargeMessage has more runs than are remembered: those are compared, and what lies behind them is taken from
// the first answer.
func TestSeamOfALargeMessage(t *testing.T) {
	var message []blocklist.Extent
	for i := range int64(maxSeamRuns + 10) {
		message = append(message, blocklist.Extent{Offset: 100 + 20*i, Length: 10})
	}
	end := message[len(message)-1].End()
	for name, c := range map[string]struct {
		without int
		ok      bool
	}{"all there": {-1, true}, "first missing": {0, false}, "last that is known missing": {maxSeamRuns - 1, false}, "later one missing": {maxSeamRuns, true}} {
		next := append([]blocklist.Extent(nil), message...)
		if c.without >= 0 {
			next = append(next[:c.without], next[c.without+1:]...)
		}
		next = append(next, blocklist.Extent{Offset: end + 10, Length: 10})
		s := newSeam(fixed, 100, 0, 0, message)
		if len(s.runs) > maxSeamRuns {
			t.Fatalf("%d runs", len(s.runs))
		}
		got, err := s.join(next)
		if (err == nil) != c.ok || c.ok && !cmp.Equal(got, list(end+10, 10)) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestMemoryIsBounded reads by four streams that may keep next to nothing: all but the first are held back nearly all the
// time, and still all come to their end, over connections of their own.
func TestMemoryIsBounded(t *testing.T) {
	const extents = 300_000
	server, err := fakes.StartPaced(extents, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	s, err := New(Config{
		Request:  Request{Namespace: "demo", Target: "snap-2", BaseHandle: "handle-1"},
		Endpoint: func() (Endpoint, error) { return Endpoint{Address: server.Address, CA: server.CA}, nil },
		Token:    func() (string, error) { return "token", nil },
		Streams:  4,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.pool.bytes = 2 * chunkBytes
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, most := int64(0), int64(0)
	for {
		batch, err := s.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			if e.Offset != n*fakes.PacedStride {
				t.Fatalf("extent %d at offset %d", n, e.Offset)
			}
			n++
		}
		s.pool.mu.Lock()
		most = max(most, s.pool.used)
		s.pool.mu.Unlock()
	}
	if n != extents {
		t.Errorf("%d extents, want %d", n, extents)
	}
	// Each unit may keep two chunks whatever there is, and one is being unpacked.
	if bound := int64(2+2*4*2+1) * chunkBytes; most == 0 || most > bound {
		t.Errorf("%d bytes in use, want at most %d", most, bound)
	}
}
