package machinery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// eventLog is an event recorder that keeps "reason: note" of each event.
type eventLog struct{ notes []string }

func (l *eventLog) Eventf(_, _ runtime.Object, _, reason, _, note string, args ...any) {
	if note == "%s" {
		note = args[0].(string)
	}
	l.notes = append(l.notes, reason+": "+note)
}

func (l *eventLog) AnnotatedEventf(regarding, related runtime.Object, _ map[string]string, eventType, reason, action, note string, args ...any) {
	l.Eventf(regarding, related, eventType, reason, action, note, args...)
}

// bench is a filler over a fake client with the objects of the samples.
type bench struct {
	*filler
	events *eventLog
	target podClaim
	waits  []time.Duration
}

func newBench(t *testing.T, change func(podClaim, podSource, *corev1.PersistentVolume), funcs interceptor.Funcs, more ...client.Object) *bench {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, smsv1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	source, target := sampleSource(), sampleTarget()
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv"},
		Spec:       corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{UID: target.prime.UID}},
	}
	if change != nil {
		change(target, source, volume)
	}
	objects := append(more, source.cbr, source.service, target.claim, target.prime, volume)
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(funcs).Build()
	b := &bench{events: &eventLog{}, target: target}
	settling := newSettling(testclock.NewFakePassiveClock(noon))
	settling.later = func(*corev1.PersistentVolumeClaim, time.Duration) {}
	b.filler = &filler{
		settling: settling,
		cfg:      sampleConfig(), client: c, live: c,
		slots: newSlots(1, 1, func(types.NamespacedName) {}), starts: newStarts(), events: newEvents(b.events, nil), refused: newRefusals(testclock.NewFakePassiveClock(noon), 1),
		clock:    testclock.NewFakePassiveClock(noon),
		announce: func(_ *corev1.PersistentVolumeClaim, d time.Duration) { b.waits = append(b.waits, d) },
	}
	b.deletes = newDeletes(c, b.filler.events, b.clock)
	return b
}

func (b *bench) populateOnce() error {
	return b.populate(context.Background(), b.target.claim, b.target.prime)
}

func (b *bench) currentPod(t *testing.T) *corev1.Pod {
	t.Helper()
	pod, err := b.pod(context.Background(), b.target.claim.UID)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestPopulateCreatesOnePod(t *testing.T) {
	b := newBench(t, nil, interceptor.Funcs{})
	for range 3 {
		if err := b.populateOnce(); !errors.Is(err, errWaiting) {
			t.Fatalf("populate: %v, want waiting", err)
		}
	}
	if b.currentPod(t) == nil {
		t.Fatal("there is no pod")
	}
	var endpoint corev1.ConfigMap
	key := client.ObjectKey{Namespace: "cbt-populator", Name: "endpoint-" + sampleDriver}
	if err := b.client.Get(context.Background(), key, &endpoint); err != nil {
		t.Fatal(err)
	}
	if want := []time.Duration{safetyNet, populatingAfter, populatingAfter}; !slices.Equal(b.waits, want) {
		t.Errorf("announced waits %v, want %v", b.waits, want)
	}
}

// TestPopulatingIsTold once, and only if there is time to read it or something went wrong.
func TestPopulatingIsTold(t *testing.T) {
	ends := func(phase corev1.PodPhase, reason outcome.Reason) func(*testing.T, *corev1.Pod) {
		return func(t *testing.T, pod *corev1.Pod) {
			t.Helper()
			pod.Status = endedPod(t, phase, reason).Status
		}
	}
	runs := func(*testing.T, *corev1.Pod) {}
	for name, test := range map[string]struct {
		after time.Duration
		pod   func(*testing.T, *corev1.Pod)
		// restart has another process see the pod first.
		restart bool
		told    int
	}{
		"it runs":                    {time.Second, runs, false, 0},
		"it runs for long":           {populatingAfter, runs, false, 1},
		"its list is written":        {populatingAfter, ends(corev1.PodSucceeded, outcome.Populated), false, 0},
		"it failed soon":             {time.Second, ends(corev1.PodFailed, outcome.StreamFailed), false, 1},
		"it failed before a restart": {populatingAfter, ends(corev1.PodFailed, outcome.StreamFailed), true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, interceptor.Funcs{})
			now := testclock.NewFakePassiveClock(noon)
			b.clock = now
			if err := b.populateOnce(); !errors.Is(err, errWaiting) {
				t.Fatalf("populate: %v, want waiting", err)
			}
			now.SetTime(noon.Add(test.after))
			pod := b.currentPod(t)
			test.pod(t, pod)
			if err := b.client.Status().Update(context.Background(), pod); err != nil {
				t.Fatal(err)
			}
			if test.restart {
				b.filler.events = newEvents(b.events, nil)
			}
			for range 2 {
				if err := b.populateOnce(); !errors.Is(err, errWaiting) {
					t.Fatalf("populate: %v, want waiting", err)
				}
			}
			if len(b.events.notes) != test.told {
				t.Errorf("events %v, want %d", b.events.notes, test.told)
			}
			if left := b.waits[len(b.waits)-1]; test.told == 0 && test.after < populatingAfter && left != populatingAfter-test.after {
				t.Errorf("it is looked at again after %v", left)
			}
		})
	}
}

