package driver_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/driver"
)

func variable(c *driver.Config) { c.MetadataType = csi.BlockMetadataType_VARIABLE_LENGTH }

// The example of the upstream hostpath driver's guide, in both styles.
func TestGuide(t *testing.T) {
	for name, change := range map[string]func(*driver.Config){"fixed": nil, "variable": variable} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, change)
			v := h.create("guide", 10*mib, blockCap(), nil)
			r := newRand(t)
			device := v.publish()
			empty := v.snapshot("empty")
			writeBlocks(t, device, r, 1, 3, 5, 7, 9)
			one := v.snapshot("one")
			writeBlocks(t, device, r, 2, 4, 9)
			two := v.snapshot("two")
			for name, test := range map[string]struct {
				q    request
				want []int64
			}{
				"allocated 0":  {request{target: empty}, nil},
				"allocated 1":  {request{target: one}, []int64{1, 3, 5, 7, 9}},
				"allocated 2":  {request{target: two}, []int64{1, 2, 3, 4, 5, 7, 9}},
				"delta 1 2":    {request{base: one, target: two}, []int64{2, 4, 9}},
				"delta 0 2":    {request{base: empty, target: two}, []int64{1, 2, 3, 4, 5, 7, 9}},
				"delta 2 2":    {request{base: two, target: two}, nil},
				"from the end": {request{target: two, from: 10 * mib}, nil},
				"unaligned":    {request{target: two, from: 4*4096 + 1}, []int64{4, 5, 7, 9}},
			} {
				a := h.mustAsk(test.q)
				if got := a.blocks(); !slices.Equal(got, test.want) {
					t.Errorf("%s: blocks %v, want %v", name, got, test.want)
				}
				if a.capacity != 10*mib {
					t.Errorf("%s: capacity %d", name, a.capacity)
				}
			}
			if h.cfg.MetadataType == csi.BlockMetadataType_VARIABLE_LENGTH {
				want := []extent{{4096, 5 * 4096}, {7 * 4096, 4096}, {9 * 4096, 4096}}
				if got := h.mustAsk(request{target: two}).extents; !slices.Equal(got, want) {
					t.Errorf("runs %v, want %v", got, want)
				}
			}
		})
	}
}

// A stream continued at any extent's end, or started at any offset, is the rest of the whole stream.
func TestStartingOffset(t *testing.T) {
	for name, change := range map[string]func(*driver.Config){
		"fixed":    func(c *driver.Config) { c.MaxEntriesPerMessage = 7 },
		"variable": func(c *driver.Config) { variable(c); c.MaxEntriesPerMessage = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, change)
			r := newRand(t)
			v := h.create("v", 4*mib, blockCap(), nil)
			device := v.publish()
			randomRuns := func() (blocks []int64) {
				for range 12 {
					from := r.Int64N(1024)
					for b := from; b < min(1024, from+1+r.Int64N(20)); b++ {
						blocks = append(blocks, b)
					}
				}
				return append(blocks, 255, 256, 1023) // Across a chunk of the comparison, and the last block.
			}
			writeBlocks(t, device, r, randomRuns()...)
			one := v.snapshot("one")
			writeBlocks(t, device, r, randomRuns()...)
			two := v.snapshot("two")
			for _, base := range []string{"", one} {
				checkOffsets(t, h, r, request{base: base, target: two})
			}
		})
	}
}

func checkOffsets(t *testing.T, h *harness, r *rand.Rand, q request) {
	t.Helper()
	whole := h.mustAsk(q)
	if len(whole.extents) < 3 {
		t.Fatalf("too few extents to test with: %v", whole.extents)
	}
	for i, e := range whole.extents[1:] {
		previous := whole.extents[i]
		if h.cfg.MetadataType == csi.BlockMetadataType_VARIABLE_LENGTH && previous.offset+previous.length == e.offset {
			t.Errorf("%+v and %+v should be one run", previous, e)
		}
	}
	for i, e := range whole.extents {
		q.from, q.max = e.offset+e.length, int32(r.IntN(5))
		rest := h.mustAsk(q)
		if !slices.Equal(rest.extents, whole.extents[i+1:]) {
			t.Fatalf("continued at %d: %v, want %v", q.from, rest.extents, whole.extents[i+1:])
		}
	}
	for range 50 {
		q.from = r.Int64N(whole.capacity + 1)
		var want []int64
		for _, b := range whole.blocks() {
			if (b+1)*4096 > q.from {
				want = append(want, b)
			}
		}
		if got := h.mustAsk(q).blocks(); !slices.Equal(got, want) {
			t.Fatalf("from %d: blocks %v, want %v", q.from, got, want)
		}
	}
}

