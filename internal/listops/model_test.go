package listops

import (
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/seeded"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// volumeBytes is the size of the volumes of the random tests: one bit of the model for each byte.
const volumeBytes = 400

// bitmap is the model of a list: which bytes of the volume are listed.
type bitmap [volumeBytes]bool

func listed(extents []blocklist.Extent) (b bitmap) {
	for _, e := range extents {
		for i := e.Offset; i < e.End(); i++ {
			b[i] = true
		}
	}
	return b
}

// extents returns the model's bytes as merged extents.
func (b bitmap) extents() []blocklist.Extent {
	var all []blocklist.Extent
	for i, is := range b {
		if !is {
			continue
		}
		if n := len(all); n > 0 && all[n-1].End() == int64(i) {
			all[n-1].Length++
			continue
		}
		all = append(all, blocklist.Extent{Offset: int64(i), Length: 1})
	}
	return all
}

// randomExtents returns a valid list on the volume, often with extents that touch.
func randomExtents(rng *rand.Rand) []blocklist.Extent {
	var all []blocklist.Extent
	for at := int64(0); ; {
		if rng.IntN(3) > 0 {
			at += rng.Int64N(30)
		}
		length := 1 + rng.Int64N(25)
		if at+length > volumeBytes || rng.IntN(40) == 0 {
			return all
		}
		all = append(all, blocklist.Extent{Offset: at, Length: length})
		at += length
	}
}

// pieces hands out extents in random batches, some of them empty, and overwrites each one afterwards, as a reader may.
func pieces(rng *rand.Rand, all []blocklist.Extent) Extents {
	return func(yield func([]blocklist.Extent, error) bool) {
		for rest := all; len(rest) > 0; {
			n := rng.IntN(min(len(rest), 5) + 1)
			batch := slices.Clone(rest[:n])
			rest = rest[n:]
			if !yield(batch, nil) {
				return
			}
			for i := range batch {
				batch[i] = blocklist.Extent{Offset: -1, Length: -1}
			}
		}
	}
}

// collect returns all extents and demands that they are a valid list.
func collect(t *testing.T, in Extents) []blocklist.Extent {
	t.Helper()
	var all []blocklist.Extent
	end := int64(0)
	for batch, err := range in {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			if err := e.Check(end, volumeBytes); err != nil {
				t.Fatal(err)
			}
			end = e.End()
		}
		all = append(all, batch...)
	}
	return all
}

// TestSets compares union and difference with the model.
func TestSets(t *testing.T) {
	rng := seeded.Rand(t)
	for range 5_000 {
		a, b, c := randomExtents(rng), randomExtents(rng), randomExtents(rng)
		ma, mb, mc := listed(a), listed(b), listed(c)
		var union, difference bitmap
		for i := range ma {
			union[i] = ma[i] || mb[i] || mc[i]
			difference[i] = ma[i] && !mb[i]
		}
		if got := collect(t, Union(pieces(rng, a), pieces(rng, b), pieces(rng, c))); !slices.Equal(got, union.extents()) {
			t.Fatalf("union of %v, %v and %v: %v, want %v", a, b, c, got, union.extents())
		}
		if got := collect(t, Difference(pieces(rng, a), pieces(rng, b))); !slices.Equal(got, difference.extents()) {
			t.Fatalf("%v without %v: %v, want %v", a, b, got, difference.extents())
		}
	}
}

// TestClip compares parts of a volume with the model, and keeps the borders between extents.
func TestClip(t *testing.T) {
	rng := seeded.Rand(t)
	for range 5_000 {
		all := randomExtents(rng)
		r := Range{From: rng.Int64N(volumeBytes), To: math.MaxInt64}
		if rng.IntN(4) > 0 {
			r.To = r.From + 1 + rng.Int64N(100)
		}
		var want []blocklist.Extent
		for _, e := range all {
			if from, to := max(e.Offset, r.From), min(e.End(), r.To); from < to {
				want = append(want, blocklist.Extent{Offset: from, Length: to - from})
			}
		}
		if got := collect(t, Clip(pieces(rng, all), r)); !slices.Equal(got, want) {
			t.Fatalf("%v in %v: %v, want %v", all, r, got, want)
		}
	}
}

func TestPage(t *testing.T) {
	rng := seeded.Rand(t)
	for range 5_000 {
		all := randomExtents(rng)
		skip, limit := rng.Int64N(15), rng.Int64N(15)
		if rng.IntN(5) == 0 {
			limit = math.MaxInt64
		}
		want := all[min(skip, int64(len(all))):]
		want = want[:min(limit, int64(len(want)))]
		if got := collect(t, Page(pieces(rng, all), skip, limit)); !slices.Equal(got, want) {
			t.Fatalf("%d of %v after %d: %v, want %v", limit, all, skip, got, want)
		}
	}
}

// TestSlices demands that the slices together are the list, that no aligned block has bytes of two of them, and that shares are
// equal.
func TestSlices(t *testing.T) {
	rng := seeded.Rand(t)
	for range 5_000 {
		all := randomExtents(rng)
		changed := int64(0)
		for _, e := range all {
			changed += e.Length
		}
		workers, align := 1+rng.IntN(20), int64(1)<<rng.IntN(5)
		ranges, err := Slices(pieces(rng, all), changed, workers, align)
		if err != nil || len(ranges) != workers {
			t.Fatalf("%d ranges for %d workers, %v", len(ranges), workers, err)
		}
		var together []blocklist.Extent
		used := int64(-1) // the last aligned block that the slices before have bytes of
		for i, r := range ranges {
			part := collect(t, Clip(pieces(rng, all), r))
			sum := int64(0)
			for _, e := range part {
				sum += e.Length
			}
			if len(part) > 0 {
				if part[0].Offset/align == used {
					t.Fatalf("slice %d of %d of %v by %d begins at %d, in a block of the slice before", i, workers, all, align, part[0].Offset)
				}
				used = (part[len(part)-1].End() - 1) / align
			}
			if fair := changed / int64(workers); sum > fair+align || sum < fair-align {
				t.Fatalf("slice %d of %d of %v by %d has %d bytes, the fair share is %d", i, workers, all, align, sum, fair)
			}
			together = append(together, part...)
		}
		if got := (listed(together)); got != listed(all) {
			t.Fatalf("%d slices of %v together: %v", workers, all, together)
		}
	}
}

