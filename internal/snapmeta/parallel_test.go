package snapmeta_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/pprof"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
	"github.com/cbt-populator/cbt-populator/test/fakes"
	"github.com/cbt-populator/cbt-populator/test/size"
)

var (
	parallelSeed = flag.Uint64("parallel-seed", 20260802, "seed of the random volumes of TestParallel")
	parallelRuns = flag.Int("parallel-runs", 0, "number of random volumes of TestParallel; 0: 400, or 150 with -short")
)

const mib = 1 << 20

// service starts a server and returns the configuration of a stream from it, with short waits.
func service(t *testing.T, cfg fakes.Config) (*fakes.Server, snapmeta.Config) {
	t.Helper()
	cfg.Token = "token-of-the-test"
	cfg.Volume.Namespace, cfg.Volume.Target, cfg.Volume.Base = "demo", "snap-2", "handle-1"
	server, err := fakes.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return server, snapmeta.Config{
		Request: snapmeta.Request{Namespace: "demo", Target: "snap-2", BaseHandle: "handle-1"},
		Endpoint: func() (snapmeta.Endpoint, error) {
			return snapmeta.Endpoint{Address: server.Address(), CA: server.CA()}, nil
		},
		Token: func() (string, error) { return cfg.Token, nil },
		Timing: snapmeta.Timing{
			FirstBackoff: time.Millisecond, LongestBackoff: 4 * time.Millisecond, ProbeAfter: 100 * time.Millisecond,
			ProbeTimeout: time.Second, StallTimeout: 200 * time.Millisecond, EndGrace: 100 * time.Millisecond, MaxAttempts: 30,
		},
	}
}

// listed reads a stream to its end.
func listed(t *testing.T, cfg snapmeta.Config) ([]blocklist.Extent, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := snapmeta.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all []blocklist.Extent
	for {
		extents, err := s.Next(ctx)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, extents...)
	}
}

// truth returns what a volume's list is.
func truth(v fakes.Volume) []blocklist.Extent {
	var all []blocklist.Extent
	for _, e := range v.Delta {
		all = append(all, blocklist.Extent{Offset: e.Offset, Length: e.Size})
	}
	return all
}

// merged joins extents that touch; it returns nil if they are not in order.
func merged(extents []blocklist.Extent) []blocklist.Extent {
	var all []blocklist.Extent
	for _, e := range extents {
		n := len(all)
		switch {
		case n > 0 && e.Offset < all[n-1].End():
			return nil
		case n > 0 && e.Offset == all[n-1].End():
			all[n-1].Length += e.Length
		default:
			all = append(all, e)
		}
	}
	return all
}

// randomVolume has up to 3,000 extents on up to some hundred MiB: runs and gaps of all sizes, some longer than a unit,
// some across many boundaries, some that begin or end on one.
func randomVolume(r *rand.Rand) fakes.Volume {
	v := fakes.Volume{Fixed: r.IntN(2) == 0}
	block := int64(512) << r.IntN(9)
	if r.IntN(10) == 0 {
		block = int64(1+r.IntN(5000)) * 512
	}
	end := int64(0)
	if r.IntN(4) == 0 {
		// A grid that does not begin at 0.
		end = int64(r.IntN(int(block)))
	}
	for range r.IntN(3000) {
		e := fakes.Extent{Offset: end, Size: block}
		switch n := r.IntN(100); {
		case n < 30:
			e.Offset += int64(r.IntN(64)) * block
		case n < 31:
			e.Offset += int64(r.IntN(16)) * mib / block * block
		case n < 33 && !v.Fixed:
			e.Offset = (e.Offset + mib - 1) / mib * mib
		}
		if !v.Fixed {
			switch n := r.IntN(100); {
			case n < 60:
				e.Size = int64(1+r.IntN(256)) * 512
			case n < 62:
				e.Size = int64(1+r.IntN(8*mib)) + 4*mib
			case n < 64:
				e.Size = mib - e.Offset%mib
			}
		}
		end = e.Offset + e.Size
		v.Delta = append(v.Delta, e)
	}
	v.Capacity = end
	if len(v.Delta) == 0 || r.IntN(2) == 0 {
		v.Capacity += int64(1+r.IntN(32)) * mib
	}
	return v
}

