package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

const blockSize = 4096

// testVolume has 1,500 allocated blocks in runs of three with gaps of two between them, three in four of them changed. Its
// capacity lies beyond them. If it is not fixed, the last extent of a run is longer.
func testVolume(fixed bool) fakes.Volume {
	v := fakes.Volume{Namespace: testNamespace, Target: testTarget, Base: testBase, Capacity: 64 << 20, Fixed: fixed}
	for i := range int64(1500) {
		e := fakes.Extent{Offset: (i/3*5 + i%3) * blockSize, Size: blockSize}
		if !fixed && i%3 == 2 {
			e.Size = 3 * blockSize / 2
		}
		v.Allocated = append(v.Allocated, e)
		if i%4 != 0 {
			v.Delta = append(v.Delta, e)
		}
	}
	return v
}

// fullVolume is testVolume with a capacity that its last extent reaches, half a block short of the grid.
func fullVolume(fixed bool) fakes.Volume {
	v := testVolume(fixed)
	last := fakes.Extent{Offset: 10 << 20, Size: blockSize / 2}
	v.Delta, v.Allocated = append(v.Delta, last), append(v.Allocated, last)
	v.Capacity = last.Offset + last.Size
	return v
}

// faultCase is one way in which a service fails, and how a run against it has to end.
type faultCase struct {
	name string
	// cfg is the server's configuration besides the volume; the volume is testVolume unless it is set.
	cfg   fakes.Config
	flags []string
	// prepare may change the scene before the run.
	prepare func(t *testing.T, s *scene)
	// want is Populated for the exact list.
	want outcome.Reason
	// text must be in the message.
	text string
	// onlyFixed and onlyVariable confine the case to one type of volume.
	onlyFixed, onlyVariable bool
	// check looks at what the server saw.
	check func(t *testing.T, s *scene, r run)
	mode  blocklist.Mode
}

func calls(faults ...fakes.Fault) []fakes.Call {
	var script []fakes.Call
	for _, f := range faults {
		script = append(script, fakes.Call{f})
	}
	return script
}

// TestFaults runs the populator against every fault of the server, on a FIXED_LENGTH and a VARIABLE_LENGTH volume, with one
// stream, and with four from the first message on.
func TestFaults(t *testing.T) {
	var cases []faultCase
	cases = append(cases, healedFaults()...)
	cases = append(cases, endFaults()...)
	cases = append(cases, statusFaults()...)
	cases = append(cases, trustFaults()...)
	cases = append(cases, brokenPromises()...)
	for _, c := range cases {
		for _, fixed := range []bool{true, false} {
			if fixed && c.onlyVariable || !fixed && c.onlyFixed {
				continue
			}
			for _, streams := range []int{1, 4} {
				t.Run(fmt.Sprintf("%s/fixed=%t/streams=%d", c.name, fixed, streams), func(t *testing.T) {
					t.Parallel()
					c.run(t, fixed, streams)
				})
			}
		}
	}
}

func (c faultCase) run(t *testing.T, fixed bool, streams int) {
	cfg := c.cfg
	if cfg.Volume.Capacity == 0 {
		cfg.Volume = testVolume(fixed)
	}
	cfg.Volume.Fixed = fixed
	if cfg.PerMessage == 0 {
		cfg.PerMessage = 100
	}
	s := newScene(t, cfg)
	if c.prepare != nil {
		c.prepare(t, s)
	}
	s.args = append(s.args, fmt.Sprintf("--streams=%d", streams), "--streams-after=0s")
	r := s.run(t, c.flags...)
	if streams > 1 && c.mayMiss() && r.code == 0 {
		// The fault met a message that nobody needed: behind the end of a unit, say.
		s.wantList(t, r, expect(cfg.Volume))
		return
	}
	if c.want == outcome.Populated {
		x := expect(cfg.Volume)
		if c.mode != "" {
			x.mode = c.mode
		}
		s.wantList(t, r, x)
	} else {
		s.wantReason(t, r, c.want)
	}
	if !strings.Contains(r.result.Message, c.text) {
		t.Errorf("message %q does not contain %q", r.result.Message, c.text)
	}
	for _, secret := range []string{r.stderr, r.result.Message, r.result.Fallback} {
		if strings.Contains(secret, testToken) {
			t.Errorf("the token is in %q", secret)
		}
	}
	// What the server saw of several streams is a matter of time.
	if c.check != nil && streams == 1 {
		c.check(t, s, r)
	}
}

