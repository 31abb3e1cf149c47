package populate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/sink"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// The record of a device and the place of its list are agreed upon by two packages.
var _ = [1]struct{}{}[sink.DeviceHeaderBytes-blocklist.DeviceHeaderBytes]

// source delivers extents in batches, then err or io.EOF.
type source struct {
	extents []blocklist.Extent
	batch   func() int
	info    snapmeta.Info
	err     error
	reused  []blocklist.Extent
}

func (s *source) Next(context.Context) ([]blocklist.Extent, error) {
	if len(s.extents) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		return nil, io.EOF
	}
	// What an earlier call returned must not be used any more.
	clear(s.reused)
	n := min(len(s.extents), s.batch())
	s.reused = append(s.reused[:0], s.extents[:n]...)
	s.extents = s.extents[n:]
	return s.reused, nil
}

func (s *source) Info() snapmeta.Info { return s.info }
func (s *source) Resumes() int        { return 7 }

func (s *source) Capacity(context.Context) (int64, error) { return s.info.CapacityBytes, nil }

// volume is a sink with room for a number of bytes.
type volume struct {
	sink.Stream
	buf                bytes.Buffer
	room               int
	commitErr          error
	committed, aborted bool
}

func newVolume(room int) *volume {
	v := &volume{room: room}
	v.Stream = *sink.NewStream(&v.buf)
	return v
}

func (v *volume) Write(p []byte) (int, error) {
	if v.buf.Len()+len(p) > v.room {
		return 0, &sink.FullError{Path: "/target/list", NeededBytes: int64(v.buf.Len() + len(p)), Err: syscall.ENOSPC}
	}
	return v.Stream.Write(p)
}

func (v *volume) Commit(ctx context.Context, list sink.List) error {
	if v.commitErr != nil {
		return v.commitErr
	}
	err := v.Stream.Commit(ctx, list)
	v.committed = err == nil
	return err
}

func (v *volume) Abort() error {
	v.aborted = true
	return nil
}

func testOptions() *Options {
	return &Options{Namespace: "demo", Snapshot: "snap-2", BaseSnapshotHandle: "base", Format: blocklist.JSON, Output: "/target"}
}

func testInfo(capacity int64) snapmeta.Info {
	return snapmeta.Info{Mode: blocklist.Delta, BlockMetadataType: blocklist.VariableLength, CapacityBytes: capacity}
}

// randomExtents fills a volume of blocks units of 512 bytes.
func randomExtents(r *rand.Rand, blocks int64) []blocklist.Extent {
	var extents []blocklist.Extent
	for at := r.Int64N(9); at < blocks; at += r.Int64N(3) * r.Int64N(20) {
		n := min(1+r.Int64N(8), blocks-at)
		extents = append(extents, blocklist.Extent{Offset: at * 512, Length: n * 512})
		at += n
	}
	return extents
}

// TestMerge compares the merger with a map of every unit of the volume, for random extents, batches and granularities.
func TestMerge(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		blocks := 1 + r.Int64N(600)
		extents := randomExtents(r, blocks)
		granularity := []int64{0, 512, 1024, 8192, 1 << 20}[r.IntN(5)]
		m := &merger{granularity: granularity, capacity: blocks * 512}
		var got []blocklist.Extent
		for rest := extents; len(rest) > 0; {
			n := min(1+r.IntN(20), len(rest))
			got = append(got, m.add(rest[:n])...)
			rest = rest[n:]
		}
		got = append(got, m.flush()...)
		if diff := cmp.Diff(mapped(extents, blocks, max(granularity, 512)/512), got); diff != "" {
			t.Fatalf("granularity %d, %v: (-want +got)\n%s", granularity, extents, diff)
		}
	}
}

// mapped marks every granule that an extent touches and returns the runs.
func mapped(extents []blocklist.Extent, blocks, granule int64) []blocklist.Extent {
	marks := make([]bool, blocks)
	for _, e := range extents {
		for at := e.Offset / 512 / granule * granule; at < e.End()/512 || at%granule != 0; at++ {
			if at < blocks {
				marks[at] = true
			}
		}
	}
	var runs []blocklist.Extent
	for at, marked := range marks {
		switch {
		case !marked:
		case at > 0 && marks[at-1]:
			runs[len(runs)-1].Length += 512
		default:
			runs = append(runs, blocklist.Extent{Offset: int64(at) * 512, Length: 512})
		}
	}
	return runs
}

// TestMergeAtTheEnd rounds at the largest offsets there are.
func TestMergeAtTheEnd(t *testing.T) {
	m := &merger{granularity: 1 << 62, capacity: math.MaxInt64}
	m.add([]blocklist.Extent{{Offset: math.MaxInt64 - 1000, Length: 1}})
	want := []blocklist.Extent{{Offset: 1 << 62, Length: math.MaxInt64 - 1<<62}}
	if diff := cmp.Diff(want, m.flush()); diff != "" {
		t.Error(diff)
	}
}

