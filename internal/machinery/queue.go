package machinery

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// foreignShards is the number of library instances for claims that refer to another namespace.
const foreignShards = 2

// claimQueues are the queues of claims that refer to a ChangedBlockRange of their own namespace, and of those that refer to
// another one's. The latter have library instances of their own, because the library, when it is to follow such references,
// does nothing at all in a cluster without ReferenceGrants.
type claimQueues struct{ own, foreign []*claimQueue }

// newClaimQueues makes queues for shards instances, and those of other namespaces if there is a policy for them.
func newClaimQueues(shards int, gate *gate) *claimQueues {
	q := &claimQueues{}
	for i := range shards {
		q.own = append(q.own, newClaimQueue(i, shards, workqueue.NewTypedDelayingQueue[any](), gate.admitOwn))
	}
	for i := 0; i < foreignShards && gate.references != nil; i++ {
		q.foreign = append(q.foreign, newClaimQueue(i, foreignShards, workqueue.NewTypedDelayingQueue[any](), gate.admitForeign))
	}
	return q
}

func (q *claimQueues) all() []*claimQueue { return slices.Concat(q.own, q.foreign) }

// add adds a claim to its queue, which drops it if the claim may not be worked on.
func (q *claimQueues) add(claim types.NamespacedName) { q.addLater(claim, 0) }

// addLater adds a claim to its queue after d, unless the claim may not be worked on now.
func (q *claimQueues) addLater(claim types.NamespacedName, d time.Duration) {
	key := claimKey(claim)
	q.own[shardOf(key, len(q.own))].addLater(key, d)
	if len(q.foreign) > 0 {
		// Each drops what is the other's.
		q.foreign[shardOf(key, len(q.foreign))].addLater(key, d)
	}
}

// waitFor announces to the claim's queue that its sync ends in waiting, see claimQueue.waitFor.
func (q *claimQueues) waitFor(claim *corev1.PersistentVolumeClaim, d time.Duration) {
	queue, key := q.of(claim)
	queue.waitFor(key, d)
}

// addAfter adds a claim to its queue after d.
func (q *claimQueues) addAfter(claim *corev1.PersistentVolumeClaim, d time.Duration) {
	queue, key := q.of(claim)
	queue.AddAfter(key, d)
}

// of returns a claim's queue and its key in there.
func (q *claimQueues) of(claim *corev1.PersistentVolumeClaim) (*claimQueue, string) {
	key, queues := claimKey(nameOf(claim)), q.own
	if reference.Foreign(claim) {
		queues = q.foreign
	}
	return queues[shardOf(key, len(queues))], key
}

const (
	// errorBackoffBase and errorBackoffMax bound the wait after a sync that failed: API conflicts and the like.
	errorBackoffBase = 200 * time.Millisecond
	errorBackoffMax  = 10 * time.Second
)

// claimQueue is the workqueue of one library instance. The library adds every claim of the cluster whenever it changes,
// and adds a claim again with a growing delay, up to 16 minutes, while it is being populated. This queue keeps only
// the claims of its shard that may be worked on now, and waits as long as the provider functions asked for.
//
// It is safe for concurrent use.
type claimQueue struct {
	workqueue.TypedRateLimitingInterface[any]

	shard, shards int
	// admit decides from caches alone; it is asked when a key comes in and again when it goes out, because the library
	// creates a prime claim for whatever it is handed.
	admit func(key string) bool

	mu sync.Mutex
	// waits holds, for keys whose sync ends in waiting rather than failing, the longest wait until the next one.
	waits map[string]time.Duration
	busy  int
	// began is when the sync that runs was handed out; an instance runs one at a time.
	began   time.Time
	current string
	stopped bool
	idle    *sync.Cond
}

var _ workqueue.TypedRateLimitingInterface[any] = (*claimQueue)(nil)

