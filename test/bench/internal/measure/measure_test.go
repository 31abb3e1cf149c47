package measure

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []int64
		want   int64
	}{{nil, 0}, {[]int64{7}, 7}, {[]int64{9, 1, 5}, 5}, {[]int64{4, 1, 100, 2}, 3}} {
		if got := Median(c.values); got != c.want {
			t.Errorf("Median(%v) = %d, want %d", c.values, got, c.want)
		}
	}
}

// TestRun tells CPU time from time that passes.
func TestRun(t *testing.T) {
	busy, err := Run(exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"))
	if err != nil {
		t.Fatal(err)
	}
	idle, err := Run(exec.Command("sleep", "1"))
	if err != nil {
		t.Fatal(err)
	}
	if busy.CPU <= idle.CPU || idle.Wall < time.Second || busy.Peak <= 0 || idle.Peak <= 0 {
		t.Errorf("busy: %+v, idle: %+v", busy, idle)
	}
	var exit *exec.ExitError
	if _, err := Run(exec.Command("sh", "-c", "echo the reason >&2; exit 3")); !errors.As(err, &exit) || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("a failure: %v", err)
	}
}

// TestMachine counts what processors did, but not that they waited.
func TestMachine(t *testing.T) {
	got, err := machineTime("cpu  100 20 3 4000000 500000 60 7 8000 100 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if want := (100 + 20 + 3 + 60 + 7) * 10 * time.Millisecond; err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, stat := range []string{"", "cpu  1 2 3", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 x 4 5 6 7 8\n"} {
		if _, err := machineTime(stat); err == nil {
			t.Errorf("%q was taken", stat)
		}
	}
	var used Usage
	took, cores, err := Busy(func() (err error) {
		used, err = Run(exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"))
		return err
	})
	// Both are counted in ticks.
	if spent := time.Duration(cores * float64(took)); err != nil || took < used.Wall || spent < used.CPU-20*time.Millisecond {
		t.Errorf("%v of %v, %v for a process that took %+v", spent, took, err, used)
	}
	failure := errors.New("it failed")
	if _, _, err := Busy(func() error { return failure }); !errors.Is(err, failure) {
		t.Errorf("a failure: %v", err)
	}
}

// TestAwait ends when the process does, and Stop says that it had.
func TestAwait(t *testing.T) {
	p, err := Start(exec.Command("false"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Await(t.Context(), func() error { return errors.New("not yet") }); err == nil || !strings.Contains(err.Error(), "ended before") {
		t.Error(err)
	}
	if p.Stop() == nil {
		t.Error("stopped a process that had ended")
	}
}

// TestStop ends a running process.
func TestStop(t *testing.T) {
	p, err := Start(exec.Command("sleep", "3600"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CPU(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}
