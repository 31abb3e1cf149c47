package machinery

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// refusedBench is a queue and a recorder like the library's.
type refusedBench struct {
	libraryRecorder
	clock *testclock.FakePassiveClock
	queue *claimQueue
	asked *recordingQueue
	claim *corev1.PersistentVolumeClaim
}

func newRefusedBench(t *testing.T) *refusedBench {
	t.Helper()
	b := &refusedBench{clock: testclock.NewFakePassiveClock(noon), claim: sampleTarget().claim}
	b.queue, b.asked = newTestQueue(t, admitAll)
	queues := &claimQueues{own: []*claimQueue{b.queue}}
	b.libraryRecorder = libraryRecorder{
		events: newEvents(&eventLog{}, nil), refused: newRefusals(b.clock, 1), settling: newSettling(b.clock), wait: queues.waitFor,
	}
	b.queue.Add(claimKey(nameOf(b.claim)))
	return b
}

// fail does what the library does with a claim whose prime claim it cannot create, and returns the delay that the queue is given.
func (b *refusedBench) fail(t *testing.T, err error) time.Duration {
	t.Helper()
	key := take(t, b.queue)
	b.Eventf(b.claim, corev1.EventTypeWarning, libraryReasonPrime, "Failed to create populator pvcPrime: %s", err)
	b.queue.AddRateLimited(key)
	b.queue.Done(key)
	return b.asked.delays[len(b.asked.delays)-1]
}

func exceededQuota() error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: "persistentvolumeclaims"}, "prime", errors.New("exceeded quota"))
}

// TestRefusedPrimeClaimWaitsLongerEachTime, so that it does not use up what the library may ask of the API server.
func TestRefusedPrimeClaimWaitsLongerEachTime(t *testing.T) {
	b := newRefusedBench(t)
	var got []time.Duration
	refuse := func(times int) {
		for range times {
			got = append(got, b.fail(t, exceededQuota()))
			b.clock.SetTime(b.clock.Now().Add(got[len(got)-1]))
		}
	}
	refuse(8)
	// What passes by itself has nothing to do with it.
	got = append(got, b.fail(t, apierrors.NewServerTimeout(schema.GroupResource{Resource: "persistentvolumeclaims"}, "create", 1)))
	refuse(1)
	// A change may not have reached the API server. It is no reason to begin anew.
	b.refused.take()
	refuse(2)
	b.refused.acceptedPrime(b.claim.UID)
	refuse(2)
	b.refused.remove(b.claim.UID)
	refuse(1)
	want := []time.Duration{
		10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 320 * time.Second, safetyNet, safetyNet,
		errorBackoffBase, safetyNet,
		refusedPrimeWait, safetyNet,
		10 * time.Second, 20 * time.Second,
		10 * time.Second,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("delays differ (-want +got):\n%s", diff)
	}
}

// TestClaimWithAPrimeClaimBeginsAnew: the library calls a provider function only when there is one.
func TestClaimWithAPrimeClaimBeginsAnew(t *testing.T) {
	b := newBench(t, nil, interceptor.Funcs{})
	for range 3 {
		b.refused.addPrime(b.target.claim)
	}
	if err := b.populateOnce(); !errors.Is(err, errWaiting) {
		t.Fatalf("populate: %v, want waiting", err)
	}
	if wait := b.refused.addPrime(b.target.claim); wait != refusedPrimeWait {
		t.Errorf("a prime claim that is refused for the first time waits %v, want %v", wait, refusedPrimeWait)
	}
}

// TestManyRefusedPrimeClaimsTakeTurns: 4,000 claims of one tenant leave at least three requests in five to all others, whether
// time passes or quotas change all the time.
func TestManyRefusedPrimeClaimsTakeTurns(t *testing.T) {
	const claims, shards, perSecond = 4000, 8, 8
	clock := testclock.NewFakePassiveClock(noon)
	r := newRefusals(clock, shards)
	claim := func(n int) *corev1.PersistentVolumeClaim {
		c := sampleTarget().claim
		c.Name, c.UID = fmt.Sprint(n), types.UID(fmt.Sprint(n))
		return c
	}
	for n := range claims {
		r.addPrime(claim(n))
	}
	for n := range claims {
		if wait, least := r.addPrime(claim(n)), claims/perSecond*time.Second; wait < least {
			t.Fatalf("claim %d of %d waits %v, want at least %v", n, claims, wait, least)
		}
	}
	woken := r.take()
	slices.SortFunc(woken, func(a, b wokenClaim) int { return int(a.after - b.after) })
	for i, w := range woken {
		if want := time.Duration(i) * time.Second / perSecond; w.after != want {
			t.Fatalf("claim %d of %d is woken after %v, want %v", i, len(woken), w.after, want)
		}
	}
	if len(woken) != claims {
		t.Fatalf("%d claims are woken, want %d", len(woken), claims)
	}
	// The first is refused once more, and the quota changes again: it lines up behind those that have not had their turn.
	clock.SetTime(noon.Add(time.Minute))
	r.addPrime(claim(0))
	if again, want := r.take(), claims/perSecond*time.Second-time.Minute; len(again) != 1 || again[0].after != want {
		t.Errorf("woken again: %v, want one claim after %v", again, want)
	}
	// Those that do not come back are forgotten.
	clock.SetTime(noon.Add(time.Hour))
	r.addPrime(claim(0))
	if len(r.primes) != 1 {
		t.Errorf("%d claims are remembered, want those of the last minutes only", len(r.primes))
	}
}

// TestWokenLater looks whether claims that are woken one after the other reach their queue.
func TestWokenLater(t *testing.T) {
	b := newRefusedBench(t)
	w := &waker{refused: b.refused, wakeAfter: (&claimQueues{own: []*claimQueue{b.queue}}).addLater}
	other := b.claim.DeepCopy()
	other.Name, other.UID = "other", "uid-other"
	take(t, b.queue)
	b.queue.Done(claimKey(nameOf(b.claim)))
	for _, claim := range []*corev1.PersistentVolumeClaim{b.claim, other} {
		b.refused.addPrime(claim)
	}
	w.onPolicy().OnUpdate(quota("1", "1"), quota("2", "1"))
	if want := []time.Duration{time.Second}; !slices.Equal(b.asked.delays, want) || b.queue.Len() != 2 {
		t.Errorf("%d claims are queued, of which some after %v; want two, the second after %v", b.queue.Len(), b.asked.delays, want)
	}
}
