package main

import (
	"os"
	"testing"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/peers"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// BenchmarkRead reads one list with each peer and with the populator's code, in this process; the server is another one,
// so that allocations are the reader's. For benchstat: go test -run '^$' -bench . -count 10 .
func BenchmarkRead(b *testing.B) {
	const count = 1_000_000
	lab := newLab(b)
	s := serveList(b, lab, server.Config{Extents: count, PerMessage: 1024})
	target, err := peers.ReadTarget(s.Dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range peers.All() {
		b.Run("path="+p.Name, func(b *testing.B) {
			var allocations int64
			for b.Loop() {
				r, err := p.Run(b.Context(), target, os.DevNull, nil)
				if err != nil {
					b.Fatal(err)
				}
				allocations += r.Allocations
			}
			extents := float64(b.N) * count
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/extents, "ns/extent")
			b.ReportMetric(float64(allocations)/extents, "allocs/extent")
			b.ReportMetric(0, "ns/op")
		})
	}
}
