package machinery

import (
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// settleFor is how long the cache is given to show what the library wrote to a claim.
const settleFor = 2 * time.Second

// settling has the claims whose finalizer the library is about to add or to take off. Until the cache shows it, another sync
// would send the same patch once more, which the API server refuses, and then wait for its turn again. It is safe for
// concurrent use.
type settling struct {
	clock clock.PassiveClock
	// later adds a claim to its queue after a while, should the library's write have failed.
	later func(claim *corev1.PersistentVolumeClaim, after time.Duration)

	mu     sync.Mutex
	claims map[types.UID]settlingClaim
}

type settlingClaim struct {
	// finalizer says whether the claim had it before.
	finalizer bool
	since     time.Time
}

func newSettling(c clock.PassiveClock) *settling {
	return &settling{clock: c, claims: map[types.UID]settlingClaim{}}
}

// begin takes note that the library is about to add its finalizer to a claim that has none, or to take it off one that has it.
func (s *settling) begin(claim *corev1.PersistentVolumeClaim) {
	now := s.clock.Now()
	s.mu.Lock()
	maps.DeleteFunc(s.claims, func(_ types.UID, c settlingClaim) bool { return now.Sub(c.since) >= settleFor })
	s.claims[claim.UID] = settlingClaim{finalizer: hasFinalizer(claim), since: now}
	s.mu.Unlock()
}

// end takes note that the library did not get as far as writing to the claim.
func (s *settling) end(claim types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claims, claim)
}

// has reports whether the library wrote to a claim a moment ago and the cache does not show it; somebody else may have written to the
// claim in between. The claim is looked at again when the moment has passed, or when its next version comes.
func (s *settling) has(claim *corev1.PersistentVolumeClaim) bool {
	s.mu.Lock()
	c, ok := s.claims[claim.UID]
	s.mu.Unlock()
	left := settleFor - s.clock.Since(c.since)
	if !ok || c.finalizer != hasFinalizer(claim) || left <= 0 {
		return false
	}
	s.later(claim, left)
	return true
}