func TestPopulateCreatesNoPod(t *testing.T) {
	for name, change := range map[string]func(podClaim, podSource, *corev1.PersistentVolume){
		"prime claim has a volume name but is not bound": func(c podClaim, _ podSource, _ *corev1.PersistentVolume) {
			c.prime.Status.Phase = corev1.ClaimPending
		},
		"prime claim is being deleted": func(c podClaim, _ podSource, _ *corev1.PersistentVolume) {
			c.prime.DeletionTimestamp = &metav1.Time{Time: noon}
			c.prime.Finalizers = []string{"kubernetes.io/pvc-protection"}
		},
		"range is not resolved": func(_ podClaim, s podSource, _ *corev1.PersistentVolume) {
			s.cbr.Status.Conditions[0].ObservedGeneration = 0
		},
		"range has no finalizer":   func(_ podClaim, s podSource, _ *corev1.PersistentVolume) { s.cbr.Finalizers = nil },
		"metadata service is gone": func(_ podClaim, s podSource, _ *corev1.PersistentVolume) { s.cbr.Status.Driver = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, change, interceptor.Funcs{})
			if err := b.populateOnce(); !errors.Is(err, errWaiting) {
				t.Fatalf("populate: %v, want waiting", err)
			}
			if pod := b.currentPod(t); pod != nil {
				t.Errorf("there is a pod %s", pod.Name)
			}
		})
	}
}

// TestListOfOtherSnapshotsIsNotHandedOver: a snapshot was replaced by another one of its name while the pod ran, whether the
// ChangedBlockRange is resolved at the moment or not.
func TestListOfOtherSnapshotsIsNotHandedOver(t *testing.T) {
	for name, unresolve := range map[string]func(*v1alpha1.ChangedBlockRange){
		"resolved":   func(*v1alpha1.ChangedBlockRange) {},
		"unresolved": func(cbr *v1alpha1.ChangedBlockRange) { cbr.Status.Conditions[0].ObservedGeneration = 0 },
	} {
		for _, replaced := range []bool{false, true} {
			b := newBench(t, func(_ podClaim, s podSource, _ *corev1.PersistentVolume) {
				if replaced {
					s.cbr.Status.ToSnapshotHandle = "another"
				}
				unresolve(s.cbr)
			}, interceptor.Funcs{}, endedPod(t, corev1.PodSucceeded, outcome.Populated))
			complete, err := b.complete(context.Background(), b.target.claim, b.target.prime)
			if err != nil || complete == replaced {
				t.Errorf("%s, replaced %v: complete is %v, %v", name, replaced, complete, err)
			}
			if err := b.populateOnce(); replaced != errors.Is(err, errWaiting) {
				t.Errorf("%s, replaced %v: populate says %v", name, replaced, err)
			}
			if pod := b.currentPod(t); replaced != (pod == nil) {
				t.Errorf("%s, replaced %v: the pod is %v", name, replaced, pod)
			}
		}
	}
}

