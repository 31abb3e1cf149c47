package machinery

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func newTestSlots(total, perDriver int) (*slots, *[]string) {
	woken := &[]string{}
	return newSlots(total, perDriver, func(claim types.NamespacedName) { *woken = append(*woken, claim.String()) }), woken
}

func want(namespace, name, driver string) slot {
	return slot{pod: namespace + "-" + name, claim: types.NamespacedName{Namespace: namespace, Name: name}, driver: driver}
}

func TestSlotsBoundAndWake(t *testing.T) {
	s, woken := newTestSlots(2, 2)
	for name, ok := range map[string]bool{"a": true} {
		if s.acquire(want("ns", name, "d")) != ok {
			t.Fatalf("slot for %s: want %v", name, ok)
		}
	}
	if !s.acquire(want("ns", "b", "d")) || s.acquire(want("ns", "c", "d")) || s.acquire(want("ns", "d", "d")) {
		t.Fatal("two slots must be given, no third")
	}
	if !s.acquire(want("ns", "a", "d")) {
		t.Error("asking again for a slot that is held must be free")
	}
	s.release("ns-a")
	if !slices.Equal(*woken, []string{"ns/c"}) {
		t.Fatalf("woken %v, want the one that waited longest", *woken)
	}
	// c does not come back: giving its slot back wakes the next.
	s.release("ns-c")
	if !slices.Equal(*woken, []string{"ns/c", "ns/d"}) {
		t.Errorf("woken %v, want d after c gave its slot back", *woken)
	}
}

func TestSlotsPerDriver(t *testing.T) {
	s, woken := newTestSlots(3, 1)
	if !s.acquire(want("ns", "a", "slow")) || s.acquire(want("ns", "b", "slow")) {
		t.Fatal("one slot per driver must be given")
	}
	if !s.acquire(want("ns", "c", "quick")) {
		t.Error("a claim of another driver must not wait for the slow one")
	}
	s.release("ns-c")
	if len(*woken) != 0 {
		t.Errorf("woken %v although the slow driver has no slot", *woken)
	}
	s.release("ns-a")
	if !slices.Equal(*woken, []string{"ns/b"}) {
		t.Errorf("woken %v, want ns/b", *woken)
	}
}

func TestSlotsAreFairBetweenNamespaces(t *testing.T) {
	s, woken := newTestSlots(2, 2)
	s.acquire(want("big", "1", "d"))
	s.acquire(want("big", "2", "d"))
	for i := 3; i < 6; i++ {
		s.acquire(want("big", fmt.Sprint(i), "d"))
	}
	s.acquire(want("small", "1", "d"))
	s.release("big-1")
	if !slices.Equal(*woken, []string{"small/1"}) {
		t.Errorf("woken %v, want the namespace that holds nothing", *woken)
	}
}

func TestSlotsFollowPods(t *testing.T) {
	s, woken := newTestSlots(1, 1)
	pod := populatorPod(sampleConfig(), sampleSource(), sampleTarget())
	pod.Status.Phase = corev1.PodPending
	s.observe(pod)
	if s.acquire(want("ns", "b", "d")) {
		t.Fatal("a slot was given although another process's pod holds it")
	}
	s.observe(endedPod(t, corev1.PodFailed, outcome.StreamFailed))
	if !slices.Equal(*woken, []string{"ns/b"}) {
		t.Errorf("woken %v, want ns/b", *woken)
	}
}

