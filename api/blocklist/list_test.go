package blocklist

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// small has chunks and an index of few entries, so that a short list has many chunks and a thinned index.
var small = layout{chunkEntries: 4, indexPoints: 4}

func sampleHeader() Header {
	return Header{
		Mode:                   Delta,
		Driver:                 "sample-csi.cbt-populator.test",
		Namespace:              "shop",
		BaseSnapshot:           "monday",
		BaseSnapshotHandle:     "snap-\"1\"\\\n\u00e9",
		TargetSnapshot:         "tuesday",
		TargetSnapshotHandle:   "snap-2",
		VolumeCapacityBytes:    10 << 20,
		BaseRestoreSizeBytes:   8 << 20,
		TargetRestoreSizeBytes: 10 << 20,
		BlockMetadataType:      FixedLength,
		GranularityBytes:       4096,
		Merged:                 true,
	}
}

// blocks returns an extent of 4 KiB for each block number.
func blocks(numbers ...int64) []Extent {
	extents := make([]Extent, 0, len(numbers))
	for _, n := range numbers {
		extents = append(extents, Extent{Offset: n * 4096, Length: 4096})
	}
	return extents
}

// encode returns the list with its trailer, with as many calls of Encode as pieces.
func encode(t testing.TB, f Format, l layout, h Header, pieces ...[]Extent) ([]byte, Trailer) {
	t.Helper()
	var out bytes.Buffer
	e := newLayoutEncoder(t, &out, f, l, h)
	for _, p := range pieces {
		if err := e.Encode(p); err != nil {
			t.Fatalf("encode %s: %v", f, err)
		}
	}
	trailer, err := e.Finish()
	if err != nil {
		t.Fatalf("finish %s: %v", f, err)
	}
	return out.Bytes(), trailer
}

func newLayoutEncoder(t testing.TB, w io.Writer, f Format, l layout, h Header) Encoder {
	t.Helper()
	if f == Binary && l != formatLayout {
		return newBinaryEncoder(w, h, l)
	}
	e, err := NewEncoder(w, f, h)
	if err != nil {
		t.Fatalf("new %s encoder: %v", f, err)
	}
	return e
}

// list is all that a reader says of a list.
type list struct {
	Header  Header
	Extents []Extent
	Trailer Trailer
}

// decode reads a list; its error is that of NewReader or of Err.
func decode(r io.Reader, l layout) (list, error) {
	reader, err := newReader(r, l)
	if err != nil {
		return list{}, err
	}
	got := list{Header: reader.Header()}
	for reader.Next() {
		got.Extents = append(got.Extents, reader.Extent())
	}
	got.Trailer = reader.Trailer()
	return got, reader.Err()
}

// randomList returns a list of up to most extents with a header that fits.
func randomList(rng *rand.Rand, most int) (Header, []Extent) {
	h := sampleHeader()
	h.BlockMetadataType = VariableLength
	shift := rng.IntN(20)
	usual := int64(1+rng.IntN(4)) << shift
	var extents []Extent
	end := int64(0)
	if rng.IntN(20) == 0 {
		end = math.MaxInt64 / 4 * int64(rng.IntN(4))
	}
	for range rng.IntN(most + 1) {
		gap, length := int64(0), usual
		switch rng.IntN(8) {
		case 0:
			gap = rng.Int64N(1 << 40)
		case 1, 2, 3, 4:
			gap = rng.Int64N(1000) << shift
		}
		switch rng.IntN(16) {
		case 0:
			length = 1 + rng.Int64N(1<<30)
		case 1:
			length = int64(1+rng.IntN(8)) << shift
		}
		if gap > math.MaxInt64-length-end {
			break
		}
		extents = append(extents, Extent{Offset: end + gap, Length: length})
		end += gap + length
	}
	h.VolumeCapacityBytes = max(1, end)
	if rng.IntN(2) == 0 {
		h.VolumeCapacityBytes = math.MaxInt64
	}
	return h, extents
}

func eachFormat(t *testing.T, f func(t *testing.T, f Format)) {
	for _, format := range []Format{JSON, Binary} {
		t.Run(string(format), func(t *testing.T) { f(t, format) })
	}
}

