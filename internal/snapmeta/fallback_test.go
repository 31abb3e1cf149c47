package snapmeta_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// TestEndsBeforeTheFallback has a driver that ends the delta as if it were empty, says then that it has none, and ends the allocated
// blocks once as if there were none: the empty answer about the delta says nothing about them.
func TestEndsBeforeTheFallback(t *testing.T) {
	end, refusal := fakes.Call{{Kind: fakes.EarlyEnd}}, fakes.Call{{Kind: fakes.Status, Code: codes.FailedPrecondition}}
	full := even(4 * mib)
	for name, c := range map[string]struct {
		script []fakes.Call
		calls  int
		want   []blocklist.Extent
	}{
		"one empty answer about each":     {[]fakes.Call{end, refusal, end, nil}, 5, truth(full)},
		"two about the allocated blocks":  {[]fakes.Call{end, refusal, end, end}, 4, nil},
		"no empty answer about the delta": {[]fakes.Call{refusal, end, end}, 3, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := fakes.Volume{Capacity: full.Capacity, Fixed: true, Allocated: full.Delta}
			server, cfg := service(t, fakes.Config{Volume: v, Script: c.script})
			cfg.Request.UseAllocated = true
			cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = time.Minute, time.Minute // a call more would take the next one's part of the script
			got, err := listed(t, cfg)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got)\n%.500s", err, diff)
			}
			if calls := server.Calls(); len(calls) != c.calls || calls[len(calls)-1].Delta {
				t.Errorf("%d calls, want %d, the last for the allocated blocks: %+v", len(calls), c.calls, calls)
			}
		})
	}
}
