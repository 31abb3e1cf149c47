package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// attempt is what a populator pod says about one attempt to populate a claim.
type attempt struct {
	pod *corev1.Pod
	// finished is true once nothing more is to be expected of the pod (podstate.Ended).
	finished bool
	// recorded is true for a finished pod whose result is in the status already, or is outdated.
	recorded bool
	// mark is what the reconciler has told the machinery on the pod.
	mark string
	// at is when a finished pod ended.
	at time.Time
	// result holds reason, message and figures of a finished pod. A pod that left none gets a reason of its own and no
	// figures.
	result outcome.Result
	// trouble says why an unfinished pod does not get anywhere; nil if it does.
	trouble *snapshots.Problem
}

// about reports whether the attempt is to make the list with this fingerprint. One that was told to be outdated is about nothing any
// more, also if its snapshots come back: the status has forgotten it.
func (a *attempt) about(fingerprint string) bool {
	return a.mark != v1alpha1.ResultOutdated && a.pod.Annotations[v1alpha1.AnnotationSource] == fingerprint
}

// succeeded reports whether the attempt left a complete list.
func (a *attempt) succeeded() bool { return a.finished && a.result.Reason == outcome.Populated }

// terminal reports whether another attempt would end the same way.
func (a *attempt) terminal() bool { return a.finished && a.result.Reason.Class() == outcome.Terminal }

// attempts reads the pods, those that ended first coming first and those that have not ended last. inStatus is the pod whose
// result the status says it has; nil if it says so of none.
func attempts(pods []corev1.Pod, inStatus *v1alpha1.RecordedPod) []attempt {
	all := make([]attempt, 0, len(pods))
	for i := range pods {
		a := readAttempt(&pods[i])
		a.recorded = a.recorded || (a.finished && isPod(inStatus, a.pod))
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b attempt) int {
		if a.finished != b.finished {
			if a.finished {
				return -1
			}
			return 1
		}
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.pod.Name, b.pod.Name))
	})
	return all
}

// current returns the attempts to list what the status names. The others began before a snapshot was replaced by another one of its
// name: how they end says nothing about these.
func current(cbr *v1alpha1.ChangedBlockRange, status *v1alpha1.ChangedBlockRangeStatus, tries []attempt) []attempt {
	asked := fingerprint(cbr, status)
	return slices.DeleteFunc(slices.Clone(tries), func(a attempt) bool { return !a.about(asked) })
}

// fingerprint is that of the list which a ChangedBlockRange asks for by this status.
func fingerprint(cbr *v1alpha1.ChangedBlockRange, status *v1alpha1.ChangedBlockRangeStatus) string {
	return (&v1alpha1.ChangedBlockRange{Spec: cbr.Spec, Status: *status}).ListFingerprint()
}

func isPod(named *v1alpha1.RecordedPod, pod *corev1.Pod) bool {
	return named != nil && named.UID == pod.UID
}

func readAttempt(pod *corev1.Pod) attempt {
	a := attempt{pod: pod}
	if !podstate.Ended(pod) {
		a.trouble = troubleOf(pod)
		return a
	}
	a.finished = true
	a.mark = pod.Annotations[v1alpha1.AnnotationResultRecorded]
	a.recorded = a.mark != ""
	a.at = podstate.EndedAt(pod)
	a.result = readResult(pod, podstate.Terminated(pod))
	return a
}

// readResult takes the populator's own word where it left one that fits how the pod ended, else what the kubelet says.
func readResult(pod *corev1.Pod, terminated *corev1.ContainerStateTerminated) outcome.Result {
	if terminated == nil {
		return withoutResult(pod, nil)
	}
	result, err := outcome.Parse(terminated.Message)
	if err != nil {
		return withoutResult(pod, terminated)
	}
	if !slices.Contains(outcome.Reasons(), result.Reason) {
		// A populator of another version. Its word cannot be used as a reason unseen: the API server would refuse a status
		// with a malformed one.
		return outcome.Result{Reason: v1alpha1.ReasonDied, Message: fmt.Sprintf("the populator ended with a result that this controller does not know: %q, %s", result.Reason, result.Message)}
	}
	if result.Reason == outcome.Populated && terminated.ExitCode != 0 {
		// The populator was killed after it had said so; the machinery populates the claim once more.
		return withoutResult(pod, terminated)
	}
	if result.Mode != string(v1alpha1.ModeAllocated) {
		result.Mode = string(v1alpha1.ModeDelta)
	}
	if result.Message == "" && result.Reason != outcome.Populated {
		result.Message = withoutWord(result.Reason)
	}
	return result
}

