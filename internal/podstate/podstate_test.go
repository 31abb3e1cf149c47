package podstate

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func TestHowFarAPodIs(t *testing.T) {
	message := func(reason outcome.Reason) string {
		data, err := outcome.Result{Reason: reason}.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	ended := func(code int32, message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message}}
	}
	populate := func(state corev1.ContainerState) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: v1alpha1.ContainerPopulate, State: state}
	}
	injected := func(state corev1.ContainerState) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "injected", State: state}
	}
	runs := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	waits := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}
	wrote, failed := ended(0, message(outcome.Populated)), ended(21, message(outcome.StreamFailed))
	beside := corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{populate(failed)}}
	beside.InitContainerStatuses = []corev1.ContainerStatus{injected(runs)}
	containers := func(phase corev1.PodPhase, all ...corev1.ContainerStatus) corev1.PodStatus {
		return corev1.PodStatus{Phase: phase, ContainerStatuses: all}
	}
	for name, test := range map[string]struct {
		status                corev1.PodStatus
		started, ended, wrote bool
	}{
		"nothing is known":                    {corev1.PodStatus{}, false, false, false},
		"waits":                               {containers(corev1.PodPending, populate(waits)), false, false, false},
		"runs":                                {containers(corev1.PodRunning, populate(runs)), true, false, false},
		"an injected container starts first":  {containers(corev1.PodPending, injected(runs), populate(waits)), false, false, false},
		"an injected container has ended":     {containers(corev1.PodRunning, populate(runs), injected(ended(1, ""))), true, false, false},
		"never ran":                           {containers(corev1.PodFailed), false, true, false},
		"succeeded":                           {containers(corev1.PodSucceeded, populate(wrote)), true, true, true},
		"wrote, and its sandbox is there":     {containers(corev1.PodRunning, populate(wrote)), true, true, true},
		"wrote, and was evicted":              {containers(corev1.PodFailed, populate(wrote)), true, true, true},
		"wrote, and was killed":               {containers(corev1.PodFailed, populate(ended(137, message(outcome.Populated)))), true, true, false},
		"ended without a word":                {containers(corev1.PodSucceeded, populate(ended(0, "oh"))), true, true, false},
		"failed, and its sandbox is there":    {containers(corev1.PodRunning, populate(failed)), true, false, false},
		"failed, and a container goes on":     {containers(corev1.PodRunning, populate(failed), injected(runs)), true, true, false},
		"failed, and a container never comes": {containers(corev1.PodPending, injected(waits), populate(failed)), true, true, false},
		"failed, and so did the other":        {containers(corev1.PodRunning, populate(failed), injected(failed)), true, false, false},
		"failed beside an init container":     {beside, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Status: test.status}
			if got := Started(pod); got != test.started {
				t.Errorf("started: %v, want %v", got, test.started)
			}
			if got := Ended(pod); got != test.ended {
				t.Errorf("ended: %v, want %v", got, test.ended)
			}
			if got := Wrote(pod); got != test.wrote {
				t.Errorf("wrote: %v, want %v", got, test.wrote)
			}
		})
	}
}

// TestWhenAPodEnded, also if its kubelet never said so, or has a clock of its own.
func TestWhenAPodEnded(t *testing.T) {
	created := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	after := func(d time.Duration) metav1.Time { return metav1.NewTime(created.Add(d)) }
	conditions := []corev1.PodCondition{
		{Type: corev1.PodScheduled, LastTransitionTime: after(time.Second)},
		{Type: corev1.DisruptionTarget, LastTransitionTime: after(time.Hour)},
		{Type: corev1.PodReady, LastTransitionTime: after(time.Minute)},
	}
	ended := func(at metav1.Time) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{
			Name: v1alpha1.ContainerPopulate,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: 137, Reason: "ContainerStatusUnknown", FinishedAt: at,
			}},
		}}
	}
	for name, test := range map[string]struct {
		status corev1.PodStatus
		want   time.Duration
	}{
		"its container ended":                 {corev1.PodStatus{ContainerStatuses: ended(after(time.Minute))}, time.Minute},
		"its container ended, its pod later":  {corev1.PodStatus{ContainerStatuses: ended(after(time.Second)), Conditions: conditions}, time.Second},
		"its node's clock is behind":          {corev1.PodStatus{ContainerStatuses: ended(after(-time.Hour))}, 0},
		"lost with its node":                  {corev1.PodStatus{ContainerStatuses: ended(metav1.Time{}), Conditions: conditions}, time.Hour},
		"lost with its node, without a word":  {corev1.PodStatus{ContainerStatuses: ended(metav1.Time{})}, 0},
		"evicted before its container ran":    {corev1.PodStatus{Conditions: conditions}, time.Hour},
		"rejected by its node without a word": {corev1.PodStatus{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Status: test.status}
			pod.CreationTimestamp = metav1.NewTime(created)
			if got := EndedAt(pod).Sub(created); got != test.want {
				t.Errorf("%v after it was created, want %v", got, test.want)
			}
		})
	}
}
