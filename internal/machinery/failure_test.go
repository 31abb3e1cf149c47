package machinery

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func (b *bench) readPrime(t *testing.T) *corev1.PersistentVolumeClaim {
	t.Helper()
	if err := b.client.Get(context.Background(), client.ObjectKeyFromObject(b.target.prime), b.target.prime); err != nil {
		t.Fatal(err)
	}
	return b.target.prime
}

// sync reads the prime claim again, as the library's next sync would, and takes the claim one step further.
func (b *bench) sync(t *testing.T) {
	t.Helper()
	b.readPrime(t)
	if err := b.populateOnce(); !errors.Is(err, errWaiting) {
		t.Fatalf("populate: %v, want waiting", err)
	}
}

func TestFailedPodIsRemovedAndRemembered(t *testing.T) {
	b := newBench(t, nil, interceptor.Funcs{}, endedPod(t, corev1.PodFailed, outcome.PermissionDenied))
	b.cfg.RecheckAfter = 2 * time.Hour
	b.clock = testclock.NewFakePassiveClock(noon.Add(time.Hour - time.Second))
	b.sync(t)
	if b.currentPod(t) == nil || b.waits[0] != time.Second {
		t.Fatalf("before its time: pod %v, waits %v; want the pod kept for one more second", b.currentPod(t), b.waits)
	}
	b.clock = testclock.NewFakePassiveClock(noon.Add(time.Hour))
	b.sync(t)
	if _, ok := rememberedFailure(b.target.prime); ok {
		t.Fatal("the library's prime claim is not a copy; the test proves nothing")
	}
	// The cache has not seen what was written.
	if err := b.populateOnce(); !errors.Is(err, errWaiting) && err == nil {
		t.Fatal("populate: no error, want waiting or a conflict")
	}
	if b.currentPod(t) == nil {
		t.Fatal("the pod was removed before its failure was remembered")
	}
	b.sync(t)
	if b.currentPod(t) != nil {
		t.Fatal("the pod is still there")
	}

	// Another process takes over.
	b.starts = newStarts()
	b.sync(t)
	if b.currentPod(t) != nil || b.waits[len(b.waits)-1] != safetyNet {
		t.Fatalf("pod %v, waits %v; want none until the next attempt is due", b.currentPod(t), b.waits)
	}
	b.clock = testclock.NewFakePassiveClock(noon.Add(2 * time.Hour))
	b.sync(t)
	b.sync(t)
	pod := b.currentPod(t)
	if pod == nil || attemptOf(pod) != 2 {
		t.Fatalf("pod %v, want the second attempt", pod)
	}
	if b.target.prime.Annotations[v1alpha1.AnnotationFailure] != "" {
		t.Error("the failure is still remembered while the next attempt runs")
	}
}

// TestNodesClockDecidesNothing: the pod's node is three hours ahead of us, and so is the end of the pod. The failure is remembered as of
// when it was seen.
func TestNodesClockDecidesNothing(t *testing.T) {
	const retention = 5 * time.Minute
	for reason, want := range map[outcome.Reason]time.Duration{outcome.StreamFailed: DefaultRetryBase, outcome.ListTooLarge: retention} {
		pod := endedPod(t, corev1.PodFailed, reason)
		pod.Status.ContainerStatuses[0].State.Terminated.FinishedAt = metav1.NewTime(noon.Add(3 * time.Hour))
		b := newBench(t, nil, interceptor.Funcs{}, pod)
		b.cfg.FailedPodRetention = ptr.To(retention)
		b.sync(t)
		if b.waits[0] != want {
			t.Errorf("%s: it is looked at again after %v, want %v", reason, b.waits[0], want)
		}
		b.clock = testclock.NewFakePassiveClock(noon.Add(want))
		b.sync(t)
		failed, remembered := rememberedFailure(b.readPrime(t))
		if again := b.currentPod(t) == nil; again != (reason == outcome.StreamFailed) || remembered == again {
			t.Errorf("%s: after %v there is a pod: %v, and the failure is remembered: %v", reason, want, !again, remembered)
		}
		if remembered && !failed.At.Equal(noon) {
			t.Errorf("%s: it is remembered as of %v, want %v", reason, failed.At, noon)
		}
	}
}

// TestTerminalFailureOutlivesItsPod lets the failed pod be removed, restarts the controller, and then removes the cause.
func TestTerminalFailureOutlivesItsPod(t *testing.T) {
	w := newWorld(t, fail(t, outcome.ListTooLarge))
	w.cfg.Shards = 1
	w.cfg.FailedPodRetention = ptr.To(time.Duration(0))
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.eventually("the failed pod is gone and remembered", func() bool {
		prime := w.prime(claim)
		return prime != nil && prime.Annotations[v1alpha1.AnnotationFailure] != "" && w.pod(claim) == nil
	})
	w.fake.SetKubelet(fill(t))
	w.stop()
	w.startController()
	w.touch(claim)
	w.waitGated("barrier")
	if w.prime(claim).Annotations[v1alpha1.AnnotationFailure] == "" || w.pod(claim) != nil {
		t.Fatal("the claim was tried again although nothing had changed")
	}
	w.stop()
	w.cfg.Pod.Image = "populator:other"
	w.startController()
	w.waitFilled(claim)
}

// TestRangeOfAFailedClaimCanBeDeleted deletes the ChangedBlockRange of a claim that failed, after the failed pod is gone, and
// makes another one of the same name.
func TestRangeOfAFailedClaimCanBeDeleted(t *testing.T) {
	w := newWorld(t, fail(t, outcome.ListTooLarge))
	w.cfg.FailedPodRetention = ptr.To(time.Duration(0))
	w.startController()
	cbr := w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.eventually("the failed pod is gone and remembered", func() bool {
		prime := w.prime(claim)
		return prime != nil && prime.Annotations[v1alpha1.AnnotationFailure] != "" && w.pod(claim) == nil
	})
	w.remove(cbr)
	w.eventually("the range is gone", func() bool { return !w.get(cbr.DeepCopy()) })
	w.eventually("nothing is left of the population", func() bool {
		return w.prime(claim) == nil && w.get(claim) && !hasFinalizer(claim)
	})
	w.fake.SetKubelet(fill(t))
	w.addRange("range")
	w.waitFilled(claim)
}
