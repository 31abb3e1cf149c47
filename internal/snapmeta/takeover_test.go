package snapmeta_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// lopsided returns a volume that two messages of 64 extents cover for the most part, and many the rest: the second one reaches past
// where a second stream begins, which then has all the others.
func lopsided() fakes.Volume {
	v := fakes.Volume{Capacity: 128 * mib, Fixed: true}
	for at := int64(0); at < v.Capacity; {
		v.Delta = append(v.Delta, fakes.Extent{Offset: at, Size: 4 << 10})
		switch n := len(v.Delta); {
		case n <= 64:
			at += mib / 2
		case n <= 128:
			at += mib
		default:
			at += 16 << 10
		}
	}
	return v
}

// TestOutageAfterASeam has a service that is away when the list has come to a stream that read ahead: what that one has not found
// the patience for, the list has, as with one stream and for no more attempts.
func TestOutageAfterASeam(t *testing.T) {
	v := lopsided()
	for name, c := range map[string]struct {
		code              codes.Code
		refused, attempts int
		want              outcome.Reason
		atOnce, wantTried int
	}{
		// Up to four streams give up after five attempts each. The rest meets the one that the list waits for.
		"it ends in time":               {codes.Unavailable, 25, 30, "", 0, 0},
		"it ends in time, one at once":  {codes.Unavailable, 25, 60, "", 1, 0},
		"it does not end":               {codes.Unavailable, 1000, 9, outcome.StreamFailed, 0, 9},
		"few attempts":                  {codes.Unavailable, 1000, 3, outcome.StreamFailed, 0, 3},
		"the token is refused for good": {codes.Unauthenticated, 1000, 30, outcome.Unauthenticated, 0, 5},
		"what cannot pass":              {codes.PermissionDenied, 1000, 30, outcome.PermissionDenied, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refusal := fakes.Call{{Kind: fakes.Status, Code: c.code}}
			broken := fakes.Call{{Kind: fakes.Status, Code: c.code, After: 2}}
			script := append([]fakes.Call{nil, broken}, slices.Repeat([]fakes.Call{refusal}, c.refused)...)
			server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 64, Script: script, AtOnce: c.atOnce})
			cfg.Streams, cfg.Timing.MaxAttempts = 2, c.attempts
			cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = 10*time.Second, 10*time.Second
			got, err := listed(t, cfg)
			if reason := outcome.ReasonOf(err); c.want != "" && reason != c.want || c.want == "" && err != nil {
				t.Fatalf("%s: %v\ncalls %+v", reason, err, server.Calls())
			}
			if diff := cmp.Diff(truth(v), got); c.want == "" && diff != "" {
				t.Errorf("WRONG LIST\n%s", diff)
			}
			if tried := failures(server, got); c.wantTried > 0 && tried != c.wantTried {
				t.Errorf("%d attempts, want %d: %+v", tried, c.wantTried, server.Calls())
			}
		})
	}
}

// failures returns how often a list was asked for that ends with got: by the call that broke there, and by those that began there.
func failures(server *fakes.Server, got []blocklist.Extent) int {
	n := 1
	for _, c := range server.Calls() {
		if len(got) > 0 && c.StartingOffset == got[len(got)-1].End() {
			n++
		}
	}
	return n
}
