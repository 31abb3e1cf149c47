package controller

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// verdict is the state with the condition Ready, which is True in the state Ready and False in any other.
type verdict struct {
	state   v1alpha1.State
	reason  string
	message string
}

// judge weighs, in this order: a list that was written stays a list; then what a running pod does; then what keeps a pod
// from running; then how the last one ended; then what is waited for. remembered is the verdict over the last attempt, nil
// if there was none.
func judge(seen *observation, found resolution, tries []attempt, remembered *verdict) verdict {
	retrying := remembered != nil && remembered.state == v1alpha1.StatePopulating
	if remembered != nil && remembered.state == v1alpha1.StateReady {
		return *remembered
	}
	if active := firstActive(tries); active != nil {
		switch {
		case active.trouble != nil:
			return verdict{v1alpha1.StatePopulating, active.trouble.Reason, active.trouble.Message}
		case retrying:
			return *remembered
		}
		return verdict{v1alpha1.StatePopulating, v1alpha1.ReasonPopulating,
			fmt.Sprintf("claim %q is being populated", reference.Shown(seen.cbr.Namespace, claimOf(active.pod)))}
	}
	if !found.ok() {
		return verdict{unresolvedState(found.reason), found.reason, found.message}
	}
	claim := firstClaim(seen.claims, waiting)
	switch {
	case retrying && claim != nil:
		return *remembered
	case remembered != nil && !retrying:
		return *remembered
	case claim == nil && firstClaim(seen.claims, seen.astray) != nil:
		return verdict{v1alpha1.StatePending, v1alpha1.ReasonBoundToOtherVolume, astrayMessage(seen.cbr, firstClaim(seen.claims, seen.astray))}
	case claim == nil:
		return verdict{v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim,
			"create a PersistentVolumeClaim whose dataSourceRef names this ChangedBlockRange"}
	case started(claim) && claim.Spec.StorageClassName == nil:
		// The API server fills in the default class, and the volume controller does it later for claims that came before one.
		return verdict{v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, fmt.Sprintf("claim %q names no StorageClass and the cluster has no default one: make one the default, or create the claim again with a class", shownClaim(seen.cbr, claim))}
	case started(claim) && seen.provisioned[claim.UID]:
		return verdict{v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, fmt.Sprintf("claim %q waits for its turn, because as many populators run as may, or for the cluster to accept its populator pod, of which the claim's events tell", shownClaim(seen.cbr, claim))}
	case started(claim):
		return verdict{v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, fmt.Sprintf("a volume for claim %q is being provisioned", shownClaim(seen.cbr, claim))}
	}
	if provisioner := seen.intree[claim.UID]; provisioner != "" {
		return verdict{v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim,
			fmt.Sprintf("claim %q cannot be populated: its StorageClass %q has the provisioner %s, which is part of Kubernetes and takes no populated volumes; create the claim again with the class of a CSI driver",
				shownClaim(seen.cbr, claim), *claim.Spec.StorageClassName, provisioner)}
	}
	return verdict{v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim,
		fmt.Sprintf("claim %q has not been started: its events may say why; it needs a storage class that exists and, if that one waits for the first consumer, a pod that uses the claim", shownClaim(seen.cbr, claim))}
}

// astrayMessage tells of a claim that has a volume which was not filled for it.
func astrayMessage(cbr *v1alpha1.ChangedBlockRange, claim *corev1.PersistentVolumeClaim) string {
	return fmt.Sprintf("claim %q is not populated: it is bound to volume %q, which was not filled for it; delete the claim and create it again",
		shownClaim(cbr, claim), claim.Spec.VolumeName)
}

// firstActive returns the unfinished attempt to talk about: one in trouble, else the first; nil if there is none.
func firstActive(tries []attempt) *attempt {
	var first *attempt
	for i := range tries {
		a := &tries[i]
		if !a.finished && (first == nil || (first.trouble == nil && a.trouble != nil)) {
			first = a
		}
	}
	return first
}

// unresolvedState tells problems that pass by themselves, once something appears or becomes ready, from those where the
// ChangedBlockRange names the wrong snapshots.
func unresolvedState(reason string) v1alpha1.State {
	switch reason {
	case v1alpha1.ReasonDriverMismatch, v1alpha1.ReasonVolumeMismatch, v1alpha1.ReasonSnapshotMisbound:
		return v1alpha1.StateFailed
	}
	return v1alpha1.StatePending
}

