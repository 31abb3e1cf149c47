package populate

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// TestForeignEOF: a failure that wraps io.EOF makes no list, nor the preview of one, whether the source passes it on as it is or
// it is a stream that had it from whoever knows the endpoint or the token.
func TestForeignEOF(t *testing.T) {
	foreign := fmt.Errorf("x: %w", io.EOF)
	sources := map[string]func() Source{
		"a source, at once": func() Source {
			return &source{err: outcome.Errorf(outcome.StreamFailed, "gave up: %w", foreign), info: testInfo(4096)}
		},
		"a source, in mid-list": func() Source {
			return &source{
				extents: []blocklist.Extent{{Offset: 0, Length: 512}}, batch: func() int { return 1 },
				err: outcome.Errorf(outcome.StreamFailed, "gave up: %w", foreign), info: testInfo(4096),
			}
		},
	}
	for _, callback := range []string{"endpoint", "token"} {
		for _, asked := range []int64{0, 1} {
			for _, streams := range []int{1, 4} {
				sources[fmt.Sprintf("%s, after %d calls, %d streams", callback, asked, streams)] = func() Source {
					return brokenStream(t, callback, asked, streams, foreign)
				}
			}
		}
	}
	for name, src := range sources {
		for _, merge := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, merged %t", name, merge), func(t *testing.T) {
				o := testOptions()
				o.MergeExtents, o.RestoreSizeBytes = merge, 1<<20
				out := newVolume(math.MaxInt)
				result, err := run(t.Context(), src(), out, o, slog.New(slog.DiscardHandler))
				if outcome.ReasonOf(err) != outcome.StreamFailed || result.Reason != outcome.StreamFailed || out.committed || !out.aborted {
					t.Errorf("populated: %s (%v), committed %t, want %s", result.Reason, err, out.committed, outcome.StreamFailed)
				}
				_, seen, err := Preview(t.Context(), src(), o)
				if err == nil {
					for _, failure := range seen {
						err = failure
					}
				}
				if outcome.ReasonOf(err) != outcome.StreamFailed {
					t.Errorf("previewed: %v, want %s", err, outcome.StreamFailed)
				}
			})
		}
	}
}

// brokenStream returns a stream whose callback fails with err after so many calls; the service cuts every call after one message.
func brokenStream(t *testing.T, callback string, asked int64, streams int, err error) Source {
	t.Helper()
	v := fakes.Volume{Namespace: "demo", Target: "snap-2", Base: "handle-1", Capacity: 64 << 20}
	for at := int64(0); at < v.Capacity; at += 64 << 10 {
		v.Delta = append(v.Delta, fakes.Extent{Offset: at, Size: 4096})
	}
	server, startErr := fakes.Start(fakes.Config{Volume: v, Token: "token", PerMessage: 64, Always: fakes.Call{{Kind: fakes.Status, Code: codes.Unavailable, After: 1}}})
	if startErr != nil {
		t.Fatal(startErr)
	}
	t.Cleanup(server.Stop)
	var calls atomic.Int64
	fails := func(name string) error {
		if name == callback && calls.Add(1) > asked {
			return err
		}
		return nil
	}
	s, newErr := snapmeta.New(snapmeta.Config{
		Request: snapmeta.Request{Namespace: v.Namespace, Target: v.Target, BaseHandle: v.Base},
		Endpoint: func() (snapmeta.Endpoint, error) {
			return snapmeta.Endpoint{Address: server.Address(), CA: server.CA()}, fails("endpoint")
		},
		Token:   func() (string, error) { return "token", fails("token") },
		Streams: streams,
		Timing:  snapmeta.Timing{MaxAttempts: 7, FirstBackoff: time.Millisecond, LongestBackoff: 2 * time.Millisecond},
	})
	if newErr != nil {
		t.Fatal(newErr)
	}
	t.Cleanup(s.Close)
	return s
}
