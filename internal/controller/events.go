package controller

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/notice"
)

// The actions of events.
const (
	actionResolve  = "Resolve"
	actionPopulate = "Populate"
)

// occurrence is an event to be.
type occurrence struct {
	about           runtime.Object
	kind, action    string
	reason, message string
}

// transitions returns the events on the ChangedBlockRange: one for each condition whose status or reason changed, and a warning
// when a list is there that is not what was asked for. That nothing was ever missing, or failed, is no news, which the conditions
// say as well; that a population begins and that it has ended is told on the claim.
func transitions(cbr *v1alpha1.ChangedBlockRange, before, after *v1alpha1.ChangedBlockRangeStatus) []occurrence {
	var all []occurrence
	resolved := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionSnapshotsResolved)
	if prior := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionSnapshotsResolved); changed(before, resolved) && (prior != nil || resolved.Status != metav1.ConditionTrue) {
		all = append(all, occurrence{about: cbr, kind: resolvedKind(resolved.Reason), action: actionResolve, reason: resolved.Reason, message: resolved.Message})
	}
	ready := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionReady)
	if changed(before, ready) && ready.Reason != resolved.Reason && !begins(ready.Reason) && !plainSuccess(before, ready) {
		kind := corev1.EventTypeWarning
		if ready.Status == metav1.ConditionTrue {
			kind = corev1.EventTypeNormal
		}
		all = append(all, occurrence{about: cbr, kind: kind, action: actionPopulate, reason: ready.Reason, message: ready.Message})
	}
	if ready.Status == metav1.ConditionTrue && unexpectedMode(after) && (changed(before, ready) || before.Mode != after.Mode) {
		all = append(all, occurrence{about: cbr, kind: corev1.EventTypeWarning, action: actionPopulate, reason: v1alpha1.ReasonUsedAllocated, message: ready.Message})
	}
	return all
}

// plainSuccess reports whether a list was written without anything having gone wrong before.
func plainSuccess(before *v1alpha1.ChangedBlockRangeStatus, ready *metav1.Condition) bool {
	prior := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionReady)
	return ready.Status == metav1.ConditionTrue && (prior == nil || begins(prior.Reason))
}

// begins reports whether a reason of the condition Ready stands before any result.
func begins(reason string) bool {
	return reason == v1alpha1.ReasonWaitingForClaim || reason == v1alpha1.ReasonPopulating
}

func changed(before *v1alpha1.ChangedBlockRangeStatus, after *metav1.Condition) bool {
	prior := meta.FindStatusCondition(before.Conditions, after.Type)
	return prior == nil || prior.Status != after.Status || prior.Reason != after.Reason
}

func unexpectedMode(status *v1alpha1.ChangedBlockRangeStatus) bool {
	return status.Mode == v1alpha1.ModeAllocated && status.FromSnapshotHandle != ""
}

// resolvedKind: to wait for a snapshot that is being taken is nothing to warn of.
func resolvedKind(reason string) string {
	if reason == v1alpha1.ReasonResolved || reason == v1alpha1.ReasonSnapshotNotReady {
		return corev1.EventTypeNormal
	}
	return corev1.EventTypeWarning
}

// claimEvents returns the events on claims, which is where the people look who wait for a volume: how an attempt failed,
// that it did not list what was asked for, why a pod does not get anywhere, and why a claim has to wait. That a claim is
// being populated, and that it has its volume, is told by the machinery.
func claimEvents(seen *observation, found resolution, tries []attempt, status *v1alpha1.ChangedBlockRangeStatus) []occurrence {
	byUID := make(map[types.UID]*corev1.PersistentVolumeClaim, len(seen.claims))
	for i := range seen.claims {
		byUID[seen.claims[i].UID] = &seen.claims[i]
	}
	var all []occurrence
	for i := range tries {
		a := &tries[i]
		claim := byUID[types.UID(a.pod.Labels[v1alpha1.LabelClaimUID])]
		switch {
		case claim == nil || a.recorded:
		case a.succeeded() && !fellBack(a.result, status):
		case a.finished:
			v := attemptVerdict(a, status)
			if a.succeeded() {
				v.reason, v.message = v1alpha1.ReasonUsedAllocated, fallbackMessage(a.result)
			}
			all = append(all, occurrence{about: claim, kind: corev1.EventTypeWarning, action: actionPopulate, reason: v.reason, message: v.message})
		case a.trouble != nil:
			all = append(all, occurrence{about: claim, kind: corev1.EventTypeWarning, action: actionPopulate, reason: a.trouble.Reason, message: a.trouble.Message})
		}
	}
	if found.ok() || firstActive(tries) != nil {
		return all
	}
	for i := range seen.claims {
		if claim := &seen.claims[i]; waiting(claim) {
			all = append(all, occurrence{about: claim, kind: resolvedKind(found.reason), action: actionResolve, reason: found.reason, message: found.message})
		}
	}
	return all
}

// announcer sends events and remembers the last reason that each claim was told, so that a claim that is tried again and
// again for one reason hears of it once. A restart of the controller may repeat an event; nothing else depends on it.
type announcer struct {
	recorder eventRecorder

	mu sync.Mutex
	// told has the last reason by ChangedBlockRange and UID of the claim.
	told map[types.NamespacedName]map[types.UID]string
}

type eventRecorder interface {
	Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any)
}

func (a *announcer) aboutRange(all []occurrence) {
	for _, o := range all {
		a.send(o, nil)
	}
}

// aboutClaims sends what claims have not been told yet, and forgets the claims that are gone.
func (a *announcer) aboutClaims(seen *observation, all []occurrence) {
	key := types.NamespacedName{Namespace: seen.cbr.Namespace, Name: seen.cbr.Name}
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.told[key]
	now := make(map[types.UID]string, len(seen.claims))
	for i := range seen.claims {
		if reason, found := before[seen.claims[i].UID]; found {
			now[seen.claims[i].UID] = reason
		}
	}
	for _, o := range all {
		claim := o.about.(*corev1.PersistentVolumeClaim)
		if now[claim.UID] != o.reason {
			a.send(o, seen.cbr)
			now[claim.UID] = o.reason
		}
	}
	if len(now) == 0 {
		delete(a.told, key)
		return
	}
	a.told[key] = now
}

func (a *announcer) forget(key types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.told, key)
}

func (a *announcer) send(o occurrence, related runtime.Object) {
	a.recorder.Eventf(o.about, related, o.kind, o.reason, o.action, "%s", notice.Note(o.message))
}
