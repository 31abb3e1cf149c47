package machinery

import (
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// soon is the shortest wait after a refusal.
	soon = time.Second
	// refusedPrimeWait is the wait after the first refusal of a prime claim, and the shortest after a change.
	refusedPrimeWait = 10 * time.Second
)

// refusals are the claims whose pod, endpoint ConfigMap or prime claim the API server refused: by a quota, a limit, the pod security level
// of the namespace. They are tried again when one of these changes. It is safe for concurrent use.
//
// Prime claims are created by the library, whose instances make 5 requests/s each for all claims. Whoever makes claims that are
// refused must not use these up, so such claims wait longer each time, and are woken one after the other.
type refusals struct {
	clock clock.PassiveClock
	// apart is the time between two attempts to create a prime claim after a refusal, all instances together.
	apart time.Duration

	mu     sync.Mutex
	claims map[types.UID]types.NamespacedName
	// primes are the claims that have no prime claim because it was refused.
	primes map[types.UID]refusedPrime
	// swept is when those that did not come back were last forgotten.
	swept time.Time
	// changed is when the last change was seen.
	changed time.Time
	// turn is when the next claim without a prime claim may be woken.
	turn time.Time
}

type refusedPrime struct {
	// wait is how long the claim waits if no change is seen, last is when it began to.
	wait time.Duration
	last time.Time
	// woken is set if a change was seen since.
	woken bool
}

// wokenClaim is a claim that is to be tried again after a while.
type wokenClaim struct {
	claim types.NamespacedName
	after time.Duration
}

// newRefusals returns the refusals that the claims of this many library instances meet. One request in five is left to them.
func newRefusals(c clock.PassiveClock, shards int) *refusals {
	return &refusals{
		clock: c, apart: time.Second / time.Duration(shards),
		claims: map[types.UID]types.NamespacedName{}, primes: map[types.UID]refusedPrime{},
	}
}

// add takes note of a refusal and returns how long to wait, at most longest, should no change be seen: as long as the last
// one was seen ago, because the API server itself may act upon a change a little later than we see it.
func (r *refusals) add(claim *corev1.PersistentVolumeClaim, longest time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims[claim.UID] = nameOf(claim)
	return min(max(r.clock.Since(r.changed), soon), longest)
}

// addPrime is add for the prime claim of a claim. The wait doubles with each refusal, except for the first one after a change, and is at
// least as long as all claims that are refused take for their turns.
func (r *refusals) addPrime(claim *corev1.PersistentVolumeClaim) time.Duration {
	now := r.clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.swept) >= safetyNet {
		// Who has not come back is gone, or waits for something else.
		maps.DeleteFunc(r.primes, func(_ types.UID, p refusedPrime) bool { return now.Sub(p.last) > 2*safetyNet })
		r.swept = now
	}
	r.claims[claim.UID] = nameOf(claim)
	p, again := r.primes[claim.UID]
	if again && p.woken {
		p.woken, p.last = false, now
		r.primes[claim.UID] = p
		return min(max(now.Sub(r.changed), refusedPrimeWait), p.wait)
	}
	turns := time.Duration(len(r.primes)) * r.apart
	p.wait, p.last = min(max(2*p.wait, refusedPrimeWait, turns), safetyNet), now
	r.primes[claim.UID] = p
	return p.wait
}

// acceptedPrime takes note that the claim has its prime claim: should another one be refused, that is the first refusal.
func (r *refusals) acceptedPrime(claim types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.primes, claim)
}

func (r *refusals) remove(claim types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.claims, claim)
	delete(r.primes, claim)
}

// take takes note of a change, and returns the claims and forgets them: one that is refused again comes back.
func (r *refusals) take() []wokenClaim {
	now := r.clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = now
	woken := make([]wokenClaim, 0, len(r.claims))
	for uid, name := range r.claims {
		w := wokenClaim{claim: name}
		if p, ok := r.primes[uid]; ok {
			p.woken = true
			r.primes[uid] = p
			w.after = r.nextTurn(now)
		}
		woken = append(woken, w)
	}
	clear(r.claims)
	return woken
}

// nextTurn returns how long it is until the next claim without a prime claim may be woken. Beyond the safety net, claims come by
// themselves. The caller holds mu.
func (r *refusals) nextTurn(now time.Time) time.Duration {
	if r.turn.Before(now) {
		r.turn = now
	}
	left := r.turn.Sub(now)
	if left < safetyNet {
		r.turn = r.turn.Add(r.apart)
	}
	return left
}

// refusal reports whether the API server will not have an object as it is: because of its own rules, or a policy, or an admission
// webhook.
func refusal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || webhookRefusal(err)
}

// webhookRefusal reports whether an admission webhook denied an object, or could not be asked. It may deny with any code and any
// reason, also with those of an object that exists already; what tells is how the API server words it
// (k8s.io/apiserver/pkg/admission/plugin/webhook/errors and its callers).
func webhookRefusal(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	message := status.Status().Message
	return strings.HasPrefix(message, "admission webhook ") && strings.Contains(message, " denied the request") ||
		apierrors.IsInternalError(err) && strings.Contains(message, "failed calling webhook ")
}

// permits reports whether a change of a quota, a limit range or the populator namespace may let through what was refused
// before. before is nil when the object is new, after when it is gone.
func permits(before, after client.Object) bool {
	if before == nil || after == nil {
		return true
	}
	switch a := after.(type) {
	case *corev1.ResourceQuota:
		b, ok := before.(*corev1.ResourceQuota)
		return ok && quotaPermits(b, a)
	case *corev1.LimitRange:
		b, ok := before.(*corev1.LimitRange)
		return ok && !equality.Semantic.DeepEqual(b.Spec, a.Spec)
	case *corev1.Namespace:
		return !maps.Equal(before.GetLabels(), a.Labels)
	}
	return false
}

// quotaPermits reports whether a quota allows more than before: a higher bound, none, or less in use. Admission goes by the
// bounds in the status, which follow those in the spec a moment later. A use that grew is left out; every pod of ours
// would be one.
func quotaPermits(before, after *corev1.ResourceQuota) bool {
	for name, bound := range before.Status.Hard {
		if now, ok := after.Status.Hard[name]; !ok || now.Cmp(bound) > 0 {
			return true
		}
	}
	for name, used := range before.Status.Used {
		if now, ok := after.Status.Used[name]; !ok || now.Cmp(used) < 0 {
			return true
		}
	}
	return !equality.Semantic.DeepEqual(before.Spec.Scopes, after.Spec.Scopes) ||
		!equality.Semantic.DeepEqual(before.Spec.ScopeSelector, after.Spec.ScopeSelector)
}
