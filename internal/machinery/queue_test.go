package machinery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/util/workqueue"
)

// take returns the next key of q, which must come without the clock being moved.
func take(t *testing.T, q *claimQueue) string {
	t.Helper()
	got := make(chan any, 1)
	go func() {
		item, _ := q.Get()
		got <- item
	}()
	select {
	case item := <-got:
		key, _ := item.(string)
		return key
	case <-time.After(10 * time.Second):
		t.Fatal("no key came out of the queue")
		return ""
	}
}

// recordingQueue records the delays that it is asked for, and adds the item at once.
type recordingQueue struct {
	workqueue.TypedDelayingInterface[any]
	delays []time.Duration
}

// AddAfter implements workqueue.TypedDelayingInterface.
func (r *recordingQueue) AddAfter(item any, d time.Duration) {
	r.delays = append(r.delays, d)
	r.Add(item)
}

func newTestQueue(t *testing.T, admit func(string) bool) (*claimQueue, *recordingQueue) {
	t.Helper()
	delaying := &recordingQueue{TypedDelayingInterface: workqueue.NewTypedDelayingQueue[any]()}
	q := newClaimQueue(0, 1, delaying, admit)
	t.Cleanup(q.ShutDown)
	return q, delaying
}

func admitAll(string) bool { return true }

func TestQueueKeepsOnlyItsShard(t *testing.T) {
	const shards, keys = 4, 400
	perShard := make([]int, shards)
	queues := make([]*claimQueue, shards)
	for i := range queues {
		queues[i] = newClaimQueue(i, shards, workqueue.NewTypedDelayingQueue[any](), admitAll)
		defer queues[i].ShutDown()
	}
	for n := range keys {
		for _, q := range queues {
			q.Add(fmt.Sprintf("pvc/ns/claim-%d", n))
		}
	}
	total := 0
	for i, q := range queues {
		perShard[i] = q.Len()
		total += q.Len()
	}
	if total != keys {
		t.Errorf("%d keys in %d queues %v, want each of %d in exactly one", total, shards, perShard, keys)
	}
	for i, n := range perShard {
		if n < keys/shards/2 {
			t.Errorf("shard %d has %d of %d keys: %v", i, n, keys, perShard)
		}
	}
}

func TestQueueAsksTheGateTwice(t *testing.T) {
	var open atomic.Bool
	q, _ := newTestQueue(t, func(key string) bool { return key != "pvc/ns/gated" || open.Load() })
	q.Add("pvc/ns/gated")
	q.Add(42)
	if q.Len() != 0 {
		t.Fatalf("%d keys are queued although the gate is closed", q.Len())
	}
	open.Store(true)
	q.Add("pvc/ns/gated")
	q.Add("pvc/ns/other")
	open.Store(false)
	if got := take(t, q); got != "pvc/ns/other" {
		t.Errorf("got %q, want the key whose gate is still open", got)
	}
	q.Done("pvc/ns/other")
	if q.Len() != 0 || q.NumRequeues("pvc/ns/gated") != 0 {
		t.Error("the key whose gate closed is still there")
	}
}

func TestQueueBacksOffAfterErrors(t *testing.T) {
	q, delaying := newTestQueue(t, admitAll)
	const key = "pvc/ns/claim"
	q.Add(key)
	for range 8 {
		take(t, q)
		q.AddRateLimited(key)
		q.Done(key)
	}
	want := []time.Duration{
		200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond,
		6400 * time.Millisecond, 10 * time.Second, 10 * time.Second,
	}
	if diff := cmp.Diff(want, delaying.delays); diff != "" {
		t.Errorf("delays differ (-want +got):\n%s", diff)
	}
	q.Forget(key)
	if q.NumRequeues(key) != 0 {
		t.Error("the backoff was not reset")
	}
}

func TestQueueWaitsAsAnnounced(t *testing.T) {
	q, delaying := newTestQueue(t, admitAll)
	const key = "pvc/ns/claim"
	q.Add(key)
	// A failure, a wait that was announced, and then a failure again: the wait resets the backoff and is not used twice.
	for _, announced := range []time.Duration{0, time.Minute, 0} {
		take(t, q)
		if announced > 0 {
			q.waitFor(key, announced)
		}
		q.AddRateLimited(key)
		q.Done(key)
	}
	// A wait that a sync announced and did not use is not the next one's.
	take(t, q)
	q.waitFor(key, time.Hour)
	q.Add(key)
	q.Done(key)
	take(t, q)
	q.AddRateLimited(key)
	q.Done(key)
	want := []time.Duration{errorBackoffBase, time.Minute, errorBackoffBase, 2 * errorBackoffBase}
	if diff := cmp.Diff(want, delaying.delays); diff != "" {
		t.Errorf("delays differ (-want +got):\n%s", diff)
	}
}

func TestQueueStopWaitsForTheRunningSync(t *testing.T) {
	q, _ := newTestQueue(t, admitAll)
	q.Add("pvc/ns/running")
	q.Add("pvc/ns/queued")
	running := take(t, q)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := q.stop(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("stop with a sync running and no time left: %v, want %v", err, context.Canceled)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- q.stop(context.Background()) }()
	if _, shutdown := q.Get(); !shutdown {
		t.Error("a key was handed out after the stop")
	}
	select {
	case err := <-stopped:
		t.Fatalf("stop returned (%v) while a sync was running", err)
	default:
	}
	q.Done(running)
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestStuck(t *testing.T) {
	q := newClaimQueue(0, 1, workqueue.NewTypedDelayingQueue[any](), func(string) bool { return true })
	defer q.ShutDown()
	if err := q.stuck(0); err != nil {
		t.Errorf("an idle queue is stuck: %v", err)
	}
	q.Add("pvc/demo/list")
	item, _ := q.Get()
	if err := q.stuck(time.Hour); err != nil {
		t.Errorf("a sync that has just begun is stuck: %v", err)
	}
	if err := q.stuck(0); err == nil || !strings.Contains(err.Error(), "pvc/demo/list") {
		t.Errorf("a sync that takes too long: %v, want one that names it", err)
	}
	q.Done(item)
	if err := q.stuck(0); err != nil {
		t.Errorf("after the sync: %v", err)
	}
}
