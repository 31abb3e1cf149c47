package controller

import (
	"context"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// desk is a reconciler over a fake client, with a clock that is set by hand.
type desk struct {
	*testing.T
	client.Client
	*reconciler
	events *tape
	now    time.Time
	// writes are the requests since the last look, as "resource" or "resource/subresource".
	writes []string
	// refuse makes the next writes fail; cached is what the reconciler sees in place of the newest ChangedBlockRange.
	refuse error
	cached *v1alpha1.ChangedBlockRange
}

// newDesk has a ChangedBlockRange that can be resolved, and more objects.
func newDesk(t *testing.T, more ...client.Object) *desk {
	t.Helper()
	d := &desk{T: t, now: noon, events: &tape{}}
	objects := []client.Object{aRange()}
	for _, name := range []string{"from", "to"} {
		s := aSnapshot(name)
		objects = append(objects, s.Object, s.Content)
	}
	objects = append(objects, aService())
	write := func(what string, do func() error) error {
		d.writes = append(d.writes, what)
		if d.refuse != nil {
			return d.refuse
		}
		return do()
	}
	builder := indexedClient{fake.NewClientBuilder().WithScheme(testScheme()).WithObjects(append(objects, more...)...).
		WithStatusSubresource(&v1alpha1.ChangedBlockRange{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
				if cbr, ok := o.(*v1alpha1.ChangedBlockRange); ok && d.cached != nil {
					d.cached.DeepCopyInto(cbr)
					return nil
				}
				return c.Get(ctx, key, o, opts...)
			},
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
				return write(kindOf(o), func() error { return c.Patch(ctx, o, p, opts...) })
			},
			SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				return write(kindOf(o)+"/"+sub, func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
			}})}
	if err := addIndexes(t.Context(), builder); err != nil {
		t.Fatal(err)
	}
	d.Client = builder.Build()
	d.reconciler = newReconciler(d.Client, d.events, Config{PopulatorNamespace: populatorNamespace, Now: func() time.Time { return d.now }})
	return d
}

func kindOf(o client.Object) string {
	switch o.(type) {
	case *v1alpha1.ChangedBlockRange:
		return "range"
	case *corev1.Pod:
		return "pod"
	}
	return "other"
}

// look reconciles once and returns the writes and how long the next one waits.
func (d *desk) look() (writes []string, wait time.Duration) {
	d.Helper()
	d.writes = nil
	result, err := d.Reconcile(d.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "app", Name: "cbr"}})
	if err != nil {
		d.Fatal(err)
	}
	return d.writes, result.RequeueAfter
}

// wrote looks and compares the writes.
func (d *desk) wrote(when string, want ...string) (wait time.Duration) {
	d.Helper()
	got, wait := d.look()
	if !slices.Equal(got, want) {
		d.Errorf("%s: writes %v, want %v", when, got, want)
	}
	return wait
}

func (d *desk) cbr() *v1alpha1.ChangedBlockRange {
	d.Helper()
	var cbr v1alpha1.ChangedBlockRange
	if err := d.Get(d.Context(), client.ObjectKey{Namespace: "app", Name: "cbr"}, &cbr); err != nil {
		d.Fatal(err)
	}
	return &cbr
}

func (d *desk) create(o client.Object) {
	d.Helper()
	if err := d.Create(d.Context(), o); err != nil {
		d.Fatal(err)
	}
}

func (d *desk) update(o client.Object, change func()) {
	d.Helper()
	if err := d.Get(d.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		d.Fatal(err)
	}
	change()
	if err := d.Update(d.Context(), o); err != nil {
		d.Fatal(err)
	}
}

// end plays the kubelet.
func (d *desk) end(pod *corev1.Pod, result outcome.Result) {
	d.Helper()
	ended(d.T, late, result)(pod)
	if err := d.Status().Update(d.Context(), pod); err != nil {
		d.Fatal(err)
	}
}

