package controller

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// computeStatus returns the status that follows from what was seen and from the status before it, which is the memory of
// results whose pods are gone.
func computeStatus(seen *observation, found resolution, tries []attempt, now time.Time) v1alpha1.ChangedBlockRangeStatus {
	next := seen.cbr.Status.DeepCopy()
	next.ObservedGeneration = seen.cbr.Generation
	moved := writeResolution(next, found)
	setResolved(next, found, moved, now)
	if moved {
		clearFigures(next)
		meta.RemoveStatusCondition(&next.Conditions, v1alpha1.ConditionReady)
	}

	tries = current(seen.cbr, next, tries)
	last := lastAttempt(tries)
	if listed := lastUnrecordedSuccess(tries); listed != nil {
		writeFigures(next, listed.result)
	}
	next.PopulatedClaims = countPopulated(seen, tries)
	next.Progress = furthest(tries, seen.progress)

	remembered := rememberedVerdict(last, &seen.cbr.Status, next)
	if remembered == nil {
		remembered = failureVerdict(seen, next)
	}
	v := judge(seen, found, tries, remembered)
	ready := metav1.ConditionFalse
	if v.state == v1alpha1.StateReady {
		ready = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&next.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: ready, Reason: v.reason, Message: v.message,
		ObservedGeneration: seen.cbr.Generation, LastTransitionTime: metav1.NewTime(now),
	})
	next.State = v.state
	next.Message = fullMessage(seen, found, v)
	return *next
}

// writeResolution keeps what was resolved before when something is missing now: a snapshot may go once its list is
// written, and its handle is the base of the next increment. It reports whether the snapshots are others than before, as
// when one was deleted and another created under its name; then earlier results are not about them.
func writeResolution(status *v1alpha1.ChangedBlockRangeStatus, found resolution) (moved bool) {
	if !found.ok() {
		status.Driver = cmp.Or(found.driver, status.Driver)
		return false
	}
	moved = status.ToSnapshotHandle != "" &&
		(status.ToSnapshotHandle != found.toHandle || status.FromSnapshotHandle != found.fromHandle || status.Driver != found.driver)
	status.Driver = found.driver
	status.FromSnapshotHandle, status.ToSnapshotHandle = found.fromHandle, found.toHandle
	status.FromRestoreSizeBytes, status.ToRestoreSizeBytes = found.fromRestoreSize, found.toRestoreSize
	return moved
}

func setResolved(status *v1alpha1.ChangedBlockRangeStatus, found resolution, moved bool, now time.Time) {
	condition := metav1.Condition{
		Type: v1alpha1.ConditionSnapshotsResolved, Status: metav1.ConditionFalse, Reason: found.reason, Message: found.message,
		ObservedGeneration: status.ObservedGeneration, LastTransitionTime: metav1.NewTime(now),
	}
	if found.ok() {
		condition.Status = metav1.ConditionTrue
	}
	if moved {
		// The transition through "missing" was too short to be seen; its time still has to advance.
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionSnapshotsResolved)
	}
	meta.SetStatusCondition(&status.Conditions, condition)
}

func clearFigures(status *v1alpha1.ChangedBlockRangeStatus) {
	status.Mode, status.BlockMetadataType = "", ""
	status.VolumeCapacityBytes, status.BlockSize = nil, nil
	status.EntryCount, status.ChangedBytes, status.NumBytesWritten = nil, nil, nil
	status.Changed, status.ListSize, status.ListDigest = "", "", ""
}

func writeFigures(status *v1alpha1.ChangedBlockRangeStatus, result outcome.Result) {
	status.Mode, status.BlockMetadataType = v1alpha1.ListMode(result.Mode), result.BlockMetadataType
	status.VolumeCapacityBytes, status.BlockSize = &result.VolumeCapacityBytes, &result.BlockSize
	status.EntryCount, status.ChangedBytes, status.NumBytesWritten = &result.EntryCount, &result.ChangedBytes, &result.NumBytesWritten
	status.Changed, status.ListSize, status.ListDigest = human.Bytes(result.ChangedBytes), human.Bytes(result.NumBytesWritten), result.ListDigest
}

// recordedPod returns the pod that the status is to name as one whose result it has: the last one that wrote a list, if the status is
// written anyway, which saves that pod an annotation. There is room for one, which stays as long as the pod that is named is
// there. A list that is not what was asked for is left to the annotation, which follows the event on the claim: so that event is
// sent however often the controller dies.
func recordedPod(cbr *v1alpha1.ChangedBlockRange, after *v1alpha1.ChangedBlockRangeStatus, tries []attempt) *v1alpha1.RecordedPod {
	before := &cbr.Status
	named := func(a attempt) bool { return isPod(before.RecordedPod, a.pod) }
	listed := lastUnrecordedSuccess(current(cbr, after, tries))
	if listed == nil || fellBack(listed.result, after) || slices.ContainsFunc(tries, named) || equality.Semantic.DeepEqual(before, after) {
		return before.RecordedPod
	}
	return &v1alpha1.RecordedPod{Name: listed.pod.Name, UID: listed.pod.UID}
}

// lastAttempt returns the attempt that ended last, nil if none did. A success that was recorded is left out: it is in the
// status, unless it was dropped from there because it is about other snapshots. A failure that was recorded stays true as
// long as the machinery keeps its pod.
func lastAttempt(tries []attempt) *attempt {
	return last(tries, func(a *attempt) bool { return !a.recorded || !a.succeeded() })
}

func lastUnrecordedSuccess(tries []attempt) *attempt {
	return last(tries, func(a *attempt) bool { return !a.recorded && a.succeeded() })
}

func last(tries []attempt, is func(*attempt) bool) *attempt {
	for i := len(tries) - 1; i >= 0; i-- {
		if a := &tries[i]; a.finished && is(a) {
			return a
		}
	}
	return nil
}

// fullMessage adds to the verdict what a person should know at the same time.
func fullMessage(seen *observation, found resolution, v verdict) string {
	message := v.message
	if claim := firstClaim(seen.claims, waiting); claim != nil && !found.ok() && v.state == v1alpha1.StateReady {
		message = fmt.Sprintf("%s; claim %q cannot be populated: %s", message, shownClaim(seen.cbr, claim), found.message)
	}
	if claim := firstClaim(seen.claims, seen.astray); claim != nil && v.reason != v1alpha1.ReasonBoundToOtherVolume {
		message += "; " + astrayMessage(seen.cbr, claim)
	}
	if seen.cbr.DeletionTimestamp.IsZero() {
		return message
	}
	if claim := firstClaim(seen.claims, started); claim != nil {
		message = fmt.Sprintf("goes as soon as claim %q is populated; delete the claim to give it up; %s", shownClaim(seen.cbr, claim), message)
	}
	return message
}
