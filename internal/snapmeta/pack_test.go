package snapmeta

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestPack packs random extents of all magnitudes and unpacks them again, piece after piece.
func TestPack(t *testing.T) {
	const seed = 20260803
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	widths := map[byte]int{}
	for range 2000 {
		var packed []byte
		var all [][]blocklist.Extent
		end, unit := int64(0), int64(1)<<r.IntN(40)
		for range 1 + r.IntN(4) {
			var piece []blocklist.Extent
			lengths, gaps := 1+2*r.IntN(2), 1<<(1+r.IntN(20))
			for range 1 + r.IntN(pieceExtents) {
				length, left := unit*int64(1+r.IntN(lengths)), (math.MaxInt64-end)/4
				offset := end
				if r.IntN(2) == 0 {
					offset += min(unit*int64(r.IntN(gaps)), left)
				}
				if left < length {
					break
				}
				piece = append(piece, blocklist.Extent{Offset: offset, Length: length})
				end = offset + length
			}
			if len(piece) > 0 {
				all = append(all, piece)
				packed = pack(packed, piece)
			}
		}
		if r.IntN(4) == 0 && end < math.MaxInt64 {
			all = append(all, []blocklist.Extent{{Offset: end, Length: math.MaxInt64 - end}})
			packed = pack(packed, all[len(all)-1])
		}
		for _, want := range all {
			if n := len(pack(nil, want)); n > maxPieceBytes {
				t.Fatalf("%d bytes", n)
			}
			widths[packed[1]]++
			var got []blocklist.Extent
			if got, packed = unpack(nil, packed); !slices.Equal(want, got) {
				t.Fatal(cmp.Diff(want, got))
			}
		}
		if len(packed) > 0 {
			t.Fatalf("%d bytes are left", len(packed))
		}
	}
	if len(widths) != 3 {
		t.Errorf("pieces by the width of their gaps: %v, want some of each of 0, 1 and 2", widths)
	}
	if maxPieceBytes > chunkBytes {
		t.Errorf("a piece of %d bytes does not fit a chunk", maxPieceBytes)
	}
}

// BenchmarkPack measures what it costs an extent to wait for its turn: with gaps of up to so many blocks, in an order that no
// processor predicts.
func BenchmarkPack(b *testing.B) {
	for _, gaps := range []int64{100, 1000, 100_000} {
		b.Run(strconv.FormatInt(gaps, 10), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			extents := make([]blocklist.Extent, 100*pieceExtents)
			end := int64(1) << 40
			for i := range extents {
				extents[i] = blocklist.Extent{Offset: end + r.Int64N(gaps)<<12, Length: 4096}
				end = extents[i].End()
			}
			var packed []byte
			var out []blocklist.Extent
			for b.Loop() {
				for piece := range slices.Chunk(extents, pieceExtents) {
					packed = pack(packed[:0], piece)
					out, _ = unpack(out[:0], packed)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(len(extents)), "ns/entry")
			b.ReportMetric(float64(len(packed))/float64(len(out)), "bytes/entry")
		})
	}
}
