package supervise

import (
	"context"
	"sync"
	"time"
)

// Status is what `cluster status` shows.
type Status struct {
	Pid        int
	Phase      string
	Failure    string
	Started    time.Time
	ReadyIn    time.Duration
	Components []ComponentStatus
}

// ComponentStatus is one component's line.
type ComponentStatus struct {
	Name     string
	State    string
	Pid      int
	Since    time.Time
	Restarts int
	// End says how the last process ended, if none runs.
	End string
	// Trouble says why a running component does not do its work.
	Trouble string
	// Args are the arguments beside the component's own.
	Args []string
}

// Healthy says that the start is over and everything runs and works.
func (s Status) Healthy() bool {
	return s.Phase == Ready && len(s.Sick()) == 0
}

// Sick returns the components that do not run or do not work.
func (s Status) Sick() []ComponentStatus {
	var sick []ComponentStatus
	for _, c := range s.Components {
		if c.State == Died || c.State == Stopped || (c.Trouble != "" && s.Phase != Starting) {
			sick = append(sick, c)
		}
	}
	return sick
}

// Status asks every running component whether it works.
func (s *Supervisor) Status(ctx context.Context, pid int) Status {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	s.mu.Lock()
	status := Status{Pid: pid, Phase: s.phase, Failure: s.failure, Started: s.started, ReadyIn: s.readyIn}
	status.Components = make([]ComponentStatus, len(s.children))
	var checks sync.WaitGroup
	for i, ch := range s.children {
		c := ComponentStatus{Name: ch.Name, State: ch.state, Restarts: ch.restarts, Args: ch.extra}
		if ch.run != nil {
			c.Since, c.Pid = ch.run.started, ch.run.pid()
			select {
			case <-ch.run.exited:
				c.End, c.Pid = ch.run.end, 0
			default:
			}
		}
		status.Components[i] = c
		if ch.state == Running && ch.Ready != nil {
			checks.Add(1)
			go func() {
				defer checks.Done()
				if err := ch.Ready(ctx); err != nil {
					status.Components[i].Trouble = err.Error()
				}
			}()
		}
	}
	s.mu.Unlock()
	checks.Wait()
	return status
}