func TestCompleteChecksWhoHasTheVolume(t *testing.T) {
	done := func(t *testing.T) *corev1.Pod { return endedPod(t, corev1.PodSucceeded, outcome.Populated) }
	for _, test := range []struct {
		name     string
		holder   types.UID
		pod      func(*testing.T) *corev1.Pod
		complete bool
		fails    bool
	}{
		{"prime claim, pod done", "uid-prime", done, true, false},
		{"prime claim, pod failed", "uid-prime", func(t *testing.T) *corev1.Pod { return endedPod(t, corev1.PodFailed, outcome.VolumeFull) }, false, false},
		{"prime claim, pod done but not recorded", "uid-prime", func(t *testing.T) *corev1.Pod {
			pod := done(t)
			delete(pod.Annotations, v1alpha1.AnnotationResultRecorded)
			return pod
		}, false, false},
		{"prime claim, pod done and recorded in the status", "uid-prime", func(t *testing.T) *corev1.Pod {
			pod := done(t)
			pod.UID = "uid-pod"
			delete(pod.Annotations, v1alpha1.AnnotationResultRecorded)
			return pod
		}, true, false},
		{"claim itself, pod gone", "uid-claim", nil, true, false},
		{"prime claim, pod gone", "uid-prime", nil, false, false},
		{"someone else, pod done", "uid-thief", done, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var more []client.Object
			if test.pod != nil {
				more = append(more, test.pod(t))
			}
			b := newBench(t, func(_ podClaim, s podSource, v *corev1.PersistentVolume) {
				v.Spec.ClaimRef.UID = test.holder
				s.cbr.Status.RecordedPod = recordedPod("populate-uid-claim")
			}, interceptor.Funcs{}, more...)
			complete, err := b.complete(context.Background(), b.target.claim, b.target.prime)
			if complete != test.complete || (err != nil) != test.fails {
				t.Errorf("complete: %v, %v; want %v, error %v", complete, err, test.complete, test.fails)
			}
			if test.fails && len(b.events.notes) != 1 {
				t.Errorf("events %v, want one", b.events.notes)
			}
		})
	}
}

func TestCleanUpGoesStepByStep(t *testing.T) {
	pod := endedPod(t, corev1.PodSucceeded, outcome.Populated)
	b := newBench(t, func(c podClaim, _ podSource, _ *corev1.PersistentVolume) { c.prime.Status.Phase = corev1.ClaimLost }, interceptor.Funcs{}, pod)
	ctx := context.Background()
	exists := func(o client.Object) bool {
		err := b.client.Get(ctx, client.ObjectKeyFromObject(o), o)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		return err == nil
	}
	clean := func(prime *corev1.PersistentVolumeClaim) error { return b.cleanUp(ctx, b.target.claim, prime) }

	if err := clean(b.target.prime); !errors.Is(err, errWaiting) || !exists(pod.DeepCopy()) {
		t.Fatalf("the claim is not bound: %v; want waiting, and the pod kept", err)
	}
	b.target.claim.Spec.VolumeName = "pv"
	if err := clean(b.target.prime); !errors.Is(err, errWaiting) || exists(pod.DeepCopy()) || !exists(b.target.prime.DeepCopy()) {
		t.Fatalf("first step: %v; want waiting, the pod gone, the prime claim kept", err)
	}
	if err := clean(b.target.prime); !errors.Is(err, errWaiting) || exists(b.target.prime.DeepCopy()) {
		t.Fatalf("second step: %v; want waiting, the prime claim gone", err)
	}
	// The library still knows of the prime claim: it would delete it after us, and fail.
	if err := clean(b.target.prime); !errors.Is(err, errWaiting) {
		t.Fatalf("third step with a stale prime claim: %v; want waiting", err)
	}
	if err := clean(nil); err != nil {
		t.Fatalf("last step: %v", err)
	}
	if len(b.events.notes) != 1 || !strings.HasPrefix(b.events.notes[0], "Populated: ") {
		t.Errorf("events %v, want one Populated", b.events.notes)
	}
}

