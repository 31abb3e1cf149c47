package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

const benchEntries = 5_000_000

// BenchmarkPopulator runs the populator as a process and reports what an entry costs it in CPU time, and its greatest
// resident memory. The server is another process.
func BenchmarkPopulator(b *testing.B) {
	address, ca := fakes.StartReplayProcess(b, benchEntries, 1024)
	dir := b.TempDir()
	caFile, token := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	for path, content := range map[string][]byte{caFile: ca, token: []byte(testToken)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for _, format := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
		b.Run(string(format), func(b *testing.B) {
			var cpu time.Duration
			var resident int64
			for b.Loop() {
				cmd := exec.Command(binary, "--namespace=demo", "--snapshot=snap-2", "--base-snapshot-handle=handle-1",
					"--address="+address, "--ca-file="+caFile, "--token-file="+token, "--output="+dir, "--format="+string(format),
					"--merge-extents=false", "--termination-message=")
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
					resident = max(resident, usage.Maxrss)
				}
			}
			b.ReportMetric(float64(cpu)/float64(b.N)/benchEntries, "cpu-ns/entry")
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/benchEntries, "ns/entry")
			b.ReportMetric(float64(resident)/1024, "MiB-peak")
			b.ReportMetric(0, "ns/op")
		})
	}
}
