package machinery

import (
	"errors"
	"maps"
	"slices"
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

// soon is the shortest wait after a refusal.
const soon = time.Second

// refusals are the claims whose pod, endpoint ConfigMap or prime claim the API server refused: by a quota, a limit, the pod security level of the
// namespace. They are tried again when one of these changes. It is safe for concurrent use.
type refusals struct {
	clock clock.PassiveClock

	mu     sync.Mutex
	claims map[types.UID]types.NamespacedName
	// changed is when the last change was seen.
	changed time.Time
}

func newRefusals(c clock.PassiveClock) *refusals {
	return &refusals{clock: c, claims: map[types.UID]types.NamespacedName{}}
}

// add takes note of a refusal and returns how long to wait, at most longest, should no change be seen: as long as the last
// one was seen ago, because the API server itself may act upon a change a little later than we see it.
func (r *refusals) add(claim *corev1.PersistentVolumeClaim, longest time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims[claim.UID] = nameOf(claim)
	return min(max(r.clock.Since(r.changed), soon), longest)
}

func (r *refusals) remove(claim types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.claims, claim)
}

// take takes note of a change, and returns the claims and forgets them: one that is refused again comes back.
func (r *refusals) take() []types.NamespacedName {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = r.clock.Now()
	names := slices.Collect(maps.Values(r.claims))
	clear(r.claims)
	return names
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
