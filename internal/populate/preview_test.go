package populate

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/sink"
)

// TestPreviewIsWhatIsPopulated: encoded, a preview has the bytes that a population writes, for random extents, batches and
// options.
func TestPreviewIsWhatIsPopulated(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		blocks := 1 + r.Int64N(600)
		extents := randomExtents(r, blocks)
		o := testOptions()
		o.Format = []blocklist.Format{blocklist.JSON, blocklist.Binary}[r.IntN(2)]
		o.GranularityBytes = []int64{0, 512, 8192}[r.IntN(3)]
		o.MergeExtents = r.IntN(2) == 0
		src := func() *source {
			return &source{extents: slices.Clone(extents), batch: func() int { return 1 + r.IntN(40) }, info: testInfo(blocks * 512)}
		}
		var want, got bytes.Buffer
		if _, err := run(t.Context(), src(), sink.NewStream(&want), o, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		header, seen, err := Preview(t.Context(), src(), o)
		if err != nil {
			t.Fatal(err)
		}
		enc, err := blocklist.NewEncoder(&got, o.Format, header)
		if err != nil {
			t.Fatal(err)
		}
		for batch, err := range seen {
			if err != nil {
				t.Fatal(err)
			}
			if err := enc.Encode(batch); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := enc.Finish(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%d extents, %+v:\n%s", len(extents), o, cmp.Diff(want.String(), got.String()))
		}
	}
}

// TestPreviewPassesFailuresOn: a stream that fails is not taken for one that ended.
func TestPreviewPassesFailuresOn(t *testing.T) {
	broken := errors.New("the cable is cut")
	for name, change := range map[string]func(*Options){
		"as sent": func(*Options) {}, "merged": func(o *Options) { o.MergeExtents = true },
	} {
		o := testOptions()
		change(o)
		src := &source{extents: []blocklist.Extent{{Offset: 0, Length: 512}, {Offset: 1024, Length: 512}}, batch: func() int { return 1 }, info: testInfo(4096), err: broken}
		_, seen, err := Preview(t.Context(), src, o)
		if err != nil {
			t.Fatal(err)
		}
		var last error
		for _, err := range seen {
			last = err
		}
		if !errors.Is(last, broken) {
			t.Errorf("%s: got %v", name, last)
		}
	}
	if _, _, err := Preview(t.Context(), &source{err: broken}, testOptions()); !errors.Is(err, broken) {
		t.Errorf("at once: got %v", err)
	}
	if _, _, err := Preview(t.Context(), &source{}, testOptions()); err == nil {
		t.Error("a list without a capacity")
	}
}
