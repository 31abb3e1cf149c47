package convert

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/size"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

func header() blocklist.Header {
	return blocklist.Header{
		Mode: blocklist.Delta, Driver: "hostpath.csi.k8s.io", Namespace: "default", BaseSnapshot: "snap-1", BaseSnapshotHandle: "a1",
		TargetSnapshot: "snap-2", TargetSnapshotHandle: "b2", VolumeCapacityBytes: 10<<20 + 512, BlockMetadataType: blocklist.VariableLength,
	}
}

// sample has an extent at 0, two that touch, and one that ends with the volume, within a block.
func sample() []blocklist.Extent {
	return []blocklist.Extent{{Offset: 0, Length: 4096}, {Offset: 16384, Length: 4096}, {Offset: 20480, Length: 8192}, {Offset: 10<<20 - 4096, Length: 4608}}
}

func listOf(h blocklist.Header, extents []blocklist.Extent) List {
	return List{Header: h, Extents: func() iter.Seq2[[]blocklist.Extent, error] {
		return func(yield func([]blocklist.Extent, error) bool) {
			for piece := range slices.Chunk(extents, 3) {
				if !yield(piece, nil) {
					return
				}
			}
		}
	}}
}

// TestGolden compares every format with its golden file, of a list and of an empty one.
func TestGolden(t *testing.T) {
	for _, name := range Formats() {
		for list, extents := range map[string][]blocklist.Extent{"sample": sample(), "empty": nil} {
			t.Run(list+"."+name, func(t *testing.T) {
				var got bytes.Buffer
				if err := Write(t.Context(), &got, Format(name), listOf(header(), extents)); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join("testdata", list+"."+name)
				if *update {
					if err := os.WriteFile(path, got.Bytes(), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got.String()); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestParseFormat(t *testing.T) {
	for _, name := range Formats() {
		if f, err := ParseFormat(name); err != nil || string(f) != name {
			t.Errorf("%s: %s, %v", name, f, err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), "ddrescue") {
		t.Errorf("xml: %v", err)
	}
	if err := Write(t.Context(), io.Discard, "xml", listOf(header(), nil)); err == nil {
		t.Error("xml is written")
	}
}

// TestBlockSizes: the blocks of a block map are the largest that fit all borders.
func TestBlockSizes(t *testing.T) {
	for _, c := range []struct {
		capacity      int64
		extents       []blocklist.Extent
		block, mapped int64
	}{
		{1 << 30, nil, 65536, 0},
		{1 << 30, []blocklist.Extent{{Offset: 0, Length: 1 << 30}}, 65536, 16384},
		{1 << 30, []blocklist.Extent{{Offset: 65536, Length: 4096}}, 4096, 1},
		{1 << 30, []blocklist.Extent{{Offset: 512, Length: 65536 - 512}, {Offset: 65536, Length: 512}}, 512, 128},
		{1 << 30, []blocklist.Extent{{Offset: 0, Length: 4096}, {Offset: 4096, Length: 61440}}, 65536, 1},
		{1<<20 + 100, []blocklist.Extent{{Offset: 1 << 19, Length: 1<<19 + 100}}, 65536, 9},
		{1<<20 + 100, []blocklist.Extent{{Offset: 1 << 19, Length: 1<<19 + 99}}, 1, 1<<19 + 99},
	} {
		h := header()
		h.VolumeCapacityBytes = c.capacity
		m, err := surveyBlocks(listOf(h, c.extents))
		if err != nil || m.block != c.block || m.mapped != c.mapped {
			t.Errorf("%v: %+v, %v", c.extents, m, err)
		}
	}
}

// TestFailures: an error of the extents, of the writer and of the context ends every format with that error.
func TestFailures(t *testing.T) {
	broken := errors.New("broken")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range Formats() {
		f := Format(name)
		list := listOf(header(), sample())
		whole := list.Extents
		list.Extents = func() iter.Seq2[[]blocklist.Extent, error] {
			return func(yield func([]blocklist.Extent, error) bool) {
				for b, err := range whole() {
					if !yield(b, err) {
						return
					}
				}
				yield(nil, broken)
			}
		}
		if err := Write(t.Context(), io.Discard, f, list); !errors.Is(err, broken) {
			t.Errorf("%s: broken extents: %v", f, err)
		}
		if err := Write(t.Context(), brokenWriter{broken}, f, listOf(header(), sample())); !errors.Is(err, broken) {
			t.Errorf("%s: broken writer: %v", f, err)
		}
		if err := Write(t.Context(), brokenWriter{broken}, f, listOf(header(), nil)); f != TSV && f != NDJSON && f != Table && !errors.Is(err, broken) {
			t.Errorf("%s: broken writer of an empty list: %v", f, err)
		}
		if err := Write(cancelled, io.Discard, f, listOf(header(), sample())); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled: %v", f, err)
		}
	}
}

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }

// TestPasses demands that only the formats that say so walk over the extents more than once.
func TestPasses(t *testing.T) {
	for _, name := range Formats() {
		walks := 0
		list := listOf(header(), sample())
		inner := list.Extents
		list.Extents = func() iter.Seq2[[]blocklist.Extent, error] { walks++; return inner() }
		if err := Write(t.Context(), io.Discard, Format(name), list); err != nil {
			t.Fatal(err)
		}
		if Format(name).Streams() != (walks == 1) {
			t.Errorf("%s: %d walks", name, walks)
		}
	}
}

// endless returns n extents of which every second touches the one before, made as they are asked for.
func endless(n int64) iter.Seq2[[]blocklist.Extent, error] {
	return func(yield func([]blocklist.Extent, error) bool) {
		batch := make([]blocklist.Extent, 8192)
		for at := int64(0); at < n; at += int64(len(batch)) {
			for i := range batch {
				k := at + int64(i)
				batch[i] = blocklist.Extent{Offset: (k + k/2) * 4096, Length: 4096}
			}
			if !yield(batch[:min(int64(len(batch)), n-at)], nil) {
				return
			}
		}
	}
}

// TestMemoryIsConstant demands that what is kept in memory does not grow with the list: two million extents (600,000 with
// -short), which as a slice would take 32 MB (10 MB), never take more than a few buffers and the index of a Binary list.
func TestMemoryIsConstant(t *testing.T) {
	h := header()
	h.VolumeCapacityBytes = 1 << 40
	for _, name := range Formats() {
		var most, batches uint64
		list := List{Header: h, Extents: func() iter.Seq2[[]blocklist.Extent, error] {
			return func(yield func([]blocklist.Extent, error) bool) {
				for b, err := range endless(int64(size.Of(2_000_000, 600_000))) {
					if batches++; batches%20 == 0 {
						most = max(most, live())
					}
					if !yield(b, err) {
						return
					}
				}
			}
		}}
		before := live()
		if err := Write(t.Context(), io.Discard, Format(name), list); err != nil {
			t.Fatal(err)
		}
		if most == 0 || most > before+4<<20 {
			t.Errorf("%s: %d bytes are kept, %d were before", name, most, before)
		}
	}
}

// live returns the bytes that are in use once all garbage is collected.
func live() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestBmapIsXML reads a block map with another parser than bmaptool's.
func TestBmapIsXML(t *testing.T) {
	var text bytes.Buffer
	if err := Write(t.Context(), &text, Bmap, listOf(header(), sample())); err != nil {
		t.Fatal(err)
	}
	var m struct {
		Version string   `xml:"version,attr"`
		Mapped  string   `xml:"MappedBlocksCount"`
		Ranges  []string `xml:"BlockMap>Range"`
	}
	if err := xml.Unmarshal(text.Bytes(), &m); err != nil || m.Version != "2.0" || m.Mapped != " 6 " || len(m.Ranges) != 3 {
		t.Errorf("%+v, %v", m, err)
	}
	// Go's parser lets it pass, others do not: no "--" in a comment.
	if inside := regexp.MustCompile(`(?s)<!--(.*?)-->`).FindSubmatch(text.Bytes()); bytes.Contains(inside[1], []byte("--")) {
		t.Errorf("a comment holds two hyphens: %s", inside[1])
	}
}
