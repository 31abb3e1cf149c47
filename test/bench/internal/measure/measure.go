// Package measure runs programs as child processes and tells what they used.
package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Usage is what a process used.
type Usage struct {
	// Wall is from its start to its end, CPU its time on processors, in user and system mode.
	Wall, CPU time.Duration
	// Peak is its largest resident memory, in bytes.
	Peak int64
}

// Run runs cmd to its end. An error names the command and holds what it wrote to standard error.
func Run(cmd *exec.Cmd) (Usage, error) {
	p, err := Start(cmd)
	if err != nil {
		return Usage{}, err
	}
	return p.Wait()
}

// Process is a running child.
type Process struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	begin  time.Time
	// ended is closed at the end; err says how that was.
	ended chan struct{}
	err   error
}

// Start starts cmd. Its standard error is kept for the error of Wait.
func Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, stderr: &bytes.Buffer{}, begin: time.Now(), ended: make(chan struct{})}
	cmd.Stderr = p.stderr
	// A child must not outlive a bench that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// sampleEvery is how often a running process' peak is looked up. The rusage of the ended process is no use: it includes
// the memory that the parent had when it forked.
const sampleEvery = 5 * time.Millisecond

// Wait waits for the end.
func (p *Process) Wait() (Usage, error) {
	var u Usage
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-p.ended:
			u.Wall = time.Since(p.begin)
			u.CPU = p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
			if p.err != nil {
				return u, fmt.Errorf("%s: %w\n%s", strings.Join(p.cmd.Args, " "), p.err, lastLines(p.stderr.String()))
			}
			return u, nil
		case <-ticker.C:
			u.Peak = max(u.Peak, Peak(p.cmd.Process.Pid))
		}
	}
}

// Stop ends the process and waits for it. It returns an error if the process had ended before, by itself.
func (p *Process) Stop() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s had ended: %s\n%s", p.cmd.Path, p.cmd.ProcessState, lastLines(p.stderr.String()))
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(10 * time.Second):
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", p.cmd.Path, err)
	}
	<-p.ended
	return nil
}

// Await waits until ready returns nil; it gives up when the process ends or ctx does.
func (p *Process) Await(ctx context.Context, ready func() error) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended before it was ready: %w\n%s", p.cmd.Path, errors.Join(p.err, err), lastLines(p.stderr.String()))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (%w)\n%s", p.cmd.Path, ctx.Err(), err, lastLines(p.stderr.String()))
		case <-ticker.C:
		}
	}
}

// CPU returns the user and system time of the running process so far.
func (p *Process) CPU() (time.Duration, error) { return processTime(p.cmd.Process.Pid) }

// processTime reads the user and system time of a process, in the kernel's ticks of 10 ms.
func processTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	// The name in parentheses may hold spaces; user and system time are fields 14 and 15.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("read CPU time: %q", data)
	}
	return ticks(fields[11:13]...)
}

// ticks sums up CPU times that the kernel tells in ticks of 10 ms.
func ticks(counts ...string) (time.Duration, error) {
	var sum time.Duration
	for _, count := range counts {
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}

// Peak returns the largest resident memory of a running process so far, in bytes; 0 if it has ended.
func Peak(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// Busy calls run, which is to take a while, and returns how long that took, and how many of the machine's processors were busy
// meanwhile on average, whoever with.
func Busy(run func() error) (took time.Duration, cores float64, err error) {
	before, err := machine()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := run(); err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	after, err := machine()
	return took, float64(after-before) / float64(took), err
}

// machine returns the CPU time that all of the machine's processors have spent on anything so far, in the kernel's ticks of 10 ms.
func machine() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	return machineTime(string(data))
}

// machineTime sums up the first line of /proc/stat, but for the times in which nothing was done or another machine had the processor:
// user, nice, system, idle, iowait, irq, softirq, steal; what follows is a part of user.
func machineTime(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the machine's CPU time: %q", line)
	}
	return ticks(append(fields[1:4:4], fields[6:8]...)...)
}

// Self returns the CPU time that this process used so far.
func Self() (time.Duration, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, fmt.Errorf("read own CPU time: %w", err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}

// Median returns the middle of values, the mean of two if their number is even; 0 of none.
func Median[T ~int64 | ~float64](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func lastLines(s string) string {
	const most = 2000
	return s[max(0, len(s)-most):]
}