// TestOfferIsTakenBack: the library may never look at the claim for which a slot was kept.
func TestOfferIsTakenBack(t *testing.T) {
	s, woken := newTestSlots(1, 1)
	var offers []func()
	s.later = func(after time.Duration, do func()) {
		if after != offerFor {
			t.Errorf("an offer holds for %v", after)
		}
		offers = append(offers, do)
	}
	s.acquire(want("ns", "a", "d"))
	for _, name := range []string{"b", "c"} {
		s.acquire(want("ns", name, "d"))
	}
	s.release("ns-a")
	offers[0]()
	if !slices.Equal(*woken, []string{"ns/b", "ns/c"}) {
		t.Fatalf("woken %v, want c after b did not come", *woken)
	}
	if !s.acquire(want("ns", "c", "d")) {
		t.Fatal("c does not get what it was offered")
	}
	offers[1]()
	if _, held := s.held["ns-c"]; !held {
		t.Error("a slot that was taken is taken back")
	}
	if s.acquire(want("ns", "b", "d")) {
		t.Error("b comes too late and gets a slot all the same")
	}
}

func TestContended(t *testing.T) {
	s, _ := newTestSlots(2, 1)
	s.acquire(want("ns", "a", "d"))
	s.acquire(want("ns", "b", "other"))
	if s.contended("ns-a", noon) || s.contended("ns-x", noon) {
		t.Error("nobody waits")
	}
	s.acquire(want("ns", "c", "d"))
	if !s.contended("ns-a", noon) || s.contended("ns-b", noon) {
		t.Error("c waits for a's slot, and could not have b's")
	}
	if len(s.held) != 2 {
		t.Errorf("%v are held after the question", s.held)
	}
}

func TestStreamsAreShared(t *testing.T) {
	s, _ := newTestSlots(10, 10)
	take := func(w slot, most, want int) {
		t.Helper()
		if !s.acquire(w) {
			t.Fatalf("no slot for %s", w.pod)
		}
		if got := s.share(w.pod, most, 9); got != want {
			t.Errorf("%s: %d streams, want %d", w.pod, got, want)
		}
	}
	take(want("ns", "a", "slow"), 4, 4)
	take(want("ns", "a", "slow"), 4, 4) // asked again
	take(want("ns", "b", "quick"), 4, 4)
	take(want("ns", "c", "slow"), 4, 4)
	take(want("ns", "d", "slow"), 4, 1)
	take(want("ns", "e", "slow"), 4, 1)
	s.release("ns-a")
	take(want("ns", "f", "slow"), 2, 2)
	take(want("ns", "g", "slow"), 4, 1)

	// Another process's pod counts with what it was allowed.
	s, _ = newTestSlots(10, 10)
	pod := populatorPod(sampleConfig(), sampleSource(), sampleTarget())
	s.observe(pod)
	if n := s.held[pod.Name].streams; n != sampleTarget().streams {
		t.Fatalf("the pod is seen with %d streams", n)
	}
	take(want("ns", "h", sampleDriver), 9, 5)

	// Its populator has ended, and the kubelet has not taken it down yet.
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: v1alpha1.ContainerPopulate, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}},
	}}
	s.observe(pod)
	if _, held := s.held[pod.Name]; held {
		t.Error("a pod whose populator has ended holds a slot")
	}
}

// TestSlotsNeverExceedOrStall applies random operations and checks the bounds, and that no one waits while a slot is free.
func TestSlotsNeverExceedOrStall(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s, _ := newTestSlots(5, 3)
	for range 20000 {
		w := want(fmt.Sprint("ns", rnd.IntN(3)), fmt.Sprint(rnd.IntN(8)), fmt.Sprint("driver", rnd.IntN(3)))
		w.driver = fmt.Sprint("driver", len(w.pod)%2)
		if rnd.IntN(2) == 0 {
			s.acquire(w)
		} else {
			s.release(w.pod)
		}
		perDriver := map[string]int{}
		for _, h := range s.held {
			perDriver[h.driver]++
			if perDriver[h.driver] > 3 {
				t.Fatalf("driver %s holds %d slots", h.driver, perDriver[h.driver])
			}
		}
		if len(s.held) > 5 {
			t.Fatalf("%d slots are held", len(s.held))
		}
		for _, waiting := range s.waiting {
			if s.fits(waiting) {
				t.Fatalf("%v waits although a slot is free", waiting)
			}
		}
	}
}
