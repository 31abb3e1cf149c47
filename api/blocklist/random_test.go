package blocklist

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cbt-populator/cbt-populator/test/seeded"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// The million lists that must survive a round trip take minutes with the race detector:
//
//	go test ./api/blocklist -run TestRandomLists -lists 1000000
var (
	listsFlag = flag.Int("lists", 0, "how many random lists TestRandomLists encodes and decodes; 0: 100,000, or 20,000 with -short")
)

// TestRandomLists takes every random list through both formats, encoded in random pieces.
func TestRandomLists(t *testing.T) {
	rng := seeded.Rand(t)
	for i := range size.Or(*listsFlag, 100_000, 20_000) {
		most, l := 12, small
		if i%5000 == 0 {
			most, l = 30_000, formatLayout // lists of several chunks of full size
		}
		h, extents := randomList(rng, most)
		for _, f := range []Format{JSON, Binary} {
			raw, trailer := encode(t, f, l, h, randomPieces(rng, extents)...)
			if err := survives(raw, l, h, extents, trailer); err != nil {
				t.Fatalf("list %d, %s, %d extents: %v", i, f, len(extents), err)
			}
		}
	}
}

func survives(raw []byte, l layout, h Header, extents []Extent, trailer Trailer) error {
	got, err := decode(bytes.NewReader(raw), l)
	switch {
	case err != nil:
		return err
	case got.Header != h:
		return fmt.Errorf("header %+v, want %+v", got.Header, h)
	case !slices.Equal(got.Extents, extents):
		return fmt.Errorf("extents %v, want %v", got.Extents, extents)
	case got.Trailer != trailer || trailer.ListBytes != int64(len(raw)) || trailer.EntryCount != int64(len(extents)):
		return fmt.Errorf("trailer %+v, the encoder said %+v", got.Trailer, trailer)
	}
	return nil
}

// randomPieces cuts extents into random runs, some of them empty.
func randomPieces(rng *rand.Rand, extents []Extent) [][]Extent {
	var pieces [][]Extent
	for len(extents) > 0 {
		n := rng.IntN(len(extents) + 1)
		pieces = append(pieces, extents[:n])
		extents = extents[n:]
	}
	return pieces
}

// TestDeterminism demands the same bytes, and the same writes, however the extents are spread over calls of Encode.
func TestDeterminism(t *testing.T) {
	rng := seeded.Rand(t)
	h := benchHeader()
	extents := benchExtents(3*formatLayout.chunkEntries + 17)
	eachFormat(t, func(t *testing.T, f Format) {
		var want writes
		for i := range 30 {
			pieces := [][]Extent{extents}
			if i > 0 {
				pieces = randomPieces(rng, extents)
			}
			var got writes
			e := newLayoutEncoder(t, &got, f, formatLayout, h)
			for _, p := range pieces {
				if err := e.Encode(p); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := e.Finish(); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				want = got
			}
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("%d pieces give other bytes or writes than one", len(pieces))
			}
		}
		for i, w := range want {
			if len(w) != writeBytes && i < len(want)-1 {
				t.Errorf("write %d of %d has %d bytes, want %d", i, len(want), len(w), writeBytes)
			}
		}
	})
}

// writes is a writer that keeps every write.
type writes [][]byte

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, bytes.Clone(p))
	return len(p), nil
}
