package controller

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// TestStatusComesFirst fails the status write and looks at what must not have happened then.
func TestStatusComesFirst(t *testing.T) {
	boom := errors.New("boom")
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: v1alpha1.Resource}, "cbr", boom)
	for name, test := range map[string]struct{ refuse, want error }{
		"an error is returned":                   {boom, boom},
		"a conflict waits for the newer version": {conflict, nil},
	} {
		t.Run(name, func(t *testing.T) {
			refuse := test.refuse
			claim, pod := aClaim("a", isStarted), aPod("a", ended(t, late, outcome.Result{Reason: outcome.VolumeFull, Message: "m"}))
			refersTo("cbr")(&claim)
			resolved := aRange(func(c *v1alpha1.ChangedBlockRange) {
				c.Status.Driver, c.Status.FromSnapshotHandle, c.Status.ToSnapshotHandle = "driver", "handle-from", "handle-to"
			})
			builder := indexedClient{fake.NewClientBuilder().WithScheme(testScheme()).
				WithObjects(resolved, &claim, &pod).WithStatusSubresource(&v1alpha1.ChangedBlockRange{}).
				WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
					if refuse != nil {
						return refuse
					}
					return c.SubResource(sub).Patch(ctx, o, p, opts...)
				}})}
			if err := addIndexes(t.Context(), builder); err != nil {
				t.Fatal(err)
			}
			c, events := builder.Build(), &tape{}
			r := newReconciler(c, events, Config{PopulatorNamespace: populatorNamespace, Now: func() time.Time { return noon }})
			look := func() error {
				_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "app", Name: "cbr"}})
				if err := c.Get(t.Context(), client.ObjectKeyFromObject(&pod), &pod); err != nil {
					t.Fatal(err)
				}
				return err
			}

			if err := look(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if len(events.events) != 0 {
				t.Errorf("events before the status: %v", events.events)
			}
			var cbr v1alpha1.ChangedBlockRange
			if err := c.Get(t.Context(), client.ObjectKey{Namespace: "app", Name: "cbr"}, &cbr); err != nil {
				t.Fatal(err)
			}
			if isMarked(&pod) || cbr.Status.RecordedPod != nil {
				t.Error("the pod is released before its result is in the status")
			}
			if !isHeld(&cbr) {
				t.Error("the finalizer must be on before the status says anything")
			}

			refuse = nil
			if err := look(); err != nil {
				t.Fatal(err)
			}
			if len(events.events) == 0 || !isMarked(&pod) {
				t.Errorf("after the status: events %v, annotations %v", events.events, pod.Annotations)
			}
		})
	}
}

// TestResultsSurviveTheController has another reconciler take over between any two writes.
func TestResultsSurviveTheController(t *testing.T) {
	first, second := aClaim("a", isStarted, refersTo("cbr")), aClaim("b", isStarted, refersTo("cbr"))
	d := newDesk(t, &first, &second)
	d.wrote("claims wait", "range", "range/status")
	one, two := aPod("a"), aPod("b")
	d.create(&one)
	d.create(&two)
	listed := func() (n int64) {
		if count := d.cbr().Status.EntryCount; count != nil {
			n = *count
		}
		return n
	}
	more := threeBlocks()
	more.EntryCount = 4

	d.end(&one, threeBlocks())
	d.refuse = "range/status"
	if err := d.reconcile(); !errors.Is(err, errRefused) || d.cbr().Status.RecordedPod != nil {
		t.Errorf("before the status: %v, %+v", err, d.cbr().Status)
	}
	d.refuse = ""
	d.restart()
	d.wrote("the first list", "range/status")
	if !isPod(d.cbr().Status.RecordedPod, &one) || listed() != 3 {
		t.Errorf("the first list is not recorded: %+v", d.cbr().Status)
	}
	d.restart()
	d.wrote("after the status")

	// The first pod is still there, so the status has to say that its result is recorded.
	d.end(&two, more)
	d.refuse = "pod"
	if err := d.reconcile(); !errors.Is(err, errRefused) || listed() != 4 || !isPod(d.cbr().Status.RecordedPod, &one) {
		t.Errorf("before the annotation: %v, %+v", err, d.cbr().Status)
	}
	d.refuse = ""
	d.restart()
	d.wrote("the second list", "pod")
	d.restart()
	d.wrote("after the annotation")

	d.bind(&first)
	d.remove(&one)
	d.wrote("the first pod is gone")
	three := aPod("c", ended(t, late, threeBlocks()))
	d.create(&three)
	d.wrote("the third list", "range/status")
	if !isPod(d.cbr().Status.RecordedPod, &three) || listed() != 3 {
		t.Errorf("the third list is not recorded: %+v", d.cbr().Status)
	}
	d.remove(&three)
	four := aPod("d", ended(t, late, threeBlocks()))
	d.create(&four)
	d.wrote("the same list once more", "pod")
}

