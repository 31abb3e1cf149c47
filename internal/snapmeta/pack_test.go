package snapmeta

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestPack packs random extents of all magnitudes and unpacks them again, piece after piece.
func TestPack(t *testing.T) {
	const seed = 20260803
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		var packed []byte
		var all [][]blocklist.Extent
		end, unit := int64(0), int64(1)<<r.IntN(40)
		for range 1 + r.IntN(4) {
			var piece []blocklist.Extent
			for range 1 + r.IntN(pieceExtents) {
				length, left := unit*int64(1+r.IntN(3)), (math.MaxInt64-end)/4
				offset := end
				if r.IntN(2) == 0 {
					offset += min(unit*int64(r.IntN(1000)), left)
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
			var got []blocklist.Extent
			if got, packed = unpack(nil, packed); !slices.Equal(want, got) {
				t.Fatal(cmp.Diff(want, got))
			}
		}
		if len(packed) > 0 {
			t.Fatalf("%d bytes are left", len(packed))
		}
	}
	if maxPieceBytes > chunkBytes {
		t.Errorf("a piece of %d bytes does not fit a chunk", maxPieceBytes)
	}
}

// BenchmarkPack measures what it costs an extent to wait for its turn.
func BenchmarkPack(b *testing.B) {
	var extents []blocklist.Extent
	for i := range int64(pieceExtents) {
		extents = append(extents, blocklist.Extent{Offset: 1<<40 + i<<16 + i%7<<12, Length: 4096})
	}
	var packed []byte
	var out []blocklist.Extent
	for b.Loop() {
		packed = pack(packed[:0], extents)
		out, _ = unpack(out[:0], packed)
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/pieceExtents, "ns/entry")
	b.ReportMetric(float64(len(packed))/pieceExtents, "bytes/entry")
}