// TestHugeShares divides as many bytes as there can be.
func TestHugeShares(t *testing.T) {
	all := []blocklist.Extent{{Offset: 0, Length: math.MaxInt64}}
	ranges, err := Slices(pieces(seeded.Rand(t), all), math.MaxInt64, 3, 4096)
	if err != nil {
		t.Fatal(err)
	}
	third := int64(math.MaxInt64 / 3)
	for i, r := range ranges {
		if want := int64(i) * third; r.From < want || r.From > want+4096 {
			t.Errorf("slice %d begins at %d, want %d", i, r.From, want)
		}
	}
}

// TestErrorsPass demands that what fails in an input fails in the result, however far the others have come.
func TestErrorsPass(t *testing.T) {
	rng := seeded.Rand(t)
	broken := errors.New("broken")
	failing := func(all []blocklist.Extent) Extents {
		return func(yield func([]blocklist.Extent, error) bool) {
			for b, err := range pieces(rng, all) {
				if !yield(b, err) {
					return
				}
			}
			yield(nil, broken)
		}
	}
	for range 500 {
		a, b := randomExtents(rng), randomExtents(rng)
		for name, in := range map[string]Extents{
			"union, first":       Union(failing(a), pieces(rng, b)),
			"union, second":      Union(pieces(rng, a), failing(b)),
			"difference, first":  Difference(failing(a), pieces(rng, b)),
			"difference, second": Difference(pieces(rng, a), failing(nil)),
			"clip":               Clip(failing(a), Everything()),
			"page":               Page(failing(a), 0, math.MaxInt64),
		} {
			last := error(nil)
			for _, err := range in {
				last = err
			}
			if !errors.Is(last, broken) {
				t.Fatalf("%s of %v and %v: error %v", name, a, b, last)
			}
		}
		if _, err := Slices(failing(a), 100, 3, 1); !errors.Is(err, broken) {
			t.Fatalf("slices: %v", err)
		}
		if _, err := CountSizes(failing(a)); !errors.Is(err, broken) {
			t.Fatalf("sizes: %v", err)
		}
	}
}

// TestStopEarly leaves every result after its first batch.
func TestStopEarly(t *testing.T) {
	rng := seeded.Rand(t)
	long := func(yield func([]blocklist.Extent, error) bool) {
		for i := range int64(20_000) {
			if !yield([]blocklist.Extent{{Offset: 2 * i, Length: 1}}, nil) {
				return
			}
		}
	}
	none := pieces(rng, nil)
	for name, in := range map[string]Extents{
		"union": Union(long, none), "difference": Difference(long, none), "clip": Clip(long, Everything()), "page": Page(long, 3, 100),
	} {
		batches := 0
		for batch, err := range in {
			if err != nil || len(batch) == 0 {
				t.Errorf("%s: %d extents, %v", name, len(batch), err)
			}
			batches++
			break
		}
		if batches != 1 {
			t.Errorf("%s: %d batches", name, batches)
		}
	}
}

func TestCountSizes(t *testing.T) {
	s, err := CountSizes(pieces(seeded.Rand(t), []blocklist.Extent{
		{Offset: 0, Length: 1}, {Offset: 1, Length: 4095}, {Offset: 4096, Length: 4096}, {Offset: 1 << 20, Length: 8191}, {Offset: 1 << 30, Length: 1 << 40},
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := Sizes{Shortest: 1, Longest: 1 << 40, Runs: 3}
	want.Entries[0], want.Bytes[0] = 1, 1
	want.Entries[11], want.Bytes[11] = 1, 4095
	want.Entries[12], want.Bytes[12] = 2, 4096+8191
	want.Entries[40], want.Bytes[40] = 1, 1<<40
	if s != want {
		t.Errorf("%+v", s)
	}
}

// TestMemoryIsConstant demands that nothing keeps the extents that went through it: two million of them would be 32 MB,
// and the 480,000 of -short 8 MB.
func TestMemoryIsConstant(t *testing.T) {
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	extents := size.Of(2_000_000, 480_000)
	endless := func(shift int64) Extents {
		return func(yield func([]blocklist.Extent, error) bool) {
			batch := make([]blocklist.Extent, 8000)
			for at := int64(0); at < int64(extents); at += int64(len(batch)) {
				for i := range batch {
					batch[i] = blocklist.Extent{Offset: 3*(at+int64(i)) + shift, Length: 1}
				}
				if !yield(batch, nil) {
					return
				}
			}
		}
	}
	for name, in := range map[string]Extents{
		"union": Union(endless(0), endless(1), endless(0)), "difference": Difference(endless(0), endless(1)), "clip": Clip(endless(0), Everything()),
	} {
		before, most, count, batches := live(), uint64(0), 0, 0
		for batch, err := range in {
			if err != nil {
				t.Fatal(err)
			}
			count += len(batch)
			if batches++; batches%20 == 0 {
				most = max(most, live())
			}
		}
		if count != extents || most == 0 || most > before+2<<20 {
			t.Errorf("%s: %d extents; %d bytes are kept, %d were before", name, count, most, before)
		}
	}
}