func randomStyle(r *rand.Rand) fakes.Style {
	s := fakes.Style{Tail: r.IntN(2) == 0, Inclusive: r.IntN(4) == 0, Skips: r.IntN(10) == 0, Regrids: r.IntN(10) == 0}
	if r.IntN(4) == 0 {
		s.SplitBytes = int64(1+r.IntN(2*mib/512)) * 512
	}
	return s
}

// randomCall has faults that can all be healed.
func randomCall(r *rand.Rand) fakes.Call {
	var call fakes.Call
	for range r.IntN(3) {
		f := fakes.Fault{After: r.IntN(8)}
		switch n := r.IntN(20); {
		case n < 5:
			f.Kind = fakes.Cut
		case n < 8:
			f.Kind = fakes.Reset
		case n < 12:
			f.Kind, f.After = fakes.EarlyEnd, 1+f.After
		case n < 13:
			f.Kind = fakes.Hang
		case n < 15:
			f.Kind = fakes.Empty
		case n < 17:
			f.Kind, f.After = fakes.BeginsEarlier, 0
		default:
			f.Kind, f.Code = fakes.Status, []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.Unauthenticated}[r.IntN(5)]
		}
		call = append(call, f)
	}
	return call
}

// TestParallel reads random volumes from services of all styles with random faults, by several streams: the list has to be
// that of the volume, extent by extent, or where extents are cut differently from different offsets, byte by byte.
func TestParallel(t *testing.T) {
	runs := size.Or(*parallelRuns, 400, 150)
	t.Logf("-parallel-seed=%d -parallel-runs=%d", *parallelSeed, runs)
	for i := range runs {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(*parallelSeed, uint64(i)))
			cfg := fakes.Config{Volume: randomVolume(r), Style: randomStyle(r), PerMessage: 1 + r.IntN(200), EmptyMessage: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				for range r.IntN(12) {
					cfg.Script = append(cfg.Script, randomCall(r))
				}
			}
			if len(cfg.Script) > 0 && cfg.Style.SplitBytes > 0 {
				// Who resumes in the middle of an extent, with one stream too, cannot know that its rest is left out.
				cfg.Style.Skips = false
			}
			server, stream := service(t, cfg)
			stream.Streams = 1 + r.IntN(6)
			got, err := listed(t, stream)
			describe := fmt.Sprintf("%d streams, fixed %t, %+v, script %v\ncalls %+v", stream.Streams, cfg.Volume.Fixed, cfg.Style, cfg.Script, server.Calls())
			if err != nil {
				t.Fatalf("%v\n%s", err, describe)
			}
			want := truth(cfg.Volume)
			beganEarlier := slices.Contains(server.Struck(), fakes.BeginsEarlier)
			if cfg.Style.SplitBytes > 0 && !cfg.Volume.Fixed || beganEarlier {
				got, want = merged(got), merged(want)
			}
			if !slices.Equal(want, got) {
				t.Fatalf("WRONG LIST\n%s\n%s", describe, cmp.Diff(want, got))
			}
		})
	}
}

// even returns a volume with an extent of 4 KiB every 16 KiB.
func even(capacity int64) fakes.Volume {
	v := fakes.Volume{Capacity: capacity, Fixed: true}
	for at := int64(0); at < capacity; at += 16 << 10 {
		v.Delta = append(v.Delta, fakes.Extent{Offset: at, Size: 4 << 10})
	}
	return v
}

// beginsPast reports whether a call of server started at offset or later.
func beginsPast(server *fakes.Server, offset int64) bool {
	return slices.ContainsFunc(server.Calls(), func(c fakes.Received) bool { return c.StartingOffset >= offset })
}

