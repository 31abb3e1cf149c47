package controller

import (
	"context"
	"errors"
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
	// sent are the writes of the last look, as "resource" or "resource/subresource".
	sent []string
	// refuse is the write that fails.
	refuse string
	// lags has the reconciler see the objects as they were when remember was called.
	lags bool
	old  struct {
		cbr  v1alpha1.ChangedBlockRange
		pods corev1.PodList
	}
}

var errRefused = errors.New("refused by the test")

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
		d.sent = append(d.sent, what)
		if d.refuse == what {
			return errRefused
		}
		return do()
	}
	builder := indexedClient{fake.NewClientBuilder().WithScheme(testScheme()).WithObjects(append(objects, more...)...).
		WithStatusSubresource(&v1alpha1.ChangedBlockRange{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
				if cbr, ok := o.(*v1alpha1.ChangedBlockRange); ok && d.lags {
					d.old.cbr.DeepCopyInto(cbr)
					return nil
				}
				return c.Get(ctx, key, o, opts...)
			},
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if pods, ok := list.(*corev1.PodList); ok && d.lags {
					d.old.pods.DeepCopyInto(pods)
					return nil
				}
				return c.List(ctx, list, opts...)
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
	d.restart()
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

// remember keeps what there is for a cache that lags.
func (d *desk) remember() {
	d.Helper()
	d.old.cbr = *d.cbr()
	if err := d.List(d.Context(), &d.old.pods); err != nil {
		d.Fatal(err)
	}
}

// restart has another reconciler take over, which knows what the API server does.
func (d *desk) restart() {
	d.reconciler = newReconciler(d.Client, d.events, Config{PopulatorNamespace: populatorNamespace, Now: func() time.Time { return d.now }})
}

func (d *desk) reconcile() error {
	_, err := d.Reconcile(d.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "app", Name: "cbr"}})
	return err
}

// wrote reconciles once, compares the writes, and returns how long the next one waits.
func (d *desk) wrote(when string, want ...string) (wait time.Duration) {
	d.Helper()
	d.sent = nil
	result, err := d.Reconcile(d.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "app", Name: "cbr"}})
	if err != nil {
		d.Fatal(err)
	}
	if !slices.Equal(d.sent, want) {
		d.Errorf("%s: writes %v, want %v", when, d.sent, want)
	}
	return result.RequeueAfter
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

// bind plays the volume binder.
func (d *desk) bind(claim *corev1.PersistentVolumeClaim) {
	d.Helper()
	d.update(claim, func() { isBound(claim) })
	isBound(claim)
	if err := d.Status().Update(d.Context(), claim); err != nil {
		d.Fatal(err)
	}
}

func (d *desk) remove(o client.Object) {
	d.Helper()
	if err := d.Delete(d.Context(), o); err != nil {
		d.Fatal(err)
	}
}