func TestMaxResults(t *testing.T) {
	h := newHarness(t, func(c *driver.Config) { c.MaxEntriesPerMessage = 4 })
	v := h.create("v", 1*mib, blockCap(), nil)
	writeBlocks(t, v.publish(), newRand(t), 0, 1, 2, 3, 4, 5, 6, 7, 8)
	s := v.snapshot("s")
	for asked, want := range map[int32][]int{0: {4, 4, 1}, 1: {1, 1, 1, 1, 1, 1, 1, 1, 1}, 3: {3, 3, 3}, 1000: {4, 4, 1}} {
		if got := h.mustAsk(request{target: s, max: asked}).perMessage; !slices.Equal(got, want) {
			t.Errorf("max results %d: messages of %v, want %v", asked, got, want)
		}
	}
	// An empty list still tells the capacity.
	if got := h.mustAsk(request{base: s, target: s}); !slices.Equal(got.perMessage, []int{0}) || got.capacity != mib {
		t.Errorf("empty delta: %+v", got)
	}
}

func TestMetadataRefusals(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", 1*mib, blockCap(), nil)
	other := h.create("other", 1*mib, blockCap(), nil)
	s, o := v.snapshot("s"), other.snapshot("o")
	for name, test := range map[string]struct {
		q    request
		want codes.Code
	}{
		"no snapshot":                {request{}, codes.InvalidArgument},
		"no target":                  {request{base: s}, codes.InvalidArgument},
		"unknown snapshot":           {request{target: "snap-unknown"}, codes.NotFound},
		"unknown base":               {request{base: "snap-unknown", target: s}, codes.NotFound},
		"unknown target":             {request{base: s, target: "snap-unknown"}, codes.NotFound},
		"a path for an ID":           {request{target: "../volumes/" + v.id}, codes.NotFound},
		"a volume for a snapshot":    {request{target: v.id}, codes.NotFound},
		"snapshots of two volumes":   {request{base: o, target: s}, codes.InvalidArgument},
		"negative offset":            {request{target: s, from: -1}, codes.OutOfRange},
		"offset past the end":        {request{target: s, from: mib + 1}, codes.OutOfRange},
		"offset past the end, delta": {request{base: s, target: s, from: mib + 1}, codes.OutOfRange},
		"negative max results":       {request{target: s, max: -1}, codes.InvalidArgument},
	} {
		if _, err := h.ask(test.q); status.Code(err) != test.want {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
	// GetMetadataDelta without a base; ask would ask for allocated blocks.
	stream, err := h.GetMetadataDelta(t.Context(), &csi.GetMetadataDeltaRequest{TargetSnapshotId: s})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("no base: %v", err)
	}
}

// A driver without changed block tracking still lists allocated blocks.
func TestNoDelta(t *testing.T) {
	h := newHarness(t, func(c *driver.Config) { c.NoDelta = true })
	v := h.create("v", 1*mib, blockCap(), nil)
	writeBlocks(t, v.publish(), newRand(t), 1, 2)
	s := v.snapshot("s")
	if got := h.mustAsk(request{target: s}).blocks(); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("allocated blocks %v", got)
	}
	recv, err := h.open(t.Context(), request{base: s, target: s})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := recv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("delta: got %v, want %s", err, codes.FailedPrecondition)
	}
}

