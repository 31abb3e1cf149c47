package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/sink"
	"github.com/cbt-populator/cbt-populator/test/compiled"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// binary is the populator that the tests run as a process of its own.
var binary string

func TestMain(m *testing.M) { os.Exit(withBinary(m)) }

func withBinary(m *testing.M) int {
	dir, err := os.MkdirTemp("", "populator-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "populator")
	if err := compiled.Program(binary, "."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

const (
	testNamespace = "demo"
	testTarget    = "snap-2"
	testBase      = "handle-1"
	testToken     = "token-of-the-test-0123456789"
	// deadline bounds one run of the populator; it is far above what any takes.
	deadline = 3 * time.Minute
)

// scene is one run: a server, a command line and an empty volume.
type scene struct {
	server *fakes.Server
	// endpoint and volume are folders; token and termination are files.
	endpoint, volume, token, termination string
	// quick are flags that scale the waits of production down.
	quick []string
	args  []string
}

func newScene(tb testing.TB, cfg fakes.Config) *scene {
	tb.Helper()
	if cfg.Token == "" {
		cfg.Token = testToken
	}
	server, err := fakes.Start(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(server.Stop)
	dir := tb.TempDir()
	s := &scene{
		server:      server,
		endpoint:    filepath.Join(dir, "endpoint"),
		volume:      filepath.Join(dir, "volume"),
		token:       filepath.Join(dir, "token"),
		termination: filepath.Join(dir, "termination"),
		quick: []string{"--backoff-min=1ms", "--backoff-max=4ms", "--probe-after=150ms", "--probe-timeout=1s",
			"--stall-timeout=3s", "--end-grace=200ms"},
	}
	for _, d := range []string{s.endpoint, s.volume} {
		if err := os.Mkdir(d, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := server.WriteEndpoint(s.endpoint); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(s.token, []byte(testToken+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return s
}

// run is what a run of the populator left.
type run struct {
	code           int
	stdout, stderr string
	result         outcome.Result
	took           time.Duration
}

// command returns the command line of a delta to the volume, with flags that come later winning.
func (s *scene) command(ctx context.Context, flags ...string) *exec.Cmd {
	args := append([]string{
		"--namespace=" + testNamespace, "--snapshot=" + testTarget, "--base-snapshot-handle=" + testBase,
		"--endpoint-dir=" + s.endpoint, "--token-file=" + s.token, "--output=" + s.volume,
		"--termination-message=" + s.termination,
	}, s.quick...)
	return exec.CommandContext(ctx, binary, append(append(args, s.args...), flags...)...)
}

func (s *scene) run(tb testing.TB, flags ...string) run {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	return finish(ctx, tb, s, s.command(ctx, flags...), func(*exec.Cmd) {})
}

// finish runs cmd, lets during act while it runs, and collects what it left.
func finish(ctx context.Context, tb testing.TB, s *scene, cmd *exec.Cmd, during func(*exec.Cmd)) run {
	tb.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	during(cmd)
	err := cmd.Wait()
	r := run{took: time.Since(begin), stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		tb.Fatalf("the populator did not end\n%s", r.stderr)
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		tb.Fatal(err)
	}
	if data, err := os.ReadFile(s.termination); err == nil {
		if r.result, err = outcome.Parse(string(data)); err != nil {
			tb.Fatalf("termination message %q: %v", data, err)
		}
	}
	return r
}

// expectation is the list that must come out: what an encoder makes of the server's extents without any server.
type expectation struct {
	format      blocklist.Format
	mode        blocklist.Mode
	granularity int64
	merge       bool
	restoreSize int64
	// kind overrides the volume's type.
	kind   blocklist.BlockMetadataType
	volume fakes.Volume
}

func expect(v fakes.Volume) expectation {
	return expectation{format: blocklist.JSON, mode: blocklist.Delta, volume: v}
}

func (x expectation) flags() []string {
	return []string{"--format=" + string(x.format), fmt.Sprintf("--granularity-bytes=%d", x.granularity), fmt.Sprintf("--merge-extents=%t", x.merge)}
}

// bytes encodes the expected list, with a rounding and merging that shares nothing with the populator's.
func (x expectation) bytes(tb testing.TB) []byte {
	tb.Helper()
	extents := x.volume.Delta
	h := blocklist.Header{
		Mode: x.mode, Namespace: testNamespace, BaseSnapshotHandle: testBase, TargetSnapshot: testTarget,
		VolumeCapacityBytes: x.volume.Capacity, BlockMetadataType: blocklist.VariableLength,
		GranularityBytes: x.granularity, Merged: x.merge || x.granularity > 0, TargetRestoreSizeBytes: x.restoreSize,
	}
	if x.mode == blocklist.Allocated {
		extents = x.volume.Allocated
	}
	if x.volume.Fixed {
		h.BlockMetadataType = blocklist.FixedLength
	}
	if x.kind != "" {
		h.BlockMetadataType = x.kind
	}
	var list []blocklist.Extent
	for _, e := range extents {
		start, end := e.Offset, e.Offset+e.Size
		if g := x.granularity; g > 0 {
			start, end = start/g*g, min((end+g-1)/g*g, x.volume.Capacity)
		}
		if n := len(list); h.Merged && n > 0 && start <= list[n-1].End() {
			list[n-1].Length = max(end, list[n-1].End()) - list[n-1].Offset
			continue
		}
		list = append(list, blocklist.Extent{Offset: start, Length: end - start})
	}
	var b bytes.Buffer
	enc, err := blocklist.NewEncoder(&b, x.format, h)
	if err != nil {
		tb.Fatal(err)
	}
	if err := enc.Encode(list); err != nil {
		tb.Fatal(err)
	}
	if _, err := enc.Finish(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// wantList checks that r ended well with exactly the expected list on the volume.
func (s *scene) wantList(tb testing.TB, r run, x expectation) {
	tb.Helper()
	if r.code != 0 {
		tb.Fatalf("exit code %d, want the list\n%s", r.code, r.stderr)
	}
	want := x.bytes(tb)
	name := blocklist.FileName(x.format)
	got, err := os.ReadFile(filepath.Join(s.volume, name))
	if err != nil {
		tb.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		tb.Fatalf("WRONG LIST: %d bytes, want %d; faults: %v", len(got), len(want), s.server.Struck())
	}
	sum := sha256.Sum256(want)
	digest, err := os.ReadFile(filepath.Join(s.volume, name+sink.DigestSuffix))
	if err != nil {
		tb.Fatal(err)
	}
	if line := hex.EncodeToString(sum[:]) + "  " + name + "\n"; string(digest) != line {
		tb.Errorf("digest file %q, want %q", digest, line)
	}
	if want := "sha256:" + hex.EncodeToString(sum[:]); r.result.ListDigest != want || r.result.Reason != outcome.Populated {
		tb.Errorf("result %+v, want digest %s", r.result, want)
	}
	s.wantNothingBut(tb, name, name+sink.DigestSuffix)
}

// wantReason checks that r ended with reason, its exit code, and nothing on the volume.
func (s *scene) wantReason(tb testing.TB, r run, reason outcome.Reason) {
	tb.Helper()
	if r.code != reason.ExitCode() || r.result.Reason != reason || r.result.Message == "" {
		tb.Errorf("exit code %d, result %+v, want %s\n%s", r.code, r.result, reason, r.stderr)
	}
	s.wantNothingBut(tb)
}

func (s *scene) wantNothingBut(tb testing.TB, names ...string) {
	tb.Helper()
	entries, err := os.ReadDir(s.volume)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			tb.Errorf("%s is left on the volume", e.Name())
		}
	}
}

// verifyFile checks that a reader accepts the list at path.
func verifyFile(tb testing.TB, path string) {
	tb.Helper()
	list, err := blocklist.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := list.Close(); err != nil {
		tb.Error(err)
	}
}

// plainListener listens without TLS, greets and hangs up, and returns its address.
func plainListener(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 ready\r\n"))
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}
