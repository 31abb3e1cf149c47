package claimsize

import (
	"flag"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

var seed = flag.Uint64("seed", 0, "seed of the random lists; 0 takes the time's")

func TestFor(t *testing.T) {
	for list, want := range map[int64]int64{0: 33 << 20, 1: 33 << 20, 100 << 20: 143 << 20, 1 << 40: 1153466 << 20} {
		if got := For(list); got != want {
			t.Errorf("%d: got %d, want %d", list, got, want)
		}
		if got := For(list); got < list+list/20 {
			t.Errorf("%d bytes do not fit %d with the 5 %% that ext4 reserves", list, got)
		}
	}
}

// header is as long as headers get.
func header(capacity, granularity int64, merged bool) blocklist.Header {
	return blocklist.Header{
		Mode: blocklist.Delta, Driver: strings.Repeat("d", 63), Namespace: "n", BaseSnapshotHandle: strings.Repeat("\x01", 1024),
		VolumeCapacityBytes: capacity, BlockMetadataType: blocklist.VariableLength, GranularityBytes: granularity, Merged: merged,
	}
}

// listBytes is what the list takes in truth.
func listBytes(t *testing.T, h blocklist.Header, f blocklist.Format, extents []blocklist.Extent) int64 {
	t.Helper()
	enc, err := blocklist.NewEncoder(io.Discard, f, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := enc.Encode(extents); err != nil {
		t.Fatal(err)
	}
	trailer, err := enc.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return trailer.ListBytes
}

// worst returns the lists that are longest for their capacity: every block, every second one, and lengths that never repeat.
func worst(capacity, block int64, merged bool) map[string][]blocklist.Extent {
	lists := map[string][]blocklist.Extent{"every second": nil, "changing": nil}
	step := func(name string, gap int64, lengths ...int64) {
		for offset, i := int64(0), 0; offset < capacity; i++ {
			length := min(lengths[i%len(lengths)]*block, capacity-offset)
			lists[name] = append(lists[name], blocklist.Extent{Offset: offset, Length: length})
			offset += length + gap*block
		}
	}
	step("every second", 1, 1)
	step("changing", 1, 1, 2)
	if !merged {
		step("every", 0, 1)
		step("every, changing", 0, 1, 2)
	}
	return lists
}

func TestBoundOfTheWorstLists(t *testing.T) {
	for _, capacity := range []int64{512, 4096, 10 << 20, 100<<20 + 512, 1<<30 + 1} {
		for _, block := range []int64{512, 4096, 65536} {
			if capacity/block > 1<<18 {
				continue
			}
			for _, merged := range []bool{false, true} {
				for _, f := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
					h := header(capacity, 0, merged)
					bound, err := Bound(h, f, block)
					if err != nil {
						t.Fatal(err)
					}
					for name, extents := range worst(capacity, block, merged) {
						got := listBytes(t, h, f, extents)
						if got > bound {
							t.Errorf("%s, %s, capacity %d, block %d, merged %t: the list has %d bytes, the bound is %d", f, name, capacity, block, merged, got, bound)
						}
						if f == blocklist.JSON && name == "every" && capacity/block > 1000 && got < bound*9/10 {
							t.Errorf("the bound %d is far above the worst list, %d", bound, got)
						}
					}
				}
			}
		}
	}
}

func TestBoundOfRandomLists(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	r := rand.New(rand.NewPCG(s, s))
	for range 300 {
		block := int64(512) << r.IntN(8)
		capacity := block*(1+r.Int64N(50_000)) + r.Int64N(block)
		merged := r.IntN(2) == 0
		var extents []blocklist.Extent
		for offset := r.Int64N(3) * block; offset < capacity; {
			length := min((1+r.Int64N(1<<r.IntN(12)))*block, capacity-offset)
			extents = append(extents, blocklist.Extent{Offset: offset, Length: length})
			gap := r.Int64N(1 << r.IntN(12))
			if merged {
				gap++
			}
			offset += length + gap*block
		}
		for _, f := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
			h := header(capacity, block, merged)
			bound, err := Bound(h, f, 1)
			if err != nil {
				t.Fatal(err)
			}
			if got := listBytes(t, h, f, extents); got > bound {
				t.Errorf("%s of %d extents, capacity %d, block %d, merged %t: the list has %d bytes, the bound is %d", f, len(extents), capacity, block, merged, got, bound)
			}
		}
	}
}

func TestBoundRefuses(t *testing.T) {
	if _, err := Bound(header(0, 0, false), blocklist.JSON, 512); err == nil {
		t.Error("a list of no volume has a bound")
	}
	if _, err := Bound(header(1, 0, false), blocklist.JSON, 0); err == nil {
		t.Error("a list of no blocks has a bound")
	}
}
