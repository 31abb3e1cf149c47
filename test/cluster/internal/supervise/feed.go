package supervise

import (
	"context"
	"sync"
)

// Event is one line of progress, or the end of the start.
type Event struct {
	// Kind is Line, Ready or Failed; nothing follows the last two.
	Kind string
	Text string
}

// Kinds of events.
const (
	Line   = "line"
	Ready  = "ready"
	Failed = "failed"
)

// feed keeps every event, so that whoever comes late reads them all.
type feed struct {
	mu     sync.Mutex
	events []Event
	fresh  chan struct{}
}

func newFeed() *feed { return &feed{fresh: make(chan struct{})} }

func (f *feed) add(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
	close(f.fresh)
	f.fresh = make(chan struct{})
}

// after returns the events from the nth on, and waits for one if there is none.
func (f *feed) after(ctx context.Context, n int) ([]Event, error) {
	for {
		f.mu.Lock()
		events, fresh := f.events, f.fresh
		f.mu.Unlock()
		if n < len(events) {
			return events[n:], nil
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
