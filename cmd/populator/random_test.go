package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/populate"
	"github.com/cbt-populator/cbt-populator/test/fakes"
	"github.com/cbt-populator/cbt-populator/test/size"
)

const randomSeed = 20260801

// TestRandomFaults runs the populator against 500 random volumes, options and combinations of faults, or the first 150 with
// -short. Each run has to end with exactly the expected list, or with a reason, its exit code and no list; with faults that can
// be healed it has to be the list.
func TestRandomFaults(t *testing.T) {
	t.Logf("seed %d", randomSeed)
	for i := range size.Of(500, 150) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			newCombination(rand.New(rand.NewPCG(randomSeed, uint64(i)))).run(t)
		})
	}
}

// combination is one random run.
type combination struct {
	cfg    fakes.Config
	expect expectation
	stdout bool
	// streams are read at once, from the first message on.
	streams int
	// healable says that no fault of the script justifies an end without a list.
	healable bool
}

func newCombination(r *rand.Rand) combination {
	v := randomVolume(r)
	c := combination{
		cfg:    fakes.Config{Volume: v, PerMessage: 1 + r.IntN(128), EmptyMessage: r.IntN(2) == 0},
		expect: expect(v), stdout: r.IntN(4) == 0, healable: true,
	}
	c.streams = []int{1, 2, 4}[r.IntN(3)]
	c.expect.merge = r.IntN(2) == 0
	c.expect.granularity = []int64{0, 0, 512, 8192, 65536}[r.IntN(5)]
	if r.IntN(2) == 0 {
		c.expect.format = blocklist.Binary
	}
	if r.IntN(8) == 0 {
		c.cfg.TimeLimit, c.cfg.MessageDelay = 8*time.Millisecond, 2*time.Millisecond
		c.cfg.LimitLooksComplete = r.IntN(2) == 0
		c.cfg.PerMessage = max(c.cfg.PerMessage, 16)
	}
	if r.IntN(10) == 0 {
		c.expect.mode = blocklist.Allocated
		c.cfg.Script = append(c.cfg.Script, fakes.Call{{Kind: fakes.Status, Code: codes.FailedPrecondition}})
	}
	for range r.IntN(7) {
		c.addCall(r)
	}
	return c
}

// randomVolume has up to 800 extents with random gaps, often none; at times they reach the capacity.
func randomVolume(r *rand.Rand) fakes.Volume {
	v := fakes.Volume{Namespace: testNamespace, Target: testTarget, Base: testBase, Fixed: r.IntN(2) == 0}
	n := r.IntN(800)
	if r.IntN(10) == 0 {
		n = 0
	}
	end := int64(0)
	for range n {
		e := fakes.Extent{Offset: end, Size: blockSize}
		if r.IntN(2) == 0 {
			e.Offset += int64(r.IntN(40)) * blockSize
		}
		if !v.Fixed {
			e.Size = int64(1+r.IntN(64)) * 512
		}
		end = e.Offset + e.Size
		v.Allocated = append(v.Allocated, e)
		if r.IntN(3) > 0 {
			v.Delta = append(v.Delta, e)
		}
	}
	v.Capacity = end
	if n == 0 || r.IntN(3) > 0 {
		v.Capacity += 1 << 20
	}
	return v
}

// addCall adds a call with up to two faults.
//
// Some lies no client can see through, and they are not made: an end that is said twice at one offset, which is what an end
// looks like, and messages out of order of which the connection loses the second.
func (c *combination) addCall(r *rand.Rand) {
	if r.IntN(10) == 0 {
		c.cfg.Script = append(c.cfg.Script, brokenCall(r, c.cfg.Volume))
		c.healable = false
		return
	}
	var call fakes.Call
	for range r.IntN(3) {
		f := fakes.Fault{After: r.IntN(6)}
		switch n := r.IntN(40); {
		case n < 8:
			f.Kind = fakes.Cut
		case n < 14:
			f.Kind = fakes.Reset
		case n < 20:
			f.Kind, f.After = fakes.EarlyEnd, 1+f.After
		case n < 22:
			f.Kind = fakes.Hang
		case n < 23:
			f.Kind = fakes.Freeze
		case n < 26:
			f.Kind = fakes.Empty
		case n < 30:
			f.Kind, f.After = fakes.BeginsEarlier, 0
		case n < 32:
			f.Kind, f.Delay = fakes.Drip, time.Millisecond
		default:
			f.Kind = fakes.Status
			f.Code = codes.Code(1 + r.IntN(16))
			if f.Code == codes.OutOfRange {
				f.After++
			}
			if terminalCodes[f.Code] != "" {
				c.healable = false
			}
		}
		call = append(call, f)
	}
	c.cfg.Script = append(c.cfg.Script, call)
}

// brokenCall breaks one promise.
func brokenCall(r *rand.Rand, v fakes.Volume) fakes.Call {
	kinds := []fakes.Kind{fakes.Duplicate, fakes.Reorder, fakes.Swap, fakes.Overlap, fakes.Shift, fakes.UnknownType, fakes.NoCapacity,
		fakes.ZeroSize, fakes.NegativeSize, fakes.NegativeOffset, fakes.Overflow, fakes.PastCapacity, fakes.IgnoreOffset}
	f := fakes.Fault{Kind: kinds[r.IntN(len(kinds))], After: r.IntN(4), By: v.Capacity}
	if r.IntN(2) == 0 {
		f.By = -v.Capacity
	}
	if f.Kind == fakes.IgnoreOffset {
		f.After = 0
	}
	return fakes.Call{f}
}

func (c combination) run(t *testing.T) {
	s := newScene(t, c.cfg)
	s.quick = []string{"--backoff-min=1ms", "--backoff-max=4ms", "--probe-after=60ms", "--probe-timeout=500ms",
		"--stall-timeout=150ms", "--end-grace=60ms", "--max-attempts=30"}
	s.args = append(c.expect.flags(), "--when-delta-unavailable="+populate.UseAllocated,
		fmt.Sprintf("--restore-size-bytes=%d", c.cfg.Volume.Capacity),
		fmt.Sprintf("--streams=%d", c.streams), "--streams-after=0s")
	c.expect.restoreSize = c.cfg.Volume.Capacity
	if c.stdout {
		s.args = append(s.args, "--output="+populate.Stdout)
	}
	r := s.run(t)
	describe := fmt.Sprintf("%d streams, script %v, struck %v\n%s", c.streams, c.cfg.Script, s.server.Struck(), r.stderr)
	if r.code != 0 {
		if c.healable {
			t.Fatalf("exit code %d; every fault could have been healed; %s", r.code, describe)
		}
		s.wantReason(t, r, r.result.Reason)
		if _, _, err := blocklist.Verify(strings.NewReader(r.stdout)); err == nil {
			t.Errorf("a whole list on standard output in spite of exit code %d; %s", r.code, describe)
		}
		return
	}
	c.expect.settle(r.result)
	if !c.stdout {
		s.wantList(t, r, c.expect)
		verifyFile(t, filepath.Join(s.volume, blocklist.FileName(c.expect.format)))
		return
	}
	if r.stdout != string(c.expect.bytes(t)) {
		t.Fatalf("WRONG LIST on standard output; %s", describe)
	}
}

// settle takes from a result what depends on the faults and is no part of the truth about the volume: an unavailable delta
// in a later call's place makes a list of the allocated blocks, and the type of an empty list is known only if there was a
// message.
func (x *expectation) settle(r outcome.Result) {
	x.mode = blocklist.Mode(r.Mode)
	if r.EntryCount == 0 {
		x.kind = blocklist.BlockMetadataType(r.BlockMetadataType)
	}
}
