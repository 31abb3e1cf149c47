package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Component says how to run one program.
type Component struct {
	Name   string
	Binary string
	Args   []string
	// Env is added to the environment that all components have.
	Env []string
	// Ready returns nil once the component does its work; a nil Ready is
	// satisfied by the process having been started.
	Ready func(context.Context) error
	// Restarts is for sidecars that end by design when their driver goes
	// away, and that a kubelet would start again.
	Restarts bool
}

// States of a component.
const (
	Starting = "starting"
	Running  = "running"
	Died     = "died"
	Stopped  = "stopped"
)

// child is a component and its process.
type child struct {
	Component
	// ops is held while the component is stopped or started on request.
	ops   sync.Mutex
	extra []string
	state string
	// run is the process that runs now or ran last.
	run      *run
	restarts int
	// nextDelay is how long the next automatic restart waits.
	nextDelay time.Duration
}

// run is one process from start to end.
type run struct {
	cmd     *exec.Cmd
	started time.Time
	// exited is closed after end has been set.
	exited chan struct{}
	end    string
	// wanted says that the end was asked for. Guarded by the supervisor's mutex.
	wanted bool
}

// start starts the process with its output appended to the log file.
func start(launch func(*exec.Cmd) error, c Component, extra []string, logFile string, env []string) (*run, error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	args := append(append([]string{}, c.Args...), extra...)
	_, err = fmt.Fprintf(log, "--- %s: %s %s\n", time.Now().Format(time.RFC3339), c.Binary, strings.Join(args, " "))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.Name, err), log.Close())
	}
	cmd := exec.Command(c.Binary, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = log, log, slices.Concat(env, c.Env), "/"
	// A process group of its own: what a terminal sends to the supervisor is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = launch(cmd)
	if err = errors.Join(err, log.Close()); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	return &run{cmd: cmd, started: time.Now(), exited: make(chan struct{})}, nil
}

// wait blocks until the process has ended, and says how.
func (r *run) wait() {
	err := r.cmd.Wait()
	how := "exit status 0"
	if err != nil {
		how = err.Error()
	}
	r.end = fmt.Sprintf("%s after %s", how, time.Since(r.started).Round(100*time.Millisecond))
	close(r.exited)
}

func (r *run) pid() int { return r.cmd.Process.Pid }

// Tail returns the last n lines of a log file, each indented.
func Tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "    (" + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	lines = lines[max(0, len(lines)-n):]
	return "    " + strings.Join(lines, "\n    ")
}
