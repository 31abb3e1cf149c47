package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// TestProgress asks a populator whose stream hangs how far it is.
func TestProgress(t *testing.T) {
	v := testVolume(true)
	s := newScene(t, fakes.Config{Volume: v, PerMessage: 100, Script: calls(fakes.Fault{Kind: fakes.Hang, After: 2})})
	address := freeAddress(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := s.command(ctx, "--stall-timeout=1m", "--probe-after=1m", "--progress-address="+address)
	r := finish(ctx, t, s, cmd, func(cmd *exec.Cmd) {
		var last outcome.Progress
		wait(t, func() bool {
			response, err := http.Get("http://" + address + outcome.ProgressPath)
			if err != nil {
				return false
			}
			data, err := io.ReadAll(response.Body)
			if err := response.Body.Close(); err != nil {
				t.Error(err)
			}
			if err != nil || response.StatusCode != http.StatusOK {
				t.Errorf("status %d, %q, %v", response.StatusCode, data, err)
				return true
			}
			if last, err = outcome.ParseProgress(data); err != nil {
				t.Errorf("%q: %v", data, err)
				return true
			}
			return last.EntryCount == 200
		})
		if want := v.Delta[199]; last.OffsetBytes != want.Offset+want.Size || last.VolumeCapacityBytes != v.Capacity {
			t.Errorf("after 200 extents the progress is %+v", last)
		}
		response, err := http.Get("http://" + address + "/")
		if err != nil {
			t.Error(err)
		} else if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusNotFound {
			t.Errorf("another path: %s, %v", response.Status, err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	s.wantReason(t, r, outcome.Cancelled)
}

// TestProgressIsNotNeeded: a population whose port is taken goes on without it.
func TestProgressIsNotNeeded(t *testing.T) {
	v := testVolume(true)
	s := newScene(t, fakes.Config{Volume: v})
	r := s.run(t, "--progress-address="+plainListener(t))
	s.wantList(t, r, expect(v))
	if !strings.Contains(r.stderr, "progress cannot be asked for") {
		t.Errorf("the log does not say that the port is taken:\n%s", r.stderr)
	}
}

// freeAddress returns an address on which nobody listens now.
func freeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	return l.Addr().String()
}
