package blocklist

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// benchExtents is the distribution that performance is measured on: 4 KiB extents with random gaps between them.
func benchExtents(n int) []Extent {
	rng := rand.New(rand.NewPCG(1, 2))
	extents := make([]Extent, 0, n)
	offset := int64(0)
	for range n {
		offset += 4096 * int64(rng.IntN(100))
		extents = append(extents, Extent{Offset: offset, Length: 4096})
		offset += 4096
	}
	return extents
}

func benchHeader() Header {
	h := sampleHeader()
	h.VolumeCapacityBytes = 1 << 50
	return h
}

const benchEntries = 5_000_000

// BenchmarkEncode measures an encoder that gets the extents of one gRPC message at a time.
func BenchmarkEncode(b *testing.B) {
	extents := benchExtents(benchEntries)
	for _, f := range []Format{JSON, Binary} {
		b.Run(string(f), func(b *testing.B) {
			b.ReportAllocs()
			var bytesPerList int64
			for b.Loop() {
				e, err := NewEncoder(io.Discard, f, benchHeader())
				if err != nil {
					b.Fatal(err)
				}
				for i := 0; i < len(extents); i += 1024 {
					if err := e.Encode(extents[i:min(i+1024, len(extents))]); err != nil {
						b.Fatal(err)
					}
				}
				trailer, err := e.Finish()
				if err != nil {
					b.Fatal(err)
				}
				bytesPerList = trailer.ListBytes
			}
			report(b, bytesPerList)
		})
	}
}

// BenchmarkDecode measures reading and verifying.
func BenchmarkDecode(b *testing.B) {
	extents := benchExtents(benchEntries)
	for _, f := range []Format{JSON, Binary} {
		raw, _ := encode(b, f, formatLayout, benchHeader(), extents)
		b.Run(string(f), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Verify(bytes.NewReader(raw)); err != nil {
					b.Fatal(err)
				}
			}
			report(b, int64(len(raw)))
		})
	}
}

func report(b *testing.B, bytesPerList int64) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEntries, "ns/extent")
	b.ReportMetric(float64(bytesPerList)/benchEntries, "bytes/extent")
	b.ReportMetric(0, "ns/op")
}