func (d *desk) remove(o client.Object) {
	d.Helper()
	if err := d.Delete(d.Context(), o); err != nil {
		d.Fatal(err)
	}
}

// TestWritesOfAPopulation follows a claim from its creation to its end, which takes two seconds or four.
func TestWritesOfAPopulation(t *testing.T) {
	for name, test := range map[string]struct {
		takes time.Duration
		// running is what is written when the populator has run for that long.
		running []string
	}{
		"a short one": {2 * time.Second, nil},
		"a long one":  {4 * time.Second, []string{"range/status"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.wrote("without a claim", "range/status")
			d.wrote("once more")
			d.now = d.now.Add(time.Hour)

			claim := aClaim("a", refersTo("cbr"))
			d.create(&claim)
			d.wrote("a claim waits", "range")
			d.update(&claim, func() { isStarted(&claim) })
			pod := aPod("a")
			d.create(&pod)
			if wait := d.wrote("the populator runs"); wait != beginsAfter {
				t.Errorf("that it runs is told after %v, want %v", wait, beginsAfter)
			}
			d.now = d.now.Add(test.takes)
			d.wrote("it still runs", test.running...)
			if told := d.cbr().Status.State == v1alpha1.StatePopulating; told != (test.running != nil) {
				t.Errorf("after %v the state is %s", test.takes, d.cbr().Status.State)
			}
			d.end(&pod, threeBlocks())
			d.look()
			if d.cbr().Status.State != v1alpha1.StateReady {
				t.Errorf("the result had to wait: %+v", d.cbr().Status)
			}
		})
	}
}

// TestDetailsAreWrittenInTime changes the count of claims many times a second.
func TestDetailsAreWrittenInTime(t *testing.T) {
	d := newDesk(t)
	d.look()
	pod := aPod("a", ended(t, late, threeBlocks()))
	d.create(&pod)
	d.look()
	d.look() // takes the finalizer off
	for i, name := range []string{"a", "b", "c"} {
		claim := aClaim(name, refersTo("cbr"), isBound)
		d.create(&claim)
		if wait := d.wrote("one more claim"); wait != statusInterval-time.Duration(i)*statusInterval/4 {
			t.Errorf("claim %s waits for %v", name, wait)
		}
		d.now = d.now.Add(statusInterval / 4)
	}
	d.now = d.now.Add(statusInterval / 4)
	d.wrote("a second has passed", "range/status")
	if n := d.cbr().Status.PopulatedClaims; n != 3 {
		t.Errorf("%d claims are counted, want 3", n)
	}
}

// TestDeletionIsExplainedInTime: who deletes a ChangedBlockRange waits for an answer.
func TestDeletionIsExplainedInTime(t *testing.T) {
	claim, pod := aClaim("a", refersTo("cbr"), isStarted), aPod("a")
	d := newDesk(t, &claim, &pod)
	d.look()
	d.remove(d.cbr())
	d.now = d.now.Add(statusInterval)
	d.wrote("it is being deleted", "range/status")
}

// TestCacheThatLagsBehind shows the reconciler versions that it has replaced itself, whose writes would all be refused.
func TestCacheThatLagsBehind(t *testing.T) {
	claim := aClaim("a", refersTo("cbr"))
	d := newDesk(t, &claim)
	old := d.cbr()
	d.wrote("a claim waits", "range", "range/status")
	d.cached = old
	d.wrote("the cache has the first version")
	d.cached = nil
	pod := aPod("a", ended(t, late, outcome.Result{Reason: outcome.VolumeFull, Message: "m"}))
	d.create(&pod)
	d.wrote("the cache has the newest version", "range/status", "pod")

	t.Run("a write that changed nothing replaces nothing", func(t *testing.T) {
		cbr := aRange(func(c *v1alpha1.ChangedBlockRange) { c.ResourceVersion = "7" })
		l := newWriteLog()
		l.wrote(cbr, cbr.DeepCopy())
		if l.behind(cbr) {
			t.Error("nothing would ever wake the reconciler")
		}
	})
}