// TestReadsAhead shows that several streams do read.
func TestReadsAhead(t *testing.T) {
	for _, streams := range []int{1, 2, 4} {
		v := even(256 * mib)
		server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 64})
		cfg.Streams = streams
		cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = time.Minute, time.Minute // nothing is silent here, but a busy machine
		got, err := listed(t, cfg)
		if want := truth(v); err != nil || !slices.Equal(want, got) {
			t.Fatalf("%v\n%s", err, cmp.Diff(want, got))
		}
		starts := map[int64]bool{}
		for _, c := range server.Calls() {
			if c.StartingOffset < v.Capacity-16<<10 {
				starts[c.StartingOffset] = true
			}
		}
		if len(starts) < streams || streams == 1 && len(starts) > 1 {
			t.Errorf("%d streams: calls start at %v", streams, starts)
		}
	}
}

// TestQuickList shows that a list that is read in time is read by one stream.
func TestQuickList(t *testing.T) {
	v := even(64 * mib)
	server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 64})
	cfg.Streams, cfg.StreamsAfter = 4, time.Hour
	cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = time.Minute, time.Minute
	got, err := listed(t, cfg)
	if diff := cmp.Diff(truth(v), got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	if n := len(server.Calls()); n != 2 {
		t.Errorf("%d calls, want the list in one and the drain", n)
	}
}

// TestFalseEnd has a service that says, twice and more, that the list ends where it does not. One stream cannot know. But
// if another has listed what follows, then the list must not end there.
func TestFalseEnd(t *testing.T) {
	for name, c := range map[string]struct {
		calls int
		want  outcome.Reason
	}{"for good": {1 << 30, outcome.ProtocolViolation}, "for a while": {5, ""}} {
		t.Run(name, func(t *testing.T) {
			v := even(64 * mib)
			style := fakes.Style{Deaf: fakes.Extent{Offset: 9 * mib, Size: 4 * mib}, DeafCalls: c.calls}
			server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 64, Style: style})
			cfg.Streams = 4
			cfg.Timing.StallTimeout = 10 * time.Second // a busy machine is silent at times, and the last attempt gives the reason
			got, err := listed(t, cfg)
			if !beginsPast(server, 13*mib) {
				t.Fatalf("no call started past the hole: %+v", server.Calls())
			}
			if reason := outcome.ReasonOf(err); c.want != "" && reason != c.want || c.want == "" && err != nil {
				t.Errorf("%s: %v", reason, err)
			}
			if diff := cmp.Diff(truth(v), got); c.want == "" && diff != "" {
				t.Errorf("WRONG LIST\n%s", diff)
			}
		})
	}
}

// dense returns a volume all of whose blocks of 4 KiB are listed.
func dense(capacity int64) fakes.Volume {
	v := fakes.Volume{Capacity: capacity, Fixed: true}
	for at := int64(0); at < capacity; at += 4 << 10 {
		v.Delta = append(v.Delta, fakes.Extent{Offset: at, Size: 4 << 10})
	}
	return v
}

// TestMessageEndsOnABoundary has messages that end where further streams begin, and a service that answers those wrongly: the list of the
// stream before has to be compared with theirs all the same.
func TestMessageEndsOnABoundary(t *testing.T) {
	v := dense(64 * mib)
	for name, style := range map[string]fakes.Style{
		"later calls are empty":            {Deaf: fakes.Extent{Offset: 1, Size: 1 << 62}, DeafCalls: 1 << 30, DeafStarts: true},
		"later calls lack their beginning": {Exclusive: true},
	} {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, empty messages %t", name, empty), func(t *testing.T) {
				server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 256, Style: style, EmptyMessage: empty})
				cfg.Streams = 4
				// A busy machine must not cost the first stream its call: continued by another one, it is answered wrongly as well.
				cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = time.Minute, time.Minute
				got, err := listed(t, cfg)
				if diff := cmp.Diff(truth(v), got); err != nil || diff != "" {
					t.Errorf("WRONG LIST: %d of %d extents (%v)\ncalls %+v", len(got), len(v.Delta), err, server.Calls())
				}
				if !slices.ContainsFunc(server.Calls(), func(c fakes.Received) bool {
					return c.StartingOffset > 0 && c.StartingOffset < v.Capacity && c.StartingOffset%mib == 0
				}) {
					t.Errorf("no stream began on a boundary: %+v", server.Calls())
				}
			})
		}
	}
}

