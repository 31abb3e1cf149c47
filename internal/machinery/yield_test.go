package machinery

import (
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestPodThatDoesNotStartYields its slot, but only to somebody, and not at once.
func TestPodThatDoesNotStartYields(t *testing.T) {
	condition := func(status corev1.ConditionStatus, reason string) corev1.PodCondition {
		return corev1.PodCondition{Type: corev1.PodScheduled, Status: status, Reason: reason}
	}
	unschedulable, scheduled := condition(corev1.ConditionFalse, corev1.PodReasonUnschedulable), condition(corev1.ConditionTrue, "")
	for name, test := range map[string]struct {
		condition corev1.PodCondition
		since     time.Duration
		contended bool
		runs      bool
		wait      time.Duration
		gone      bool
	}{
		"no node, a moment ago, others wait":   {unschedulable, 10 * time.Second, true, false, 50 * time.Second, false},
		"no node, long ago, nobody waits":      {unschedulable, time.Hour, false, false, time.Minute, false},
		"no node, long ago, others wait":       {unschedulable, time.Minute, true, false, 0, true},
		"its volume is slow, others wait":      {scheduled, 9 * time.Minute, true, false, time.Minute, false},
		"its volume never comes, nobody waits": {scheduled, time.Hour, false, false, time.Minute, false},
		"its volume never comes, others wait":  {scheduled, 10 * time.Minute, true, false, 0, true},
		"it runs for long, others wait":        {scheduled, time.Hour, true, true, 0, false},
		"its condition is of no kind we know":  {condition(corev1.ConditionFalse, "Gated"), time.Hour, true, false, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := populatorPod(sampleConfig(), sampleSource(), sampleTarget())
			test.condition.LastTransitionTime = metav1.NewTime(noon.Add(-test.since))
			state := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
			if test.runs {
				state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
			}
			pod.Status = corev1.PodStatus{
				Phase: corev1.PodPending, Conditions: []corev1.PodCondition{test.condition},
				ContainerStatuses: []corev1.ContainerStatus{{Name: v1alpha1.ContainerPopulate, State: state}},
			}
			b := newBench(t, nil, interceptor.Funcs{}, pod)
			b.slots.observe(pod)
			if test.contended {
				b.slots.acquire(slot{pod: "other", driver: sampleDriver})
			}
			if v := b.yield(pod, verdict{}); v.wait != test.wait {
				t.Errorf("it waits for %v, want %v", v.wait, test.wait)
			}
			if err := b.populateOnce(); !errors.Is(err, errWaiting) {
				t.Fatalf("populate: %v, want waiting", err)
			}
			if left := b.currentPod(t); (left == nil) != test.gone {
				t.Errorf("the pod is %v; gone: want %v", left, test.gone)
			}
		})
	}
}

// TestNoMorePodsYieldThanClaimsWait: a pod that is replaced begins to start anew, so none gives its slot up in vain.
func TestNoMorePodsYieldThanClaimsWait(t *testing.T) {
	s, _ := newTestSlots(4, 3)
	for _, name := range []string{"a", "b", "c"} {
		s.acquire(want("ns", name, "d"))
	}
	s.acquire(want("ns", "x", "other"))
	yield := func(when string, now time.Time, want ...string) {
		t.Helper()
		var got []string
		for _, name := range []string{"a", "b", "c", "x"} {
			if s.contended("ns-"+name, now) {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v yield, want %v", when, got, want)
		}
	}
	s.acquire(want("ns", "e", "d"))
	yield("one waits", noon, "a")
	yield("one waits, asked again", noon, "a")
	s.acquire(want("ns", "f", "d"))
	yield("two wait", noon, "a", "b")

	// b has started in the last moment, and will not go.
	pod := populatorPod(sampleConfig(), sampleSource(), sampleTarget())
	pod.Annotations[v1alpha1.AnnotationDriver] = "d"
	pod.Name = "ns-b"
	s.observe(pod)
	s.release("ns-f")
	yield("b has started, and one waits no more", noon, "a")

	// a is deleted, but its node is gone, and so a stays.
	pod.Name, pod.DeletionTimestamp = "ns-a", &metav1.Time{Time: noon}
	s.observe(pod)
	if s.contended("ns-c", noon) {
		t.Error("c yields to the one that a has just yielded to")
	}
	if !s.contended("ns-c", noon.Add(time.Hour)) {
		t.Error("c does not yield, because a has, which is still there after an hour")
	}
}
