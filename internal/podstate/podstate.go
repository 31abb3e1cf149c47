// Package podstate reads from a populator pod how far its populator is. The reconciler, which records results, and the machinery,
// which waits for that, have to be of one opinion about which pod has ended and which has written its list.
package podstate

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// Container returns the state of the populator's container; empty while the kubelet has not told one.
func Container(pod *corev1.Pod) corev1.ContainerState {
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == v1alpha1.ContainerPopulate {
			return s.State
		}
	}
	return corev1.ContainerState{}
}

// Terminated returns how the populator's container ended; nil if it has not, or never ran.
func Terminated(pod *corev1.Pod) *corev1.ContainerStateTerminated {
	return Container(pod).Terminated
}

// Started reports whether the populator has begun to run, as far as the kubelet has told.
func Started(pod *corev1.Pod) bool {
	state := Container(pod)
	return pod.Status.Phase == corev1.PodRunning || state.Running != nil || state.Terminated != nil
}

// Ended reports whether nothing more is to be expected of a pod: it has ended; or its populator has written the list and ended, which
// the phase of the pod says a second or two later, when the kubelet has taken its sandbox down; or its populator has failed, and
// the phase may never say so, because somebody injected a container that goes on. Without such a one the phase is waited for, which
// comes with the reason if the pod was ended from outside.
func Ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || Wrote(pod) || outlived(pod)
}

// Wrote reports whether the populator has committed its list and ended. A pod that is evicted before its phase says so has
// written its list all the same.
func Wrote(pod *corev1.Pod) bool {
	t := Terminated(pod)
	if t == nil || t.ExitCode != 0 {
		return false
	}
	result, err := outcome.Parse(t.Message)
	return err == nil && result.Reason == outcome.Populated
}

// outlived reports whether the populator has ended and another container of the pod has not. Containers that are to run beside the
// others (init containers that restart) do not count: the kubelet ends them by itself.
func outlived(pod *corev1.Pod) bool {
	if Terminated(pod) == nil {
		return false
	}
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].State.Terminated == nil {
			return true
		}
	}
	return false
}

// EndedAt returns when a pod that has ended did so, as far as anybody has told: its populator's container; or, if that never ran, or was
// lost with its node and nobody knows when, the pod's conditions, of which the last change is the end. It is never before the pod was
// created, whatever the clock of its node says.
func EndedAt(pod *corev1.Pod) time.Time {
	at := pod.CreationTimestamp.Time
	if t := Terminated(pod); t != nil && !t.FinishedAt.IsZero() {
		return latest(at, t.FinishedAt.Time)
	}
	for i := range pod.Status.Conditions {
		at = latest(at, pod.Status.Conditions[i].LastTransitionTime.Time)
	}
	return at
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
