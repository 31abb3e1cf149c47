package machinery

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
)

// offerFor is how long a slot is kept for a claim that was woken for it. The library may never look for one: the node that the
// scheduler chose for the claim may be gone again. It is long beside the time that a claim waits in its queue.
const offerFor = 5 * time.Minute

// slots bounds the populators that have not ended, in all and per driver. A claim that finds no slot waits; when one
// becomes free it is offered to the claim whose namespace holds the fewest, the one that asked first among equals, and that
// claim is woken. Whoever takes a slot and creates no pod gives it back. It is safe for concurrent use.
type slots struct {
	total, perDriver int
	// wake adds a claim's key to its queue.
	wake func(types.NamespacedName)
	// later calls do after a while.
	later func(after time.Duration, do func())

	mu sync.Mutex
	// held maps the name of a pod whose populator has not ended, or that is about to be created, to what it counts against.
	held    map[string]slot
	waiting []slot
	// offers counts the slots that were offered.
	offers int
}

// slot is a pod, the claim that it fills, and the driver that it asks.
type slot struct {
	pod    string
	claim  types.NamespacedName
	driver string
	// streams is the number of streams that the pod may read at once; 0 as long as that is open.
	streams int
	// offer is the number of an offer that the claim has not taken yet; 0: it asked and has the slot.
	offer int
	// going is until when the pod is taken for one that gives its slot up; zero: it does not.
	going time.Time
}

// goingFor is how long it is believed of a pod that it will be gone: longer than it takes, unless its node is lost.
const goingFor = time.Minute

func newSlots(total, perDriver int, wake func(types.NamespacedName)) *slots {
	return &slots{
		total: total, perDriver: perDriver, wake: wake, held: map[string]slot{},
		later: func(after time.Duration, do func()) { time.AfterFunc(after, do) },
	}
}

// acquire takes a slot and reports whether there was one; if not, the claim waits for one and is woken. Asking again for
// the same pod is free.
func (s *slots) acquire(want slot) bool {
	s.mu.Lock()
	var granted []slot
	_, ok := s.held[want.pod]
	if !ok {
		if !slices.ContainsFunc(s.waiting, func(w slot) bool { return w.pod == want.pod }) {
			s.waiting = append(s.waiting, want)
		}
		granted = s.grant()
	}
	own, ok := s.held[want.pod]
	if ok {
		own.offer = 0
		s.held[want.pod] = own
	}
	s.mu.Unlock()
	s.offerAll(granted, want.pod)
	return ok
}

// withdraw takes an offer back that its claim has not taken.
func (s *slots) withdraw(offered slot) {
	s.mu.Lock()
	var granted []slot
	if s.held[offered.pod].offer == offered.offer {
		delete(s.held, offered.pod)
		granted = s.grant()
	}
	s.mu.Unlock()
	s.offerAll(granted, "")
}

// contended reports whether a claim waits that could have the slot of pod, and for which no other pod goes. It takes note that
// this one does then; the next change of the pod withdraws that, unless it is being deleted.
func (s *slots) contended(pod string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	own, ok := s.held[pod]
	if !ok {
		return false
	}
	staying := maps.Clone(s.held)
	maps.DeleteFunc(staying, func(name string, h slot) bool { return name != pod && h.going.After(now) })
	without := s.served(staying)
	delete(staying, pod)
	if s.served(staying) == without {
		return false
	}
	own.going = now.Add(goingFor)
	s.held[pod] = own
	return true
}

// served returns how many of those that wait would have a slot if only these were held. The caller holds mu.
func (s *slots) served(held map[string]slot) int {
	left, ofDriver := s.total-len(held), map[string]int{}
	for _, h := range held {
		ofDriver[h.driver]++
	}
	n := 0
	for _, w := range s.waiting {
		if n < left && ofDriver[w.driver] < s.perDriver {
			ofDriver[w.driver]++
			n++
		}
	}
	return n
}

// release gives the slot of a pod back, if it has one, or takes its claim off the list of those that wait.
func (s *slots) release(pod string) {
	s.mu.Lock()
	delete(s.held, pod)
	s.waiting = slices.DeleteFunc(s.waiting, func(w slot) bool { return w.pod == pod })
	granted := s.grant()
	s.mu.Unlock()
	s.offerAll(granted, "")
}

// observe takes note of a pod: one that runs holds a slot, also when another process created it. One whose populator has ended
// does not: it asks the driver nothing more, however long the kubelet takes until it says that the pod has finished.
func (s *slots) observe(pod *corev1.Pod) {
	if podstate.Ended(pod) || podstate.Terminated(pod) != nil {
		s.release(pod.Name)
		return
	}
	claim, _ := claimOf(pod.Annotations)
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := slot{pod: pod.Name, claim: claim, driver: pod.Annotations[v1alpha1.AnnotationDriver], streams: streamsOf(pod)}
	if pod.DeletionTimestamp != nil {
		seen.going = pod.DeletionTimestamp.Add(goingFor)
	}
	s.held[pod.Name] = seen
}

// share returns how many streams a pod that holds a slot may read at once: what the others of its driver leave of
// perDriver, but not more than most, and always one.
func (s *slots) share(pod string, most, perDriver int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.held[pod]
	left := perDriver
	for _, h := range s.held {
		if h.pod != pod && h.driver == own.driver {
			left -= max(h.streams, 1)
		}
	}
	own.streams = max(1, min(most, left))
	if own.pod != "" {
		s.held[pod] = own
	}
	return own.streams
}

// streamsOf returns the number of streams that a pod may read at once; 0 if its command line does not say.
func streamsOf(pod *corev1.Pod) int {
	for _, container := range pod.Spec.Containers {
		for _, arg := range container.Args {
			if value, ok := strings.CutPrefix(arg, "--"+streamsFlag+"="); ok {
				n, _ := strconv.Atoi(value) // 0 if someone else wrote it
				return n
			}
		}
	}
	return 0
}

// grant offers free slots to those that wait and returns who got one. The caller holds mu.
func (s *slots) grant() []slot {
	var granted []slot
	for {
		best, bestLoad := -1, 0
		for i, w := range s.waiting {
			if !s.fits(w) {
				continue
			}
			if load := s.load(w.claim.Namespace); best < 0 || load < bestLoad {
				best, bestLoad = i, load
			}
		}
		if best < 0 {
			return granted
		}
		s.offers++
		w := s.waiting[best]
		w.offer = s.offers
		s.waiting = slices.Delete(s.waiting, best, best+1)
		s.held[w.pod] = w
		granted = append(granted, w)
	}
}

// fits reports whether a slot is free for w.
func (s *slots) fits(w slot) bool {
	if len(s.held) >= s.total {
		return false
	}
	n := 0
	for _, h := range s.held {
		if h.driver == w.driver {
			n++
		}
	}
	return n < s.perDriver
}

// load is the number of slots that a namespace holds.
func (s *slots) load(namespace string) int {
	n := 0
	for _, h := range s.held {
		if h.claim.Namespace == namespace {
			n++
		}
	}
	return n
}

// offerAll wakes the claims that were granted a slot, except the one of pod, which is being worked on.
func (s *slots) offerAll(granted []slot, pod string) {
	for _, g := range granted {
		if g.pod != pod {
			s.later(offerFor, func() { s.withdraw(g) })
			s.wake(g.claim)
		}
	}
}