// TestOneStreamIsLeft has a service that serves one call at a time: the list comes from that, whatever is said to the others.
func TestOneStreamIsLeft(t *testing.T) {
	// It reaches the capacity, so that no further call asks for its end, which might be refused as well.
	v := dense(64 * mib)
	for _, code := range []codes.Code{
		codes.ResourceExhausted, codes.FailedPrecondition, codes.InvalidArgument, codes.Unimplemented, codes.NotFound, codes.PermissionDenied,
	} {
		t.Run(code.String(), func(t *testing.T) {
			server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 64, AtOnce: 1, AtOnceCode: code})
			cfg.Streams = 4
			// A busy machine must not cost the first stream its call: its continuation might be refused.
			cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = time.Minute, time.Minute
			got, err := listed(t, cfg)
			if diff := cmp.Diff(truth(v), got); err != nil || diff != "" {
				t.Fatalf("%v\n%s", err, diff)
			}
			if calls := server.Calls(); len(calls) < 2 {
				t.Errorf("no second stream was tried: %+v", calls)
			}
		})
	}
}

// TestNothingIsLeft ends streams in all ways and at all places, and looks for what still runs.
func TestNothingIsLeft(t *testing.T) {
	v := even(64 * mib)
	for name, call := range map[string]fakes.Call{
		"end":       nil,
		"refusal":   {{Kind: fakes.Status, Code: codes.PermissionDenied, After: 9}},
		"violation": {{Kind: fakes.ZeroSize, After: 9}},
		"hang":      {{Kind: fakes.Hang, After: 9}},
	} {
		for batches := range 40 {
			server, cfg := service(t, fakes.Config{Volume: v, PerMessage: 64, Always: call})
			cfg.Streams = 4
			cfg.Timing.StallTimeout, cfg.Timing.ProbeAfter = time.Minute, time.Minute
			ctx, cancel := context.WithCancel(t.Context())
			s, err := snapmeta.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if name == "hang" {
				go cancelWhenAllHang(ctx, cancel, server, cfg.Streams)
			}
			for range batches {
				if _, err = s.Next(ctx); err != nil {
					break
				}
			}
			if batches%2 == 0 {
				cancel()
			}
			s.Close()
			cancel()
			if _, again := s.Next(t.Context()); again == nil {
				t.Errorf("%s, %d batches: a closed stream goes on", name, batches)
			}
			// A goroutine that has said that it is done may take a moment to go.
			for end := time.Now().Add(10 * time.Second); running(t) != ""; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("%s, %d batches: still runs after Close:\n%s", name, batches, running(t))
				}
			}
		}
	}
}

// cancelWhenAllHang cancels a stream that waits in vain.
func cancelWhenAllHang(ctx context.Context, cancel func(), server *fakes.Server, streams int) {
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for len(server.Struck()) < streams {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// running returns the stacks of the goroutines that read.
func running(t *testing.T) string {
	t.Helper()
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil {
		t.Fatal(err)
	}
	for _, stack := range bytes.Split(all.Bytes(), []byte("\n\n")) {
		if bytes.Contains(stack, []byte("snapmeta.(*pool).produce")) || bytes.Contains(stack, []byte("snapmeta.(*call).watch")) {
			return string(stack)
		}
	}
	return ""
}