// newClaimQueue makes the queue of one shard on top of a delaying queue, which it owns from then on.
func newClaimQueue(shard, shards int, delaying workqueue.TypedDelayingInterface[any], admit func(string) bool) *claimQueue {
	q := &claimQueue{
		TypedRateLimitingInterface: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[any](errorBackoffBase, errorBackoffMax),
			workqueue.TypedRateLimitingQueueConfig[any]{DelayingQueue: delaying},
		),
		shard:  shard,
		shards: shards,
		admit:  admit,
		waits:  map[string]time.Duration{},
	}
	q.idle = sync.NewCond(&q.mu)
	return q
}

// shardOf spreads keys evenly and the same way in every process, so that a new leader needs no handover.
func shardOf(key string, shards int) int {
	h := fnv.New32a()
	// A hash.Hash never returns an error.
	_, _ = h.Write([]byte(key))
	return int(h.Sum32() % uint32(shards))
}

// wanted reports whether item is a claim of this shard that may be worked on now.
func (q *claimQueue) wanted(item any) bool {
	key, ok := item.(string)
	return ok && shardOf(key, q.shards) == q.shard && q.admit(key)
}

// Add implements workqueue.TypedInterface. A claim that may not be worked on is dropped: a watch adds it again when that
// changes.
func (q *claimQueue) Add(item any) { q.addLater(item, 0) }

// addLater is Add after d, of what may be worked on now.
func (q *claimQueue) addLater(item any, d time.Duration) {
	switch {
	case !q.wanted(item):
	case d > 0:
		q.TypedRateLimitingInterface.AddAfter(item, d)
	default:
		q.TypedRateLimitingInterface.Add(item)
	}
}

// AddRateLimited implements workqueue.TypedRateLimitingInterface. The library calls it after a sync that failed and after
// one that waits; only the latter was announced by waitFor.
func (q *claimQueue) AddRateLimited(item any) {
	key, _ := item.(string)
	q.mu.Lock()
	wait, waiting := q.waits[key]
	delete(q.waits, key)
	q.mu.Unlock()
	if waiting {
		q.TypedRateLimitingInterface.Forget(item)
		q.TypedRateLimitingInterface.AddAfter(item, wait)
		return
	}
	q.TypedRateLimitingInterface.AddRateLimited(item)
}

// waitFor announces that the sync of key that runs now ends in waiting, for at most d.
func (q *claimQueue) waitFor(key string, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waits[key] = d
}

// Get implements workqueue.TypedInterface.
func (q *claimQueue) Get() (any, bool) {
	for {
		item, shutdown := q.TypedRateLimitingInterface.Get()
		if shutdown {
			return nil, true
		}
		if !q.wanted(item) {
			q.TypedRateLimitingInterface.Forget(item)
			q.TypedRateLimitingInterface.Done(item)
			continue
		}
		q.mu.Lock()
		stopped := q.stopped
		if !stopped {
			q.busy++
			q.began, q.current = time.Now(), item.(string)
			// What an earlier sync announced says nothing about this one.
			delete(q.waits, item.(string))
		}
		q.mu.Unlock()
		if stopped {
			q.TypedRateLimitingInterface.Done(item)
			return nil, true
		}
		return item, false
	}
}

// Done implements workqueue.TypedInterface.
func (q *claimQueue) Done(item any) {
	q.TypedRateLimitingInterface.Done(item)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	q.idle.Broadcast()
}

// stuck returns an error if one sync has been running for longer than limit: a sync makes a handful of API calls, so nothing
// moves in this shard any more.
func (q *claimQueue) stuck(limit time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy == 0 || time.Since(q.began) < limit {
		return nil
	}
	return fmt.Errorf("shard %d has been working on %s since %s", q.shard, q.current, q.began.UTC().Format(time.RFC3339))
}

// stop hands out no more keys and waits until the sync that runs, if any, has ended or ctx has.
func (q *claimQueue) stop(ctx context.Context) error {
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	q.TypedRateLimitingInterface.ShutDown()

	wake := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.idle.Broadcast()
	})
	defer wake()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.busy > 0 && ctx.Err() == nil {
		q.idle.Wait()
	}
	return ctx.Err()
}
