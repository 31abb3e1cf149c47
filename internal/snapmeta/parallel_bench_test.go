package snapmeta_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// BenchmarkStreams measures what several streams gain with a service that waits for its storage, and with one that
// computes. The services run in processes of their own, on the same cores.
func BenchmarkStreams(b *testing.B) {
	for _, c := range []struct {
		name       string
		extents    int64
		wait, spin time.Duration
	}{
		{"wait=1ms", 4_000_000, time.Millisecond, 0},
		{"compute=100ns", 20_000_000, 0, 100 * time.Nanosecond},
		{"compute=300ns", 10_000_000, 0, 300 * time.Nanosecond},
	} {
		for _, streams := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("%s/streams=%d", c.name, streams), func(b *testing.B) {
				endpoint := startPaced(b, c.extents, c.wait, c.spin)
				b.ReportAllocs()
				for b.Loop() {
					readPaced(b, endpoint, streams, c.extents)
				}
				b.ReportMetric(float64(c.extents)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mentries/s")
			})
		}
	}
}

// pacedVariable is set in the process that serves a benchmark, to the number of extents and the two times of its server.
const pacedVariable = "SNAPMETA_PACED_SERVER"

// TestPacedServer is that process. It ends when its standard input does.
func TestPacedServer(t *testing.T) {
	arguments := os.Getenv(pacedVariable)
	if arguments == "" {
		t.Skip("it serves the benchmarks only")
	}
	var extents, wait, spin int64
	if _, err := fmt.Sscan(arguments, &extents, &wait, &spin); err != nil {
		t.Fatal(err)
	}
	server, err := fakes.StartPaced(extents, time.Duration(wait), time.Duration(spin))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	fmt.Println(server.Address, base64.StdEncoding.EncodeToString(server.CA))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func startPaced(b *testing.B, extents int64, wait, spin time.Duration) snapmeta.Endpoint {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestPacedServer$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %d", pacedVariable, extents, wait, spin))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	var address, ca string
	if _, err := fmt.Fscan(stdout, &address, &ca); err != nil {
		b.Fatal(err)
	}
	pem, err := base64.StdEncoding.DecodeString(ca)
	if err != nil {
		b.Fatal(err)
	}
	return snapmeta.Endpoint{Address: address, CA: pem}
}

// readPaced reads the whole list of a service and checks it.
func readPaced(b *testing.B, endpoint snapmeta.Endpoint, streams int, want int64) {
	s, err := snapmeta.New(snapmeta.Config{
		Request:  snapmeta.Request{Namespace: "demo", Target: "snap-2", BaseHandle: "handle-1"},
		Endpoint: func() (snapmeta.Endpoint, error) { return endpoint, nil },
		Token:    func() (string, error) { return "token", nil },
		Streams:  streams,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	next := int64(0)
	for {
		extents, err := s.Next(context.Background())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		for _, e := range extents {
			if e.Offset != next*fakes.PacedStride {
				b.Fatalf("extent %d at %d", next, e.Offset)
			}
			next++
		}
	}
	if next != want {
		b.Fatalf("%d extents, want %d", next, want)
	}
}
