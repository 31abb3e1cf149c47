package machinery

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func TestFillsClaim(t *testing.T) {
	w := newWorld(t, fill(t))
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.waitFilled(claim)

	count := map[string]int{}
	w.eventually("the event is there", func() bool {
		clear(count)
		for _, e := range w.eventsOf(claim.Name) {
			count[e.Reason]++
		}
		return count[v1alpha1.ReasonPopulated] > 0
	})
	// A busy machine may take so long that the beginning is told too.
	if begun := count[v1alpha1.ReasonPopulating]; count[v1alpha1.ReasonPopulated] != 1 || begun > 1 || len(count) != 1+begun {
		t.Errorf("events on the claim: %v, want one Populated, and at most one Populating", count)
	}
	var volume corev1.PersistentVolume
	volume.Name = claim.Spec.VolumeName
	w.remove(claim)
	w.waitGone(claim)
	w.eventually("the volume is gone", func() bool { return !w.get(&volume) })
}

func TestMarksTemporaryObjects(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	pod := w.waitRunning(claim)
	for _, o := range []client.Object{pod, w.prime(claim)} {
		for key, want := range ownLabels(claim.UID) {
			if got := o.GetLabels()[key]; got != want {
				t.Errorf("%s: label %s is %q, want %q", o.GetName(), key, got, want)
			}
		}
		if got, _ := claimOf(o.GetAnnotations()); got != nameOf(claim) {
			t.Errorf("%s: belongs to %v, want %v", o.GetName(), got, nameOf(claim))
		}
	}
}

func TestClaimBeforeRange(t *testing.T) {
	w := newWorld(t, fill(t))
	w.startController()
	claim := w.addClaim("claim", "range")
	w.addRange("other")
	w.waitFilled(w.addClaim("barrier", "other"))
	if w.prime(claim) != nil {
		t.Error("there is a prime claim although the ChangedBlockRange does not exist")
	}
	w.addRange("range")
	w.waitFilled(claim)
}

func TestUnresolvedRangeGetsNoPrime(t *testing.T) {
	w := newWorld(t, fill(t))
	w.cfg.Shards = 1
	w.startController()
	w.addRange("resolved")
	w.waitFilled(w.addClaim("first", "resolved"))
	w.resolve.Store(false)
	w.addRange("unresolved")
	claim := w.addClaim("claim", "unresolved")
	// With one queue, what came later was worked on later.
	w.waitFilled(w.addClaim("barrier", "resolved"))
	if w.prime(claim) != nil || hasFinalizer(claim) {
		t.Error("the claim was worked on although its ChangedBlockRange is not resolved")
	}
	w.resolve.Store(true)
	w.look()
	w.waitFilled(claim)
}

func TestUnrecordedResultIsKept(t *testing.T) {
	w := newWorld(t, fill(t))
	w.cfg.Shards = 1
	w.startController()
	w.record.Store(false)
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.eventually("the pod has succeeded", func() bool {
		pod := w.pod(claim)
		return pod != nil && pod.Status.Phase == corev1.PodSucceeded
	})
	w.touch(claim)
	w.waitGated("barrier")
	if pod := w.pod(claim); pod == nil || pod.DeletionTimestamp != nil {
		t.Fatal("the pod was removed before its result was recorded")
	}
	w.get(claim)
	if claim.Spec.VolumeName != "" {
		t.Fatal("the claim was bound before the result was recorded")
	}
	w.record.Store(true)
	w.look()
	w.waitFilled(claim)
}

func TestTerminalFailureIsNotRetried(t *testing.T) {
	w := newWorld(t, fail(t, outcome.ListTooLarge))
	w.cfg.Shards = 1
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	var failed *corev1.Pod
	w.eventually("the failure is recorded", func() bool {
		failed = w.pod(claim)
		return failed != nil && annotated(failed)
	})
	w.touch(claim)
	w.waitGated("barrier")
	pod := w.pod(claim)
	if pod == nil || pod.UID != failed.UID || pod.DeletionTimestamp != nil {
		t.Fatalf("the failed pod was replaced: now %v", pod)
	}

	// A new address is a reason to try again.
	w.fake.SetKubelet(fill(t))
	service := sampleService()
	w.get(service)
	service.Spec.Address = "elsewhere.example:" + strconv.Itoa(len(w.namespace)+1000)
	if err := w.c.Update(w.ctx, service); err != nil {
		t.Fatal(err)
	}
	w.waitFilled(claim)
	endpoint := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: w.cfg.PopulatorNamespace, Name: endpointName(sampleDriver)}}
	if !w.get(endpoint) || endpoint.Data[endpointAddress] != service.Spec.Address {
		t.Errorf("the endpoint's address is %q, want %q", endpoint.Data[endpointAddress], service.Spec.Address)
	}
}

func TestRetryableFailureIsRetried(t *testing.T) {
	ok, bad := fill(t), fail(t, outcome.StreamFailed)
	var ran sync.Map // the attempts of the pods that ran, by UID
	w := newWorld(t, func(pod *corev1.Pod) *fakecluster.End {
		ran.Store(pod.UID, attemptOf(pod))
		if attemptOf(pod) < 3 {
			return bad(pod)
		}
		return ok(pod)
	})
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.waitFilled(claim)
	var attempts []int
	ran.Range(func(_, attempt any) bool {
		attempts = append(attempts, attempt.(int))
		return true
	})
	if slices.Sort(attempts); !slices.Equal(attempts, []int{1, 2, 3}) {
		t.Errorf("pods ran of the attempts %v, want 1 to 3", attempts)
	}
}

