package controller

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// TestReasonsArePublished: the API's constants are what people match on, the outcome's what pods report.
func TestReasonsArePublished(t *testing.T) {
	published := map[string]bool{
		v1alpha1.ReasonPopulated: true, v1alpha1.ReasonInvalidArguments: true, v1alpha1.ReasonInvalidRequest: true,
		v1alpha1.ReasonSnapshotNotFound: true, v1alpha1.ReasonDeltaUnavailable: true, v1alpha1.ReasonPermissionDenied: true,
		v1alpha1.ReasonListTooLarge: true, v1alpha1.ReasonVolumeFull: true, v1alpha1.ReasonProtocolViolation: true,
		v1alpha1.ReasonUnauthenticated: true, v1alpha1.ReasonStreamFailed: true, v1alpha1.ReasonOutputFailed: true,
		v1alpha1.ReasonCancelled: true, v1alpha1.ReasonInternalError: true,
	}
	for _, reason := range outcome.Reasons() {
		if !published[string(reason)] {
			t.Errorf("outcome %s has no constant in api/v1alpha1", reason)
		}
		delete(published, string(reason))
	}
	for reason := range published {
		t.Errorf("no outcome has the published reason %s", reason)
	}
}

func TestReadAttempt(t *testing.T) {
	waitingFor := func(reason, message string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodPending
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
		}
	}
	tests := map[string]struct {
		change   func(*corev1.Pod)
		finished bool
		reason   string
		says     string
		terminal bool
	}{
		"running": {func(*corev1.Pod) {}, false, "", "", false},
		"failed, and an injected container goes on": {func(p *corev1.Pod) {
			ended(t, late, outcome.Result{Reason: outcome.StreamFailed, Message: "cut"})(p)
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "injected", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})
		}, true, v1alpha1.ReasonStreamFailed, "cut", false},
		"being created":      {waitingFor("ContainerCreating", ""), false, "", "", false},
		"image not found":    {waitingFor("ErrImagePull", "manifest unknown"), false, v1alpha1.ReasonImageUnavailable, "registry.test/populator of the populator pod cbt-populator/populate-a cannot be pulled: manifest unknown", false},
		"image pull backoff": {waitingFor("ImagePullBackOff", ""), false, v1alpha1.ReasonImageUnavailable, "ImagePullBackOff", false},
		"bad configuration":  {waitingFor("CreateContainerConfigError", `configmap "x" not found`), false, v1alpha1.ReasonNotStarted, `configmap "x" not found`, false},
		"no node": {func(p *corev1.Pod) {
			p.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/3 nodes are available"}}}
		}, false, v1alpha1.ReasonUnschedulable, "0/3 nodes are available", false},
		"lost with its node": {func(p *corev1.Pod) {
			isDeleting(p)
			p.Spec.NodeName = "node-7"
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}
		}, false, v1alpha1.ReasonEvicted, "being removed from its node node-7", false},
		"deleted":               {func(p *corev1.Pod) { isDeleting(p) }, false, "", "", false},
		"populated":             {ended(t, late, threeBlocks()), true, v1alpha1.ReasonPopulated, "", false},
		"too large":             {ended(t, late, outcome.Result{Reason: outcome.ListTooLarge, Message: "raise it"}), true, v1alpha1.ReasonListTooLarge, "raise it", true},
		"stream failed":         {ended(t, late, outcome.Result{Reason: outcome.StreamFailed, Message: "cut"}), true, v1alpha1.ReasonStreamFailed, "cut", false},
		"failed without a word": {ended(t, late, outcome.Result{Reason: outcome.VolumeFull}), true, v1alpha1.ReasonVolumeFull, "VolumeFull", true},
		"result of the future":  {ended(t, late, outcome.Result{Reason: "Not A Reason", Message: "?"}), true, v1alpha1.ReasonDied, `"Not A Reason"`, false},
		"killed after the list": {func(p *corev1.Pod) {
			ended(t, late, threeBlocks())(p)
			p.Status.Phase, p.Status.Reason = corev1.PodFailed, "Evicted"
			p.Status.ContainerStatuses[0].State.Terminated.ExitCode = 137
		}, true, v1alpha1.ReasonEvicted, "removed from its node", false},
		"evicted after the populator ended": {func(p *corev1.Pod) {
			ended(t, late, threeBlocks())(p)
			p.Status.Phase, p.Status.Reason = corev1.PodFailed, "Evicted"
		}, true, v1alpha1.ReasonPopulated, "", false},
		"populated, its sandbox is still there": {func(p *corev1.Pod) {
			ended(t, late, threeBlocks())(p)
			p.Status.Phase = corev1.PodRunning
		}, true, v1alpha1.ReasonPopulated, "", false},
		"killed after the list, its sandbox is still there": {func(p *corev1.Pod) {
			ended(t, late, threeBlocks())(p)
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses[0].State.Terminated.ExitCode = 137
		}, false, "", "", false},
		"too large, its sandbox is still there": {func(p *corev1.Pod) {
			ended(t, late, outcome.Result{Reason: outcome.ListTooLarge, Message: "raise it"})(p)
			p.Status.Phase = corev1.PodRunning
		}, false, "", "", false},
		"succeeded without list": {func(p *corev1.Pod) { died(corev1.ContainerStateTerminated{})(p); p.Status.Phase = corev1.PodSucceeded }, true, v1alpha1.ReasonDied, "left no result", false},
		"out of memory":          {died(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}), true, v1alpha1.ReasonOutOfMemory, "raise the limit", false},
		"panic":                  {died(corev1.ContainerStateTerminated{ExitCode: 2, Message: "panic: boom\n\ngoroutine 1"}), true, v1alpha1.ReasonDied, "exit code 2 and left no result: panic: boom goroutine 1", false},
		"cannot be executed":     {died(corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: "no such file"}), true, v1alpha1.ReasonNotStarted, "no such file", false},
		"evicted": {func(p *corev1.Pod) {
			p.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "low on disk"}
		}, true, v1alpha1.ReasonEvicted, "low on disk", false},
		"drained": {func(p *corev1.Pod) {
			died(corev1.ContainerStateTerminated{ExitCode: 143})(p)
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}
		}, true, v1alpha1.ReasonEvicted, "removed from its node", false},
		"refused by the kubelet": {func(p *corev1.Pod) {
			p.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfcpu", Message: "Node didn't have enough"}
		}, true, v1alpha1.ReasonNotStarted, "OutOfcpu Node didn't have enough", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := aPod("a", test.change)
			got := readAttempt(&pod)
			reason, message := string(got.result.Reason), got.result.Message
			if got.trouble != nil {
				reason, message = got.trouble.Reason, got.trouble.Message
			}
			if got.finished != test.finished || reason != test.reason || !strings.Contains(message, test.says) || got.terminal() != test.terminal {
				t.Errorf("got finished %t, terminal %t, %s: %s\nwant finished %t, terminal %t, %s: …%s…",
					got.finished, got.terminal(), reason, message, test.finished, test.terminal, test.reason, test.says)
			}
			if test.finished != (got.succeeded() || got.result.Message != "") {
				t.Error("a failure must say something")
			}
		})
	}
}

func TestLastWordsAreBounded(t *testing.T) {
	got := lastWords(strings.Repeat("ä", maxLastWords))
	if len(got) > maxLastWords+len("…") || !strings.HasPrefix(got, "…ä") {
		t.Errorf("got %d bytes: %.10s", len(got), got)
	}
}