func TestLostVolumeStartsAgain(t *testing.T) {
	b := newBench(t, func(c podClaim, _ podSource, _ *corev1.PersistentVolume) {
		c.prime.Status.Phase = corev1.ClaimLost
		c.prime.Spec.VolumeName = "gone"
	}, interceptor.Funcs{}, endedPod(t, corev1.PodSucceeded, outcome.Populated))
	for _, step := range []string{"pod", "prime claim"} {
		if err := b.populateOnce(); !errors.Is(err, errWaiting) {
			t.Fatalf("remove %s: %v, want waiting", step, err)
		}
	}
	if b.currentPod(t) != nil {
		t.Error("the pod is still there")
	}
	if err := b.client.Get(context.Background(), client.ObjectKeyFromObject(b.target.prime), b.target.prime); !apierrors.IsNotFound(err) {
		t.Errorf("the prime claim is still there: %v", err)
	}
}

// webhookAnswer is what the API server answers when an admission webhook denies an object; without a code of the webhook's that is 400.
func webhookAnswer(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason,
		Message: `admission webhook "w" denied the request: ` + message}}
}

// TestRejectedPodIsToldOnce, whoever rejects it.
func TestRejectedPodIsToldOnce(t *testing.T) {
	for name, refusal := range map[string]error{
		"quota":                         apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "p", errors.New("exceeded quota: small")),
		"webhook":                       webhookAnswer(400, metav1.StatusReasonUnknown, "exceeded quota: small"),
		"webhook that has much to say":  webhookAnswer(400, metav1.StatusReasonUnknown, "exceeded quota: small"+strings.Repeat(", and ünother one", 100)),
		"webhook with a conflict":       webhookAnswer(409, metav1.StatusReasonAlreadyExists, "exceeded quota: small"),
		"webhook with a failure":        webhookAnswer(500, metav1.StatusReasonInternalError, "exceeded quota: small"),
		"webhook that is away":          apierrors.NewInternalError(errors.New(`failed calling webhook "w": connection refused; exceeded quota: small`)),
		"policy that finds it invalid":  apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "exceeded quota: small", nil),
		"webhook that calls it invalid": apierrors.NewBadRequest("exceeded quota: small"),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if _, ok := o.(*corev1.Pod); ok {
					return refusal
				}
				return c.Create(ctx, o, opts...)
			}})
			for range 3 {
				if err := b.populateOnce(); !errors.Is(err, errWaiting) {
					t.Fatalf("populate: %v, want waiting", err)
				}
			}
			if len(b.events.notes) != 1 || !strings.Contains(b.events.notes[0], "exceeded quota: small") {
				t.Fatalf("events %v, want one with the quota's name", b.events.notes)
			}
			// The API server takes no longer note, and none that is not UTF-8.
			if note := strings.TrimPrefix(b.events.notes[0], "PopulatorRejected: "); len(note) > 1024 || !utf8.ValidString(note) {
				t.Errorf("a note of %d bytes: %s", len(note), note)
			}
			if b.waits[0] != defaultRejectedWait {
				t.Errorf("waits %v, want %v", b.waits[0], defaultRejectedWait)
			}
			if len(b.slots.held) != 0 {
				t.Errorf("slots %v are held without a pod", b.slots.held)
			}
		})
	}
}