// withoutResult derives a reason for a pod that failed without leaving a result. None of these is terminal.
func withoutResult(pod *corev1.Pod, terminated *corev1.ContainerStateTerminated) outcome.Result {
	because := strings.TrimSpace(pod.Status.Reason + " " + pod.Status.Message)
	switch {
	case terminated != nil && terminated.Reason == "OOMKilled":
		return failure(v1alpha1.ReasonOutOfMemory, "the populator exceeded its memory limit: raise the limit in the controller's configuration")
	case disrupted(pod):
		return failure(v1alpha1.ReasonEvicted, "the populator pod was removed from its node %s: %s", pod.Spec.NodeName, because)
	case terminated == nil:
		return failure(v1alpha1.ReasonNotStarted, "the populator pod failed before its container ran: %s", because)
	case terminated.Reason == "StartError" || terminated.Reason == "ContainerCannotRun":
		return failure(v1alpha1.ReasonNotStarted, "the populator's container could not be started: %s", lastWords(terminated.Message))
	}
	return failure(v1alpha1.ReasonDied, "the populator ended with exit code %d and left no result: %s", terminated.ExitCode,
		lastWords(cmp.Or(terminated.Message, because, terminated.Reason)))
}

func failure(reason outcome.Reason, format string, args ...any) outcome.Result {
	return outcome.Result{Reason: reason, Message: strings.TrimSuffix(fmt.Sprintf(format, args...), ": ")}
}

// disrupted reports whether the pod was ended from outside: eviction, preemption, node drain, shutdown or loss.
func disrupted(pod *corev1.Pod) bool {
	switch pod.Status.Reason {
	case "Evicted", "NodeLost", "NodeShutdown", "Terminated", "Preempting", "Shutdown":
		return true
	}
	return podCondition(pod, corev1.DisruptionTarget, corev1.ConditionTrue) != nil
}

// maxLastWords bounds, in bytes, what is quoted of a container's last log lines.
const maxLastWords = 300

func lastWords(message string) string {
	message = strings.Join(strings.Fields(message), " ")
	if len(message) <= maxLastWords {
		return message
	}
	return "…" + strings.ToValidUTF8(message[len(message)-maxLastWords:], "")
}

// troubleOf says why a pod that has not ended does not run. The kubelet and the scheduler keep trying by themselves, and
// the pod's next change wakes us.
func troubleOf(pod *corev1.Pod) *snapshots.Problem {
	if !pod.DeletionTimestamp.IsZero() && disrupted(pod) {
		return snapshots.Problemf(v1alpha1.ReasonEvicted, "the populator pod %s/%s is being removed from its node %s; another attempt follows when it is gone, for which a node that is lost has to come back or be deleted",
			pod.Namespace, pod.Name, pod.Spec.NodeName)
	}
	if c := podCondition(pod, corev1.PodScheduled, corev1.ConditionFalse); c != nil && c.Reason == corev1.PodReasonUnschedulable {
		return snapshots.Problemf(v1alpha1.ReasonUnschedulable, "no node takes the populator pod %s/%s: %s", pod.Namespace, pod.Name, c.Message)
	}
	for _, status := range pod.Status.ContainerStatuses {
		waiting := status.State.Waiting
		if waiting == nil {
			continue
		}
		switch waiting.Reason {
		case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			return snapshots.Problemf(v1alpha1.ReasonImageUnavailable, "the image %s of the populator pod %s/%s cannot be pulled: %s",
				status.Image, pod.Namespace, pod.Name, lastWords(cmp.Or(waiting.Message, waiting.Reason)))
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return snapshots.Problemf(v1alpha1.ReasonNotStarted, "the container of the populator pod %s/%s cannot be started: %s",
				pod.Namespace, pod.Name, lastWords(cmp.Or(waiting.Message, waiting.Reason)))
		}
	}
	return nil
}

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType, status corev1.ConditionStatus) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == kind && c.Status == status {
			return c
		}
	}
	return nil
}