// A stream that ends early must never look like one that is complete.
func TestCancelledStreamEndsWithAnError(t *testing.T) {
	h := newHarness(t, func(c *driver.Config) { c.MaxEntriesPerMessage = 1; c.StreamDelay = time.Hour })
	v := h.create("v", 1*mib, blockCap(), nil)
	writeBlocks(t, v.publish(), newRand(t), 1, 2, 3)
	s := v.snapshot("s")
	for name, test := range map[string]struct {
		timeout time.Duration
		cancel  bool
		want    codes.Code
	}{
		"cancelled": {time.Hour, true, codes.Canceled},
		"timed out": {20 * time.Millisecond, false, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
			defer cancel()
			recv, err := h.open(ctx, request{target: s})
			if test.cancel {
				cancel()
			}
			// The time may have passed before there was a stream.
			if err == nil {
				_, err = recv()
			}
			if status.Code(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	// A driver that stops in the middle: Serve cancels the stream after its grace period.
	recv, err := h.open(t.Context(), request{target: s})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := recv()
		ended <- err
	}()
	h.restart()
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("stream of a stopped driver ended with %v", err)
	}
}

// The list of a Filesystem volume is that of its image.
func TestFilesystemMetadata(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("fs", 10*mib, mountCap(), nil)
	dir := v.publish()
	before := v.snapshot("before")
	data := randomBytes(newRand(t), 64<<10)
	if err := os.WriteFile(filepath.Join(dir, "file"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	after := v.snapshot("after")
	a := h.mustAsk(request{base: before, target: after})
	if n := len(a.extents); n < 16 || n > 40 {
		t.Errorf("64 KiB written to a filesystem changed %d blocks: %v", n, a.blocks())
	}
	if a.capacity != 10*mib {
		t.Errorf("capacity %d", a.capacity)
	}
	checkPatch(t, h, before, after, a)
}

// checkPatch proves the list by what it is for: restored base plus the listed extents of the restored target is the
// target.
func checkPatch(t *testing.T, h *harness, base, target string, a answer) {
	t.Helper()
	read := func(id string) []byte {
		b, err := os.ReadFile(filepath.Join(h.cfg.StateDir, "snapshots", id, "image"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := read(target)
	got := make([]byte, len(want))
	if base != "" {
		copy(got, read(base))
	}
	for _, e := range a.extents {
		if slices.Equal(got[e.offset:e.offset+e.length], want[e.offset:e.offset+e.length]) {
			t.Errorf("extent %+v is listed and did not change", e)
		}
		copy(got[e.offset:], want[e.offset:e.offset+e.length])
	}
	if !slices.Equal(got, want) {
		t.Error("base and listed extents do not make the target")
	}
}

// Snapshots of different sizes: the list covers the whole target.
func TestResizedBetweenSnapshots(t *testing.T) {
	h := newHarness(t, nil)
	r := newRand(t)
	v := h.create("v", 1*mib, blockCap(), nil)
	device := v.publish()
	writeBlocks(t, device, r, 1, 255)
	small := v.snapshot("small")
	resp, err := h.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: v.id, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * mib},
	})
	if err != nil || resp.GetCapacityBytes() != 2*mib || resp.GetNodeExpansionRequired() {
		t.Fatalf("expand: %v, %v", resp, err)
	}
	v.size = 2 * mib
	writeBlocks(t, device, r, 2, 300, 511)
	large := v.snapshot("large")

	grown := h.mustAsk(request{base: small, target: large})
	if want := []int64{2, 300, 511}; !slices.Equal(grown.blocks(), want) || grown.capacity != 2*mib {
		t.Errorf("delta %v of %d bytes, want %v", grown.blocks(), grown.capacity, want)
	}
	back := h.mustAsk(request{base: large, target: small})
	if want := []int64{2}; !slices.Equal(back.blocks(), want) || back.capacity != mib {
		t.Errorf("delta back %v of %d bytes, want %v", back.blocks(), back.capacity, want)
	}
	if _, err := h.ask(request{base: large, target: small, from: mib + 4096}); status.Code(err) != codes.OutOfRange {
		t.Errorf("past the end of the smaller target: %v", err)
	}
}

// Discarded blocks read as zeros, so they are not allocated and differ from what they held.
func TestDiscardedBlocks(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", 1*mib, blockCap(), nil)
	device := v.publish()
	writeBlocks(t, device, newRand(t), 1, 2, 3)
	one := v.snapshot("one")
	if out, err := exec.Command("blkdiscard", "-o", "8192", "-l", "4096", device).CombinedOutput(); err != nil {
		t.Fatalf("blkdiscard: %v: %s", err, out)
	}
	two := v.snapshot("two")
	if got := h.mustAsk(request{base: one, target: two}).blocks(); !slices.Equal(got, []int64{2}) {
		t.Errorf("delta %v", got)
	}
	if got := h.mustAsk(request{target: two}).blocks(); !slices.Equal(got, []int64{1, 3}) {
		t.Errorf("allocated %v", got)
	}
}
