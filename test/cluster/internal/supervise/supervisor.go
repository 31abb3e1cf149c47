// Package supervise runs the cluster's components: it starts them in the
// cluster's namespaces, notices when one ends, and answers the other commands
// over a socket. It never hides a death; only sidecars that end by design are
// started again, and counted.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/host"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// ReadyTimeout bounds the wait for one component on a slow, busy machine.
const ReadyTimeout = 3 * time.Minute

// maxRestartDelay bounds the backoff of automatic restarts.
const maxRestartDelay = 5 * time.Second

// Supervisor owns the components.
type Supervisor struct {
	layout layout.Layout
	launch func(*exec.Cmd) error
	feed   *feed
	fail   context.CancelCauseFunc

	mu       sync.Mutex
	children []*child
	phase    string
	failure  string
	started  time.Time
	readyIn  time.Duration
}

// New returns a supervisor, and a context that ends when a component dies
// before the cluster is ready. launch starts a command in the namespaces.
func New(ctx context.Context, l layout.Layout) (*Supervisor, context.Context) {
	ctx, fail := context.WithCancelCause(ctx)
	return &Supervisor{layout: l, feed: newFeed(), fail: fail, phase: Starting, started: time.Now()}, ctx
}

// Launch sets how a command is started. Nothing is started before.
func (s *Supervisor) Launch(launch func(*exec.Cmd) error) { s.launch = launch }

// Say reports progress.
func (s *Supervisor) Say(format string, args ...any) {
	s.feed.add(Event{Kind: Line, Text: fmt.Sprintf(format, args...)})
}

// Step runs f and reports what was done and how long it took.
func (s *Supervisor) Step(what string, f func() error) error {
	started := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s.Say("%s ready %.1f s", what, time.Since(started).Seconds())
	return nil
}

// Finish says that the start is over, well or with an error.
func (s *Supervisor) Finish(err error) {
	s.mu.Lock()
	s.readyIn = time.Since(s.started)
	s.phase = Ready
	if err != nil {
		s.phase, s.failure = Failed, err.Error()
	}
	s.mu.Unlock()
	if err != nil {
		s.feed.add(Event{Kind: Failed, Text: err.Error()})
		return
	}
	s.feed.add(Event{Kind: Ready, Text: fmt.Sprintf("cluster ready %.1f s", s.readyIn.Seconds())})
}

// Start starts a component and waits until it is ready. extra are arguments
// beside the component's own.
func (s *Supervisor) Start(ctx context.Context, c Component, extra ...string) error {
	ch := &child{Component: c, extra: extra, state: Starting}
	s.mu.Lock()
	s.children = append(s.children, ch)
	s.mu.Unlock()
	return s.Step(c.Name, func() error { return s.startChild(ctx, ch) })
}

// startChild starts the process and waits until it is ready or has ended.
func (s *Supervisor) startChild(ctx context.Context, ch *child) error {
	s.mu.Lock()
	r, err := start(s.launch, ch.Component, ch.extra, s.layout.Log(ch.Name), []string{"PATH=" + host.Path(), "HOME=" + s.layout.State})
	if err != nil {
		ch.state = Died
		s.mu.Unlock()
		return err
	}
	ch.run, ch.state = r, Starting
	s.mu.Unlock()
	// A later restart must not end with the request that made this start.
	life := context.WithoutCancel(ctx)
	go func() {
		r.wait()
		s.ended(life, ch, r)
	}()
	if ch.Ready != nil {
		if err := s.awaitReady(ctx, ch, r); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch.run == r && ch.state == Starting {
		ch.state = Running
	}
	return nil
}

func (s *Supervisor) awaitReady(ctx context.Context, ch *child, r *run) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ReadyTimeout, fmt.Errorf("%s is not ready after %s", ch.Name, ReadyTimeout))
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-r.exited:
			cancel()
		case <-ended:
		}
	}()
	err := kube.Until(ctx, ch.Ready)
	select {
	case <-r.exited:
		return s.obituary(ch.Name, r)
	default:
	}
	if err != nil {
		return fmt.Errorf("%w; its log is %s", err, s.layout.Log(ch.Name))
	}
	return nil
}

// obituary is what there is to say about a component that has died.
func (s *Supervisor) obituary(name string, r *run) error {
	log := s.layout.Log(name)
	return fmt.Errorf("%s died (%s); the end of its log %s:\n%s", name, r.end, log, Tail(log, 15))
}

// ended notes the end of a process, and starts it again where that is by design.
func (s *Supervisor) ended(ctx context.Context, ch *child, r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch.run != r {
		return
	}
	if r.wanted {
		ch.state = Stopped
		return
	}
	ch.state = Died
	if s.phase == Starting {
		s.fail(s.obituary(ch.Name, r))
		return
	}
	if !ch.Restarts {
		return
	}
	// A sidecar that ran for a while starts over with a short delay.
	if ch.nextDelay == 0 || time.Since(r.started) > 30*time.Second {
		ch.nextDelay = 250 * time.Millisecond
	}
	delay := ch.nextDelay
	ch.nextDelay = min(2*delay, maxRestartDelay)
	time.AfterFunc(delay, func() { s.revive(ctx, ch, r) })
}

// revive starts a sidecar again unless somebody else has meanwhile.
func (s *Supervisor) revive(ctx context.Context, ch *child, dead *run) {
	ch.ops.Lock()
	defer ch.ops.Unlock()
	s.mu.Lock()
	if ch.run != dead || ch.state != Died {
		s.mu.Unlock()
		return
	}
	ch.restarts++
	s.mu.Unlock()
	// Its failure is in the component's state and log, where `cluster status` looks.
	_ = s.startChild(ctx, ch)
}

func (s *Supervisor) child(name string) (*child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range s.children {
		if ch.Name == name {
			return ch, nil
		}
	}
	return nil, fmt.Errorf("component %q is not running here", name)
}

// Kill ends a component with a signal and leaves it stopped.
func (s *Supervisor) Kill(name string, signal syscall.Signal) error {
	ch, err := s.child(name)
	if err != nil {
		return err
	}
	ch.ops.Lock()
	defer ch.ops.Unlock()
	return s.stop(ch, signal)
}

// Restart ends a component and starts it again. With replace, its extra
// arguments become args.
func (s *Supervisor) Restart(ctx context.Context, name string, signal syscall.Signal, replace bool, args []string) error {
	ch, err := s.child(name)
	if err != nil {
		return err
	}
	ch.ops.Lock()
	defer ch.ops.Unlock()
	if err := s.stop(ch, signal); err != nil {
		return err
	}
	s.mu.Lock()
	if replace {
		ch.extra = args
	}
	ch.restarts++
	s.mu.Unlock()
	return s.startChild(ctx, ch)
}

// stop signals the process and waits for its end. One that outlives a
// gentle signal for ten seconds is killed.
func (s *Supervisor) stop(ch *child, signal syscall.Signal) error {
	s.mu.Lock()
	r := ch.run
	over := r == nil || ch.state == Died || ch.state == Stopped
	if over {
		ch.state = Stopped
	} else {
		r.wanted = true
	}
	s.mu.Unlock()
	if over {
		return nil
	}
	if err := r.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", ch.Name, err)
	}
	select {
	case <-r.exited:
	case <-time.After(10 * time.Second):
		if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill %s: %w", ch.Name, err)
		}
		<-r.exited
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ch.state = Stopped
	return nil
}
