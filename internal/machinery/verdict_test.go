package machinery

import (
	"encoding/json"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// endedPod is the pod of the samples, ended at noon with this result and recorded.
func endedPod(t *testing.T, phase corev1.PodPhase, reason outcome.Reason) *corev1.Pod {
	t.Helper()
	pod := populatorPod(sampleConfig(), sampleSource(), sampleTarget())
	pod.CreationTimestamp = metav1.NewTime(noon.Add(-time.Minute))
	pod.Status.Phase = phase
	pod.Annotations[v1alpha1.AnnotationResultRecorded] = "true"
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: v1alpha1.ContainerPopulate,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			FinishedAt: metav1.NewTime(noon), Message: message(t, outcome.Result{Reason: reason}),
		}},
	}}
	return pod
}

func sampleWanted() wanted {
	source := sampleSource()
	return wanted{
		sourceUID: string(source.cbr.UID), primeUID: "uid-prime",
		source: source.cbr.ListFingerprint(), setting: settingDigest(sampleConfig(), source),
	}
}

type change func(*corev1.Pod, *wanted)

type judgeCase struct {
	name   string
	phase  corev1.PodPhase
	reason outcome.Reason
	change change
	after  time.Duration
	want   action
	wait   time.Duration
	fresh  bool
}

func judgeCases() []judgeCase {
	all := func(changes ...change) change {
		return func(p *corev1.Pod, w *wanted) {
			for _, c := range changes {
				c(p, w)
			}
		}
	}
	same := change(func(*corev1.Pod, *wanted) {})
	unrecorded := change(func(p *corev1.Pod, _ *wanted) { delete(p.Annotations, v1alpha1.AnnotationResultRecorded) })
	inStatus := change(func(p *corev1.Pod, w *wanted) { p.UID, w.recordedPod = "uid-pod", "uid-pod" })
	outdated := change(func(p *corev1.Pod, _ *wanted) {
		p.Annotations[v1alpha1.AnnotationResultRecorded] = v1alpha1.ResultOutdated
	})
	otherInStatus := change(func(p *corev1.Pod, w *wanted) { p.UID, w.recordedPod = "uid-pod", "uid-pod-before" })
	running := change(func(p *corev1.Pod, _ *wanted) { p.Status = corev1.PodStatus{Phase: corev1.PodRunning} })
	pulling := change(func(p *corev1.Pod, _ *wanted) {
		p.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			Name: v1alpha1.ContainerPopulate, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}},
		}}}
	})
	unscheduled := change(func(p *corev1.Pod, _ *wanted) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} })
	deleting := change(func(p *corev1.Pod, _ *wanted) { p.DeletionTimestamp = &metav1.Time{Time: noon} })
	otherRange := change(func(_ *corev1.Pod, w *wanted) { w.sourceUID = "other" })
	otherPrime := change(func(_ *corev1.Pod, w *wanted) { w.primeUID = "other" })
	otherSource := change(func(_ *corev1.Pod, w *wanted) { w.source = "other" })
	otherSetting := change(func(_ *corev1.Pod, w *wanted) { w.setting = "other" })
	unresolved := change(func(_ *corev1.Pod, w *wanted) { w.setting = "" })
	silent := change(func(p *corev1.Pod, _ *wanted) { p.Status.ContainerStatuses[0].State.Terminated.Message = "panic: oh" })
	evicted := change(func(p *corev1.Pod, _ *wanted) {
		p.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}
	})
	sandboxed := change(func(p *corev1.Pod, _ *wanted) { p.Status.Phase = corev1.PodRunning })
	killed := change(func(p *corev1.Pod, _ *wanted) { p.Status.ContainerStatuses[0].State.Terminated.ExitCode = 137 })
	sidecar := func(state corev1.ContainerState) change {
		return all(sandboxed, func(p *corev1.Pod, _ *wanted) {
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "injected", State: state})
		})
	}
	stays := sidecar(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	// By the clock of its node; it is noon when it is first seen to have ended.
	endedAt := func(at time.Duration) change {
		return func(p *corev1.Pod, _ *wanted) {
			p.Status.ContainerStatuses[0].State.Terminated.FinishedAt = metav1.NewTime(noon.Add(at))
		}
	}
	attempt := func(n int) change {
		return func(p *corev1.Pod, _ *wanted) { p.Annotations[annotationAttempt] = strconv.Itoa(n) }
	}
	const ok, bad = corev1.PodSucceeded, corev1.PodFailed
	return []judgeCase{
		{"success", ok, outcome.Populated, same, 0, actionComplete, 0, false},
		{"success, unresolved by now", ok, outcome.Populated, unresolved, 0, actionComplete, 0, false},
		{"success, not recorded", ok, outcome.Populated, unrecorded, time.Hour, actionWait, 0, false},
		{"success, recorded in the status", ok, outcome.Populated, all(unrecorded, inStatus), 0, actionComplete, 0, false},
		{"success, another one recorded in the status", ok, outcome.Populated, all(unrecorded, otherInStatus), time.Hour, actionWait, 0, false},
		{"success of another range, not recorded", ok, outcome.Populated, all(unrecorded, otherRange), 0, actionReplace, 0, true},
		{"success for another volume", ok, outcome.Populated, otherPrime, 0, actionReplace, 0, true},
		{"success for other snapshots", ok, outcome.Populated, otherSource, 0, actionReplace, 0, true},
		{"success for other snapshots, unresolved by now", ok, outcome.Populated, all(otherSource, unresolved), 0, actionReplace, 0, true},
		// The mark may be seen before the status that it follows from: then everything still fits.
		{"success for snapshots that were replaced", ok, outcome.Populated, outdated, 0, actionReplace, 0, true},
		{"success for snapshots that were replaced, recorded in the status", ok, outcome.Populated, all(outdated, inStatus), 0, actionReplace, 0, true},
		{"success for snapshots that were replaced, its sandbox is still there", ok, outcome.Populated, all(sandboxed, outdated), 0, actionReplace, 0, true},
		{"failed for snapshots that were replaced", bad, outcome.ListTooLarge, outdated, 0, actionReplace, 0, true},
		{"success, other image by now", ok, outcome.Populated, otherSetting, 0, actionComplete, 0, false},
		{"success without a message", ok, outcome.Populated, silent, 0, actionWait, 10 * time.Second, false},
		{"success, its sandbox is still there", ok, outcome.Populated, sandboxed, 0, actionComplete, 0, false},
		{"success, its sandbox is still there, not recorded", ok, outcome.Populated, all(sandboxed, unrecorded), time.Hour, actionWait, 0, false},
		{"success, evicted after that", bad, outcome.Populated, same, 0, actionComplete, 0, false},
		{"failed with a success message", bad, outcome.Populated, killed, time.Minute, actionReplace, 0, false},
		{"killed with a success message, its sandbox is still there", ok, outcome.Populated, all(sandboxed, killed), time.Hour, actionWait, 0, false},
		{"failed, its sandbox is still there", bad, outcome.StreamFailed, all(sandboxed, killed), time.Hour, actionWait, 0, false},
		{"failed, an injected container goes on", bad, outcome.StreamFailed, all(stays, killed), time.Minute, actionReplace, 0, false},
		{"failed for good, an injected container goes on", bad, outcome.ListTooLarge, all(stays, killed), time.Minute, actionWait, 59 * time.Minute, false},
		{"failed, an injected container goes on, not recorded", bad, outcome.StreamFailed, all(stays, killed, unrecorded), time.Hour, actionWait, 0, false},
		{"running", ok, outcome.Populated, running, time.Hour, actionWait, 0, false},
		{"running for another range", ok, outcome.Populated, all(running, otherRange), 0, actionReplace, 0, true},
		{"running for other snapshots", ok, outcome.Populated, all(running, otherSource), 0, actionReplace, 0, true},
		{"running for other snapshots, unresolved by now", ok, outcome.Populated, all(running, otherSource, unresolved), 0, actionReplace, 0, true},
		{"running, other image by now", ok, outcome.Populated, all(running, otherSetting), 0, actionWait, 0, false},
		{"running, unresolved by now", ok, outcome.Populated, all(running, unresolved), 0, actionWait, 0, false},
		{"not started", ok, outcome.Populated, pulling, time.Hour, actionWait, 0, false},
		{"not started, other image by now", ok, outcome.Populated, all(pulling, otherSetting), 0, actionReplace, 0, true},
		{"no node yet, other node selector by now", ok, outcome.Populated, all(unscheduled, otherSetting), 0, actionReplace, 0, true},
		{"not started, unresolved by now", ok, outcome.Populated, all(pulling, unresolved), time.Hour, actionWait, 0, false},
		{"not started, being deleted, other image by now", ok, outcome.Populated, all(pulling, deleting, otherSetting), time.Hour, actionWait, 0, false},
		{"being deleted", bad, outcome.StreamFailed, deleting, time.Hour, actionWait, 0, false},

		{"terminal", bad, outcome.ListTooLarge, same, 15 * time.Minute, actionWait, 45 * time.Minute, false},
		{"terminal, logs kept long enough", bad, outcome.ListTooLarge, same, time.Hour, actionRetire, 0, false},
		{"terminal, logs kept long enough, other image", bad, outcome.ListTooLarge, otherSetting, time.Hour, actionReplace, 0, true},
		{"terminal, logs kept long enough, not recorded", bad, outcome.ListTooLarge, unrecorded, time.Hour, actionWait, 0, false},
		{"terminal, not recorded, other image", bad, outcome.ListTooLarge, all(unrecorded, otherSetting), 0, actionWait, 0, false},
		{"terminal, other image by now", bad, outcome.ListTooLarge, otherSetting, 0, actionReplace, 0, true},
		{"terminal, unresolved by now", bad, outcome.ListTooLarge, unresolved, 0, actionWait, time.Hour, false},
		{"denied, a moment ago", bad, outcome.PermissionDenied, same, time.Minute, actionWait, 9 * time.Minute, false},
		{"denied, a while ago", bad, outcome.PermissionDenied, same, 10 * time.Minute, actionReplace, 0, false},

		{"retryable, first attempt", bad, outcome.StreamFailed, same, 4 * time.Second, actionWait, 6 * time.Second, false},
		{"retryable, third attempt", bad, outcome.StreamFailed, attempt(3), 0, actionWait, 40 * time.Second, false},
		{"retryable, hundredth attempt", bad, outcome.StreamFailed, attempt(100), 0, actionWait, 5 * time.Minute, false},
		{"retryable, time is up", bad, outcome.StreamFailed, same, 10 * time.Second, actionReplace, 0, false},
		{"retryable, unresolved by now", bad, outcome.StreamFailed, unresolved, 59 * time.Minute, actionWait, time.Minute, false},
		{"retryable, unresolved for long", bad, outcome.StreamFailed, unresolved, time.Hour, actionRetire, 0, false},
		{"retryable, its node's clock is ahead", bad, outcome.StreamFailed, endedAt(3 * time.Hour), 4 * time.Second, actionWait, 6 * time.Second, false},
		{"retryable, its node's clock is ahead, time is up", bad, outcome.StreamFailed, endedAt(3 * time.Hour), 10 * time.Second, actionReplace, 0, false},
		{"terminal, its node's clock is ahead", bad, outcome.ListTooLarge, endedAt(3 * time.Hour), 15 * time.Minute, actionWait, 45 * time.Minute, false},
		{"terminal, its node's clock is ahead, logs kept long enough", bad, outcome.ListTooLarge, endedAt(3 * time.Hour), time.Hour, actionRetire, 0, false},
		{"terminal, its node's clock is behind", bad, outcome.ListTooLarge, endedAt(-3 * time.Hour), 15 * time.Minute, actionWait, 44 * time.Minute, false},
		{"died without a message", bad, "", silent, 0, actionWait, 10 * time.Second, false},
		{"evicted before it started", bad, "", evicted, 0, actionReplace, 0, false},
	}
}