// TestDeterminism: the same extents give the same bytes however they arrive.
func TestDeterminism(t *testing.T) {
	const seed = 12
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	extents := randomExtents(r, 1<<17)
	for _, format := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
		for _, granularity := range []int64{0, 4096} {
			var first []byte
			for range 5 {
				opts := testOptions()
				opts.Format, opts.GranularityBytes = format, granularity
				out := newVolume(math.MaxInt)
				src := &source{extents: extents, info: testInfo(1 << 26), batch: func() int { return 1 + r.IntN(5000) }}
				result, err := run(t.Context(), src, out, opts, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				if first == nil {
					first = slices.Clone(out.buf.Bytes())
				}
				if !bytes.Equal(first, out.buf.Bytes()) {
					t.Fatalf("%s, granularity %d: two lists differ", format, granularity)
				}
				header, trailer, err := blocklist.Verify(&out.buf)
				if err != nil {
					t.Fatal(err)
				}
				if trailer.EntryCount != result.EntryCount || trailer.ListBytes != result.NumBytesWritten || header.Merged != (granularity > 0) || result.Resumes != 7 {
					t.Errorf("result %+v, trailer %+v", result, trailer)
				}
			}
		}
	}
}

// TestFailures: each failure has its reason and its advice, and the sink is aborted, not committed.
func TestFailures(t *testing.T) {
	many := make([]blocklist.Extent, 100_000)
	for i := range many {
		many[i] = blocklist.Extent{Offset: int64(i) * 8192, Length: 4096}
	}
	capacity := int64(len(many)) * 8192
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		src  source
		out  *volume
		opts func(*Options)
		want outcome.Reason
		text []string
	}{
		{"too large", t.Context(), source{extents: many}, newVolume(math.MaxInt), func(o *Options) { o.MaxSizeBytes = 2_000_000 },
			outcome.ListTooLarge, []string{"exceeds the limit of 2000000 bytes", "about 4", "raise maxSizeInBytes"}},
		{"a little too large", t.Context(), source{extents: many[:1]}, newVolume(math.MaxInt), func(o *Options) { o.MaxSizeBytes = 100 },
			outcome.ListTooLarge, []string{"exceeds the limit of 100 bytes"}},
		{"full", t.Context(), source{extents: many}, newVolume(2_000_000), nil, outcome.VolumeFull, []string{"needs more than", "a claim of", "Mi would do"}},
		{"write error", t.Context(), source{extents: many}, &volume{Stream: *sink.NewStream(broken{}), room: math.MaxInt}, nil,
			outcome.OutputFailed, []string{"/target", "input/output error"}},
		{"commit error", t.Context(), source{}, &volume{Stream: *sink.NewStream(io.Discard), room: math.MaxInt, commitErr: syscall.EIO}, nil,
			outcome.OutputFailed, []string{"/target", "input/output error"}},
		{"source error", t.Context(), source{extents: many, err: outcome.Errorf(outcome.ProtocolViolation, "rule")}, newVolume(math.MaxInt), nil,
			outcome.ProtocolViolation, []string{"rule"}},
		{"cancelled", ended, source{}, newVolume(math.MaxInt), nil, outcome.Cancelled, []string{"stopped"}},
		{"wrong order", t.Context(), source{extents: []blocklist.Extent{many[1], many[0]}}, newVolume(math.MaxInt), nil, outcome.InternalError, []string{"encode the list"}},
		{"no capacity", t.Context(), source{info: snapmeta.Info{Mode: blocklist.Delta, BlockMetadataType: blocklist.UnknownLength}}, newVolume(math.MaxInt), nil,
			outcome.InvalidArguments, []string{"ask the driver's authors", "--restore-size-bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := testOptions()
			if c.opts != nil {
				c.opts(opts)
			}
			if c.src.info.Mode == "" {
				c.src.info = testInfo(capacity)
			}
			c.src.batch = func() int { return 1000 }
			result, err := run(c.ctx, &c.src, c.out, opts, slog.New(slog.DiscardHandler))
			var known *outcome.Error
			if !errors.As(err, &known) || known.Reason != c.want || result.Reason != c.want {
				t.Fatalf("the error is %v, the result %+v, want %s", err, result, c.want)
			}
			for _, text := range c.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not contain %q", err, text)
				}
			}
			c.out.wantNothing(t, opts.MaxSizeBytes)
		})
	}
}

// wantNothing checks that the sink was told to forget the list, of which no more than limit was written.
func (v *volume) wantNothing(t *testing.T, limit int64) {
	t.Helper()
	if v.committed || !v.aborted {
		t.Errorf("committed %t, aborted %t", v.committed, v.aborted)
	}
	if limit > 0 && int64(v.buf.Len()) > limit {
		t.Errorf("%d bytes were written", v.buf.Len())
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, syscall.EIO }

// TestSizeBound is exact: a list of that very size passes.
func TestSizeBound(t *testing.T) {
	size := 0
	for _, limit := range []func() int{func() int { return 0 }, func() int { return size }, func() int { return size - 1 }} {
		opts := testOptions()
		opts.MaxSizeBytes = int64(limit())
		out := newVolume(math.MaxInt)
		src := &source{extents: []blocklist.Extent{{Offset: 0, Length: 512}}, info: testInfo(1 << 20), batch: func() int { return 1 }}
		_, err := run(t.Context(), src, out, opts, slog.New(slog.DiscardHandler))
		switch {
		case size == 0:
			size = out.buf.Len()
		case opts.MaxSizeBytes == int64(size) && err != nil:
			t.Errorf("limit %d for %d bytes: %v", opts.MaxSizeBytes, size, err)
		case opts.MaxSizeBytes < int64(size) && outcome.ReasonOf(err) != outcome.ListTooLarge:
			t.Errorf("limit %d for %d bytes: %v", opts.MaxSizeBytes, size, err)
		}
	}
}