func TestVanishedPodIsReplaced(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	pod := w.waitRunning(claim)
	w.remove(pod)
	w.eventually("there is another pod", func() bool {
		next := w.pod(claim)
		return next != nil && next.UID != pod.UID
	})
	w.fake.SetKubelet(fill(t))
	w.waitFilled(claim)
}

// TestPodThatDoesNotStartIsMadeAgain corrects the name of an image that nobody has: what waits for it waits no longer.
func TestPodThatDoesNotStartIsMadeAgain(t *testing.T) {
	w := newWorld(t, fill(t))
	right := w.cfg.Pod.Image
	w.cfg.Pod.Image = "populator:no-such-tag"
	w.fake.SetHolds(fakecluster.Holds{Start: func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image != right }})
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.eventually("a pod waits on its node", func() bool {
		pod := w.pod(claim)
		return pod != nil && pod.Spec.NodeName != ""
	})
	w.stop()
	w.cfg.Pod.Image = right
	w.startController()
	w.waitFilled(claim)
}

// TestRestarts stops the controller at each step of a claim's life and starts another one.
func TestRestarts(t *testing.T) {
	w := newWorld(t, hang)
	w.fake.SetProvisioning(false)
	restart := func() {
		if w.stop != nil {
			w.stop()
		}
		w.startController()
	}
	restart()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.eventually("there is a prime claim", func() bool { return w.prime(claim) != nil })
	restart()
	w.fake.SetProvisioning(true)
	pod := w.waitRunning(claim)
	restart()
	w.record.Store(false)
	w.fake.SetKubelet(fill(t))
	w.eventually("the pod has succeeded", func() bool { return w.get(pod) && pod.Status.Phase == corev1.PodSucceeded })
	restart()
	w.stop()
	w.record.Store(true)
	w.look()
	w.eventually("the result is recorded", func() bool {
		cbr, err := w.rangeOf(pod)
		return err == nil && recordedIn(cbr, pod)
	})
	restart()
	w.waitFilled(claim)
	if attemptOf(pod) != 1 {
		t.Errorf("the list was written by attempt %d, want 1", attemptOf(pod))
	}
}

// TestStopsWhileItStarts stops the controller when a populator pod is known already and the ChangedBlockRanges are not.
func TestStopsWhileItStarts(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	w.addRange("range")
	w.waitRunning(w.addClaim("claim", "range"))
	w.stop()

	w.transport = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/"+v1alpha1.Resource) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return next.RoundTrip(r)
		})
	}
	w.startController()
	w.eventually("the pod's event waits for the ChangedBlockRanges", func() bool {
		var stacks bytes.Buffer
		return pprof.Lookup("goroutine").WriteTo(&stacks, 2) == nil && strings.Contains(stacks.String(), "(*gate).admit")
	})
	w.stop()
	w.transport = nil
}

func TestManyClaimsWithinTheBound(t *testing.T) {
	const claims, bound = 24, 3
	w := newWorld(t, fill(t))
	w.cfg.Shards, w.cfg.MaxConcurrent = 4, bound
	w.startController()
	w.addRange("range")
	var all []*corev1.PersistentVolumeClaim
	for i := range claims {
		all = append(all, w.addClaim(fmt.Sprintf("claim-%d", i), "range"))
	}
	for _, claim := range all {
		w.waitFilled(claim)
	}
	if got := w.fake.MostPods(); got > bound {
		t.Errorf("%d pods ran at once, the bound is %d", got, bound)
	}
}

func TestWaitForFirstConsumer(t *testing.T) {
	w := newWorld(t, fill(t))
	w.cfg.Shards = 1
	w.startController()
	w.addRange("range")
	claim := w.claim("claim", "range")
	claim.Spec.StorageClassName = ptr.To(fakecluster.ClassLate)
	w.create(claim)
	w.waitFilled(w.addClaim("barrier", "range"))
	if w.prime(claim) != nil {
		t.Error("there is a prime claim before the scheduler chose a node")
	}
	w.get(claim)
	claim.Annotations = map[string]string{annotationSelectedNode: fakecluster.Node}
	if err := w.c.Update(w.ctx, claim); err != nil {
		t.Fatal(err)
	}
	var pod *corev1.Pod
	w.eventually("there is a pod", func() bool {
		if p := w.pod(claim); p != nil {
			pod = p
		}
		return pod != nil
	})
	if got := pod.Spec.Affinity; got == nil || got.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0] != fakecluster.Node {
		t.Errorf("the pod's affinity is %v, want node %s", got, fakecluster.Node)
	}
	w.waitFilled(claim)
}

// touch changes the claim so that the library looks at it again.
func (w *world) touch(claim *corev1.PersistentVolumeClaim) {
	w.Helper()
	w.get(claim)
	patch := client.MergeFrom(claim.DeepCopy())
	claim.Annotations = map[string]string{"test/touched": "true"}
	if err := w.c.Patch(w.ctx, claim, patch); err != nil {
		w.Fatal(err)
	}
}

// waitGated takes another claim to its populator pod. With one queue, everything that was queued before was worked on by
// then.
func (w *world) waitGated(name string) {
	w.Helper()
	claim := w.addClaim(name, "range")
	w.eventually("there is a pod for "+name, func() bool { return w.pod(claim) != nil })
}