func TestJudge(t *testing.T) {
	for _, test := range judgeCases() {
		t.Run(test.name, func(t *testing.T) {
			pod, want := endedPod(t, test.phase, test.reason), sampleWanted()
			test.change(pod, &want)
			got := judge(sampleConfig(), pod, want, noon, noon.Add(test.after))
			if got.action != test.want || got.wait != test.wait || got.fresh != test.fresh {
				t.Errorf("got action %d, wait %v, fresh %v (%s); want action %d, wait %v, fresh %v",
					got.action, got.wait, got.fresh, got.why, test.want, test.wait, test.fresh)
			}
		})
	}
}

// TestFailureOutlivesItsPod looks whether what is written to the prime claim decides like the pod.
func TestFailureOutlivesItsPod(t *testing.T) {
	for _, test := range []struct {
		name   string
		reason outcome.Reason
		change func(*wanted)
		after  time.Duration
		want   action
		wait   time.Duration
		fresh  bool
	}{
		{"terminal", outcome.ListTooLarge, func(*wanted) {}, 1000 * time.Hour, actionWait, 0, false},
		{"terminal, unresolved", outcome.ListTooLarge, func(w *wanted) { w.setting = "" }, 0, actionWait, 0, false},
		{"terminal, other range", outcome.ListTooLarge, func(w *wanted) { w.sourceUID = "other" }, 0, actionReplace, 0, true},
		{"terminal, other snapshots", outcome.ListTooLarge, func(w *wanted) { w.source = "other" }, 0, actionReplace, 0, true},
		{"terminal, other image", outcome.ListTooLarge, func(w *wanted) { w.setting = "other" }, 0, actionReplace, 0, true},
		{"denied", outcome.PermissionDenied, func(*wanted) {}, 9 * time.Minute, actionWait, time.Minute, false},
		{"denied for long", outcome.PermissionDenied, func(*wanted) {}, 10 * time.Minute, actionReplace, 0, false},
		{"retryable", outcome.StreamFailed, func(*wanted) {}, time.Hour, actionReplace, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := json.Marshal(failureOf(endedPod(t, corev1.PodFailed, test.reason), noon))
			if err != nil {
				t.Fatal(err)
			}
			prime, want := sampleTarget().prime, sampleWanted()
			prime.Annotations = map[string]string{v1alpha1.AnnotationFailure: string(data)}
			failed, ok := rememberedFailure(prime)
			if !ok || failed != failureOf(endedPod(t, corev1.PodFailed, test.reason), noon) {
				t.Fatalf("read %+v, %v from %s", failed, ok, data)
			}
			test.change(&want)
			got := judgeFailure(sampleConfig(), failed, want, noon.Add(test.after))
			if got.action != test.want || got.wait != test.wait || got.fresh != test.fresh {
				t.Errorf("got action %d, wait %v, fresh %v (%s); want action %d, wait %v, fresh %v",
					got.action, got.wait, got.fresh, got.why, test.want, test.wait, test.fresh)
			}
		})
	}
}

func TestStartsLimitVanishingPods(t *testing.T) {
	cfg, s, pod := sampleConfig(), newStarts(), endedPod(t, corev1.PodRunning, "")
	claim := claimUIDFromName(pod.Name)
	if attempt, wait := s.next(cfg, claim, noon); attempt != 1 || wait != 0 {
		t.Errorf("first: attempt %d after %v, want 1 at once", attempt, wait)
	}
	pod.CreationTimestamp = metav1.NewTime(noon)
	pod.Annotations[annotationAttempt] = "2"
	s.created(pod)
	if attempt, wait := s.next(cfg, claim, noon.Add(5*time.Second)); attempt != 3 || wait != 15*time.Second {
		t.Errorf("after the second vanished: attempt %d after %v, want 3 after 15s", attempt, wait)
	}
	if !s.unseen(claim) {
		t.Error("the pod counts as seen although it was not")
	}
	s.seen(claim)
	s.observe(pod, noon)
	if s.unseen(claim) {
		t.Error("the pod counts as unseen although it was seen")
	}
	s.forget(claim)
	if attempt, wait := s.next(cfg, claim, noon); attempt != 1 || wait != 0 {
		t.Errorf("after forget: attempt %d after %v, want 1 at once", attempt, wait)
	}
}