// rememberedVerdict returns the verdict over the last attempt: from its pod if that one is new, else from the status,
// which outlives the pod, else from the pod once more.
func rememberedVerdict(last *attempt, before, now *v1alpha1.ChangedBlockRangeStatus) *verdict {
	if last != nil && !last.recorded {
		return attemptVerdict(last, now)
	}
	if v := statusVerdict(before, now); v != nil {
		return v
	}
	if last != nil {
		return attemptVerdict(last, now)
	}
	return nil
}

func attemptVerdict(a *attempt, status *v1alpha1.ChangedBlockRangeStatus) *verdict {
	if a.succeeded() {
		return &verdict{v1alpha1.StateReady, v1alpha1.ReasonPopulated, populatedMessage(a.result, status)}
	}
	return failedVerdict(a.result.Reason, a.result.Message)
}

func failedVerdict(reason outcome.Reason, message string) *verdict {
	if reason.Class() == outcome.Terminal {
		return &verdict{v1alpha1.StateFailed, string(reason), message}
	}
	return &verdict{v1alpha1.StatePopulating, string(reason), message + "; it is tried again"}
}

// failureVerdict returns the verdict over the last attempt whose pod is gone, from what is written on the prime claims; nil if none
// of them is about this ChangedBlockRange and these snapshots, because then another attempt follows.
func failureVerdict(seen *observation, status *v1alpha1.ChangedBlockRangeStatus) *verdict {
	asked := fingerprint(seen.cbr, status)
	var last *outcome.Failure
	for i := range seen.failures {
		f := &seen.failures[i]
		if f.SourceUID != string(seen.cbr.UID) || f.Source != asked || !slices.Contains(outcome.Reasons(), f.Reason) {
			continue
		}
		if last == nil || f.At.After(last.At) {
			last = f
		}
	}
	if last == nil {
		return nil
	}
	return failedVerdict(last.Reason, cmp.Or(last.Message, withoutWord(last.Reason)))
}

// withoutWord is the message about a populator that gave none.
func withoutWord(reason outcome.Reason) string {
	return fmt.Sprintf("the populator ended with the reason %s and no further word", reason)
}

// statusVerdict reads the verdict back from the condition Ready, if that one is about an attempt. The reason
// SnapshotNotFound is, only if the snapshots were resolved when it was written.
func statusVerdict(before, now *v1alpha1.ChangedBlockRangeStatus) *verdict {
	ready := meta.FindStatusCondition(now.Conditions, v1alpha1.ConditionReady)
	if ready == nil {
		return nil
	}
	if ready.Status == metav1.ConditionTrue {
		return &verdict{v1alpha1.StateReady, ready.Reason, ready.Message}
	}
	if resolved := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionSnapshotsResolved); resolved != nil && resolved.Reason == ready.Reason {
		return nil
	}
	reason := outcome.Reason(ready.Reason)
	switch {
	case reason.Class() == outcome.Terminal:
		return &verdict{v1alpha1.StateFailed, ready.Reason, ready.Message}
	case slices.Contains(outcome.Reasons(), reason),
		ready.Reason == v1alpha1.ReasonOutOfMemory, ready.Reason == v1alpha1.ReasonEvicted, ready.Reason == v1alpha1.ReasonDied:
		return &verdict{v1alpha1.StatePopulating, ready.Reason, ready.Message}
	}
	return nil
}

func populatedMessage(result outcome.Result, status *v1alpha1.ChangedBlockRangeStatus) string {
	extents := "extents"
	if result.EntryCount == 1 {
		extents = "extent"
	}
	kind := "changed"
	if result.Mode == string(v1alpha1.ModeAllocated) {
		kind = "allocated"
	}
	message := fmt.Sprintf("the list has %d %s, %s %s", result.EntryCount, extents, human.Bytes(result.ChangedBytes), kind)
	if fellBack(result, status) {
		message += "; " + fallbackMessage(result)
	}
	return message
}

func fallbackMessage(result outcome.Result) string {
	return fmt.Sprintf("the delta is unavailable because %s; the list holds all allocated blocks instead, as whenDeltaUnavailable asks",
		cmp.Or(result.Fallback, "the driver has none"))
}

// fellBack reports whether a delta was asked for and the allocated blocks were listed.
func fellBack(result outcome.Result, status *v1alpha1.ChangedBlockRangeStatus) bool {
	return result.Mode == string(v1alpha1.ModeAllocated) && status.FromSnapshotHandle != ""
}