// mayMiss reports whether the fault may meet a call or a message that several streams have no use for: all but those that
// strike every call, or the first one at its first message.
func (c faultCase) mayMiss() bool {
	if len(c.cfg.Script) == 0 || c.want == outcome.Populated {
		return false
	}
	for _, call := range c.cfg.Script {
		for _, f := range call {
			if f.After > 0 {
				return true
			}
		}
	}
	return false
}

func wantResumes(n int) func(*testing.T, *scene, run) {
	return func(t *testing.T, _ *scene, r run) {
		if r.result.Resumes != n {
			t.Errorf("%d resumes, want %d\n%s", r.result.Resumes, n, r.stderr)
		}
	}
}

// TestEmptyStream has no message at all, so that the capacity comes from the restore size.
func TestEmptyStream(t *testing.T) {
	v := fakes.Volume{Namespace: testNamespace, Target: testTarget, Base: testBase, Capacity: 1 << 20}
	s := newScene(t, fakes.Config{Volume: v})
	r := s.run(t, "--restore-size-bytes=1048576")
	if r.code != 0 || r.result.VolumeCapacityBytes != 1<<20 || r.result.EntryCount != 0 || r.result.BlockMetadataType != string(blocklist.UnknownLength) {
		t.Fatalf("exit code %d, result %+v\n%s", r.code, r.result, r.stderr)
	}
	verifyFile(t, filepath.Join(s.volume, blocklist.FileName(blocklist.JSON)))
	if n := len(s.server.Calls()); n != 2 {
		t.Errorf("%d calls, want the empty answer to be asked for once more", n)
	}

	r = s.run(t)
	s.wantReason(t, r, outcome.InvalidArguments)
	if !strings.Contains(r.result.Message, "--restore-size-bytes") {
		t.Errorf("message %q does not say what to do", r.result.Message)
	}
}

// TestEmptyDelta is a quiet night of a volume whose snapshots have no restore size: the capacity comes from the allocated blocks.
func TestEmptyDelta(t *testing.T) {
	v := testVolume(true)
	v.Delta = nil
	s := newScene(t, fakes.Config{Volume: v})
	r := s.run(t)
	if r.code != 0 || r.result.VolumeCapacityBytes != v.Capacity || r.result.EntryCount != 0 || r.result.Mode != string(blocklist.Delta) {
		t.Fatalf("exit code %d, result %+v\n%s", r.code, r.result, r.stderr)
	}
	verifyFile(t, filepath.Join(s.volume, blocklist.FileName(blocklist.JSON)))
}

// TestCancel stops the populator in mid-stream.
func TestCancel(t *testing.T) {
	for name, fault := range map[string]fakes.Fault{
		"hang":    {Kind: fakes.Hang, After: 2},
		"backoff": {Kind: fakes.Cut, After: 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, fakes.Config{Volume: testVolume(true), PerMessage: 100, Script: calls(fault)})
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			cmd := s.command(ctx, "--backoff-min=10m", "--backoff-max=10m", "--stall-timeout=10m", "--probe-after=10m")
			r := finish(ctx, t, s, cmd, func(cmd *exec.Cmd) {
				wait(t, func() bool { return len(s.server.Struck()) == 1 })
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
			})
			s.wantReason(t, r, outcome.Cancelled)
		})
	}
}

// wait waits for a condition.
func wait(tb testing.TB, done func() bool) {
	tb.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(deadline); !done(); <-ticker.C {
		if time.Now().After(end) {
			tb.Fatal("the condition did not come true")
		}
	}
}

func (s *scene) write(tb testing.TB, path string, content []byte) {
	tb.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
}