func TestRoundTrip(t *testing.T) {
	top := sampleHeader()
	top.VolumeCapacityBytes = math.MaxInt64
	unknown := sampleHeader()
	unknown.BlockMetadataType = UnknownLength
	bare := Header{Mode: Allocated, BlockMetadataType: VariableLength, VolumeCapacityBytes: 1 << 40}
	for _, c := range []struct {
		name    string
		header  Header
		extents []Extent
	}{
		{"empty", sampleHeader(), nil},
		{"no message", unknown, nil},
		{"one block at 0", sampleHeader(), blocks(0)},
		{"guide", sampleHeader(), blocks(2, 4, 9)},
		{"last block", sampleHeader(), blocks(2559)},
		{"the whole volume", sampleHeader(), []Extent{{0, 10 << 20}}},
		{"one chunk", sampleHeader(), blocks(1, 2, 3, 5)},
		{"two chunks", sampleHeader(), blocks(1, 2, 3, 5, 8)},
		{"a thinned index", sampleHeader(), blocks(1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 611, 612, 613, 614, 700, 701)},
		{"unaligned", bare, []Extent{{1, 1}, {3, 7}, {10, 4096}, {8192, 512}}},
		{"the greatest offsets", top, []Extent{{0, 1}, {math.MaxInt64 - 1, 1}}},
		{"the greatest extent", top, []Extent{{0, math.MaxInt64}}},
		{"the greatest power of two", top, []Extent{{1 << 62, 1 << 61}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachFormat(t, func(t *testing.T, f Format) {
				for _, l := range []layout{small, formatLayout} {
					raw, trailer := encode(t, f, l, c.header, c.extents)
					got, err := decode(bytes.NewReader(raw), l)
					if err != nil {
						t.Fatalf("decode: %v\n%q", err, raw)
					}
					want := list{Header: c.header, Extents: c.extents, Trailer: trailer}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("the list changed (-want +got):\n%s", diff)
					}
				}
			})
		})
	}
}

// TestCuts cuts lists at every byte.
func TestCuts(t *testing.T) {
	forSamples(t, func(t *testing.T, l layout, raw []byte) {
		for n := range raw {
			_, err := decode(bytes.NewReader(raw[:n]), l)
			want := ErrIncomplete
			if n == 0 {
				want = ErrNotAList
			}
			if !errors.Is(err, want) {
				t.Fatalf("cut to %d of %d bytes: error %v, want %v", n, len(raw), err, want)
			}
		}
	})
}

// TestFlips flips every bit of lists.
func TestFlips(t *testing.T) {
	forSamples(t, func(t *testing.T, l layout, raw []byte) {
		for i := range raw {
			for bit := range 8 {
				raw[i] ^= 1 << bit
				if _, err := decode(bytes.NewReader(raw), l); !isRefusal(err) {
					t.Fatalf("bit %d of byte %d of %d flipped: error %v", bit, i, len(raw), err)
				}
				raw[i] ^= 1 << bit
			}
		}
	})
}

// TestTail appends every byte value to lists.
func TestTail(t *testing.T) {
	forSamples(t, func(t *testing.T, l layout, raw []byte) {
		for b := range 256 {
			if _, err := decode(bytes.NewReader(append(raw[:len(raw):len(raw)], byte(b))), l); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d appended: error %v", b, err)
			}
		}
		if _, err := decode(bytes.NewReader(append(raw[:len(raw):len(raw)], raw...)), l); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("the list twice: error %v", err)
		}
	})
}

func isRefusal(err error) bool {
	return errors.Is(err, ErrIncomplete) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) || errors.Is(err, ErrNotAList)
}

// forSamples runs f on small lists of both formats.
func forSamples(t *testing.T, f func(t *testing.T, l layout, raw []byte)) {
	eachFormat(t, func(t *testing.T, format Format) {
		for i, extents := range [][]Extent{nil, blocks(2, 4, 9), append(blocks(1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 145, 146, 147, 148, 149, 150, 200), Extent{8 << 20, 3})} {
			for _, l := range []layout{small, formatLayout} {
				t.Run(fmt.Sprintf("%d/%d", i, l.chunkEntries), func(t *testing.T) {
					raw, _ := encode(t, format, l, sampleHeader(), extents)
					f(t, l, raw)
				})
			}
		}
	})
}