// TestFallbackIsToldHoweverOftenTheControllerDies: the event on the claim comes after the status, the mark on the pod after that.
func TestFallbackIsToldHoweverOftenTheControllerDies(t *testing.T) {
	claim, pod := aClaim("a", isStarted, refersTo("cbr")), aPod("a", ended(t, late, outcome.Result{Reason: outcome.Populated, Mode: "Allocated"}))
	d := newDesk(t, &claim, &pod)
	d.refuse = "pod"
	for range 2 {
		d.restart()
		if err := d.reconcile(); !errors.Is(err, errRefused) || !slices.Contains(d.events.take(), "Warning UsedAllocated a") {
			t.Errorf("%v, and the claim was not told", err)
		}
	}
}

// TestReplacedSnapshotOutdatesLists: the machinery may see what is said of a pod before it sees the status, so a list of snapshots
// that were replaced is told from one that is recorded, however it was recorded before. It stays outdated when they come back: by
// then the status has forgotten it.
func TestReplacedSnapshotOutdatesLists(t *testing.T) {
	for name, test := range map[string]struct {
		before func(*desk, *corev1.Pod)
		counts bool
	}{
		"it has not ended before": {func(*desk, *corev1.Pod) {}, true},
		"the status names it": {func(d *desk, pod *corev1.Pod) {
			d.end(pod, threeBlocks())
			d.wrote("the list", "range/status")
			if !isPod(d.cbr().Status.RecordedPod, pod) {
				d.Fatalf("the status does not name the pod: %+v", d.cbr().Status)
			}
		}, false},
		"it is marked": {func(d *desk, pod *corev1.Pod) { d.update(pod, func() { isRecorded(pod) }); d.end(pod, threeBlocks()) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			claim, pod, to := aClaim("a", isStarted, refersTo("cbr")), aPod("a"), aSnapshot("to").Content
			d := newDesk(t, &claim, &pod)
			if err := d.reconcile(); err != nil {
				t.Fatal(err)
			}
			test.before(d, &pod)
			d.restart()
			d.update(to, func() { to.Status.SnapshotHandle = ptr("another") })
			d.update(&pod, func() {})
			d.end(&pod, threeBlocks())
			d.wrote("a snapshot is replaced", "range/status", "pod")
			mark := func() string {
				d.update(&pod, func() {})
				return pod.Annotations[v1alpha1.AnnotationResultRecorded]
			}
			if got := mark(); got != v1alpha1.ResultOutdated {
				t.Errorf("the pod is marked %q", got)
			}
			counted := testutil.CollectAndCount(d.metrics.populations)
			if (counted == 1) != test.counts {
				t.Errorf("%d populations are counted", counted)
			}

			d.update(to, func() { to.Status.SnapshotHandle = ptr("handle-to") })
			d.wrote("it comes back", "range/status")
			status := d.cbr().Status
			if got := mark(); got != v1alpha1.ResultOutdated || status.State == v1alpha1.StateReady || status.EntryCount != nil || status.PopulatedClaims != 0 {
				t.Errorf("the pod is marked %q, and the status says %+v", got, status)
			}
		})
	}
}
