//go:build linux

package copier

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// BenchmarkApply copies from a loop device into a new image, and has dd and cp do the same in the same run: dd copies
// every extent of a dense list as one, and the whole device otherwise, because it cannot do better in one process. The
// metrics are how many times as long as apply they take.
func BenchmarkApply(b *testing.B) {
	const capacity = 256 << 20
	source := make([]byte, capacity)
	fill(random(b), source)
	device := attach(b, writeFile(b, "source", source))
	scattered := []blocklist.Extent{}
	for offset := int64(0); offset < capacity; offset += 400 << 10 {
		scattered = append(scattered, blocklist.Extent{Offset: offset, Length: 4096})
	}
	for _, c := range []struct {
		name    string
		extents []blocklist.Extent
	}{
		{"everything", []blocklist.Extent{{Offset: 0, Length: capacity}}},
		{"one percent in 4 KiB", scattered},
	} {
		list := writeList(b, capacity, c.extents)
		for _, buffered := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/buffered=%t", c.name, buffered), func(b *testing.B) {
				dir := b.TempDir()
				var ours, dd, cp time.Duration
				round := 0
				for b.Loop() {
					round++
					target := filepath.Join(dir, fmt.Sprint(round))
					ours += timed(b, func() error {
						_, err := Run(b.Context(), Options{List: list, Source: device, Target: target + ".apply", Buffered: buffered})
						return err
					})
					dd += timed(b, exec.Command("dd", "if="+device, "of="+target+".dd", "bs=1M", "conv=fsync", "iflag=direct").Run)
					cp += timed(b, exec.Command("cp", "--sparse=always", device, target+".cp").Run)
					for _, what := range []string{".apply", ".dd", ".cp"} {
						if err := exec.Command("rm", target+what).Run(); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(0, "ns/op") // of all three together: it says nothing
				b.ReportMetric(float64(ours.Milliseconds())/float64(round), "apply-ms")
				b.ReportMetric(float64(dd)/float64(ours), "dd/apply")
				b.ReportMetric(float64(cp)/float64(ours), "cp/apply")
			})
		}
	}
}

func timed(b *testing.B, do func() error) time.Duration {
	b.Helper()
	start := time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
