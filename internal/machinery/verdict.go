package machinery

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
)

// action is what is to be done about a populator pod.
type action int

const (
	// actionWait: nothing, until a watch or the verdict's time says otherwise.
	actionWait action = iota
	// actionReplace: delete the pod; another one follows once it is gone.
	actionReplace
	// actionRetire: delete the pod, whose logs were kept long enough, and remember how it failed.
	actionRetire
	// actionComplete: the pod has written the list and its result is recorded.
	actionComplete
)

// verdict is an action, the reason in words, and for actionWait the longest wait (0: until a watch wakes the claim).
type verdict struct {
	action action
	why    string
	wait   time.Duration
	// fresh is set when the replacement counts as a first attempt, because what failed is not what will be tried.
	fresh bool
}

// wanted is what the pod of a claim should be like now.
type wanted struct {
	sourceUID string // of the ChangedBlockRange
	primeUID  string
	// source is a digest of what the status says that the list is made from, which stays there while the ChangedBlockRange is
	// not resolved.
	source string
	// setting is a digest of how a pod reads it. It is empty while the ChangedBlockRange is not resolved or the metadata service is
	// missing: then no pod can be built.
	setting string
	// recordedPod is the pod whose result the status of the ChangedBlockRange says it has.
	recordedPod types.UID
}

// wantedOf returns what a ChangedBlockRange says of its pods, whether it is resolved or not.
func wantedOf(cbr *v1alpha1.ChangedBlockRange) wanted {
	want := wanted{sourceUID: string(cbr.UID), source: cbr.ListFingerprint()}
	if pod := cbr.Status.RecordedPod; pod != nil {
		want.recordedPod = pod.UID
	}
	return want
}

// recorded reports whether the reconciler has written the pod's result down.
func (w wanted) recorded(pod *corev1.Pod) bool {
	return annotated(pod) || (w.recordedPod != "" && w.recordedPod == pod.UID)
}

// annotated reports whether the reconciler has marked the pod as one whose result it has written down.
func annotated(pod *corev1.Pod) bool {
	return pod.Annotations[v1alpha1.AnnotationResultRecorded] == v1alpha1.ResultRecorded
}

// outdated reports whether the reconciler has marked the pod as one whose snapshots were replaced by others.
func outdated(pod *corev1.Pod) bool {
	return pod.Annotations[v1alpha1.AnnotationResultRecorded] == v1alpha1.ResultOutdated
}

// rechecked are the terminal failures whose cause may go away where no watch of ours reaches: permissions and the state
// of the driver. They get another attempt now and then.
var rechecked = []outcome.Reason{outcome.PermissionDenied, outcome.SnapshotNotFound, outcome.DeltaUnavailable}

// judge decides what is to be done about the pod of a claim. It is pure; now is the only clock it knows. seen is when the pod, if it has
// ended, was first seen to have.
func judge(cfg *Config, pod *corev1.Pod, want wanted, seen, now time.Time) verdict {
	if pod.DeletionTimestamp != nil {
		return verdict{action: actionWait, why: "the populator pod is being deleted"}
	}
	sameRange := pod.Labels[v1alpha1.LabelChangedBlockRangeUID] == want.sourceUID
	// The result of a pod counts only once it is recorded, and the pod stays until then. Nobody records the result of a
	// pod whose ChangedBlockRange is gone.
	ended := podstate.Ended(pod)
	if ended && sameRange && !outdated(pod) && !want.recorded(pod) {
		return verdict{action: actionWait, why: "the populator's result is not recorded yet"}
	}
	switch {
	case !sameRange:
		return verdict{action: actionReplace, why: "the ChangedBlockRange was replaced by another one", fresh: true}
	case pod.Annotations[annotationPrimeUID] != want.primeUID:
		return verdict{action: actionReplace, why: "the pod's volume was replaced by another one", fresh: true}
	case outdated(pod) || pod.Annotations[v1alpha1.AnnotationSource] != want.source:
		// The mark may be in the cache sooner than the status that it follows from.
		return verdict{action: actionReplace, why: "the snapshots were resolved differently", fresh: true}
	case !ended && !podstate.Started(pod) && want.setting != "" && pod.Annotations[annotationSetting] != want.setting:
		// It may be what keeps it from starting: an image that nobody has, a node selector that no node meets. One that runs may end.
		return verdict{action: actionReplace, why: "the metadata service or the populator was changed before it started", fresh: true}
	case !ended:
		return verdict{action: actionWait, why: "the populator pod runs"}
	case podstate.Wrote(pod):
		return verdict{action: actionComplete, why: "the list is written"}
	}
	failed := failureOf(pod, seen)
	v := judgeFailure(cfg, failed, want, now)
	if v.action != actionWait {
		return v
	}
	// The failed pod stays for its logs, but not for good.
	left := failed.At.Add(*cfg.FailedPodRetention).Sub(now)
	switch {
	case left <= 0:
		return verdict{action: actionRetire, why: "its logs were kept long enough"}
	case v.wait == 0 || left < v.wait:
		v.wait = left
	}
	return v
}

// judgeFailure decides what follows an attempt that ended without a list, whether its pod is still there or not: another
// attempt (actionReplace), or nothing for now.
func judgeFailure(cfg *Config, failed outcome.Failure, want wanted, now time.Time) verdict {
	switch {
	case failed.SourceUID != want.sourceUID:
		return verdict{action: actionReplace, why: "the ChangedBlockRange was replaced by another one", fresh: true}
	case want.setting == "":
		return verdict{action: actionWait, why: "the ChangedBlockRange is not resolved"}
	case failed.Source != want.source:
		return verdict{action: actionReplace, why: "the snapshots were resolved differently", fresh: true}
	case failed.Setting != want.setting:
		return verdict{action: actionReplace, why: "the metadata service or the populator was changed", fresh: true}
	}
	if failed.Reason.Class() == outcome.Terminal && !slices.Contains(rechecked, failed.Reason) {
		return verdict{action: actionWait, why: fmt.Sprintf("%s: another attempt would fail the same way", failed.Reason)}
	}
	wait := cfg.RecheckAfter
	if failed.Reason.Class() != outcome.Terminal {
		wait = backoff(cfg, failed.Attempt)
	}
	left := failed.At.Add(wait).Sub(now)
	if left > 0 {
		return verdict{action: actionWait, why: fmt.Sprintf("the next attempt follows %v after the last", wait), wait: left}
	}
	return verdict{action: actionReplace, why: fmt.Sprintf("%v have passed since the last attempt", wait)}
}

// backoff is the wait after attempt n, counted from 1, failed.
func backoff(cfg *Config, attempt int) time.Duration {
	wait := cfg.RetryBase
	for i := 1; i < attempt && wait < cfg.RetryMax; i++ {
		wait *= 2
	}
	return min(wait, cfg.RetryMax)
}

// attemptOf returns which attempt a pod is, from 1.
func attemptOf(pod *corev1.Pod) int {
	n, err := strconv.Atoi(pod.Annotations[annotationAttempt])
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// podResult reads the result that the populator left.
func podResult(pod *corev1.Pod) (outcome.Result, error) {
	t := podstate.Terminated(pod)
	if t == nil {
		return outcome.Result{}, fmt.Errorf("pod %s: its container did not end by itself", pod.Name)
	}
	result, err := outcome.Parse(t.Message)
	if err != nil {
		return outcome.Result{}, fmt.Errorf("pod %s: %w", pod.Name, err)
	}
	return result, nil
}
