package controller

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func ofDriver(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationDriver] = name }
}

func TestCounting(t *testing.T) {
	startedBefore := func(d time.Duration) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.StartTime = ptr(metav1.NewTime(late.Add(-d))) }
	}
	written := threeBlocks()
	written.Resumes = 2
	delta := &v1alpha1.ChangedBlockRangeStatus{FromSnapshotHandle: "handle-from"}
	full := &v1alpha1.ChangedBlockRangeStatus{}
	m := newMetrics()
	for _, c := range []struct {
		status *v1alpha1.ChangedBlockRangeStatus
		change []func(*corev1.Pod)
	}{
		{delta, []func(*corev1.Pod){ofDriver("a"), ended(t, late, written), startedBefore(7 * time.Second)}},
		{delta, []func(*corev1.Pod){ofDriver("a"), ended(t, late, threeBlocks()), startedBefore(-time.Second)}}, // clocks differ
		{delta, []func(*corev1.Pod){ofDriver("a"), ended(t, late, outcome.Result{Reason: outcome.Populated, Mode: "Allocated", EntryCount: 1})}},
		{full, []func(*corev1.Pod){ofDriver("a"), ended(t, late, outcome.Result{Reason: outcome.Populated, Mode: "Allocated", EntryCount: -5})}},
		{delta, []func(*corev1.Pod){ofDriver("a"), ended(t, late, outcome.Result{Reason: outcome.VolumeFull, EntryCount: 1000, Resumes: 1})}},
		{delta, []func(*corev1.Pod){ended(t, late, outcome.Result{Reason: outcome.StreamFailed})}},
		{delta, []func(*corev1.Pod){died(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}), startedBefore(time.Minute)}},
	} {
		pod := aPod("x", c.change...)
		a := readAttempt(&pod)
		m.count(&a, c.status)
	}
	for _, c := range []struct {
		collector prometheus.Collector
		want      string
	}{
		{m.populations, `
# HELP cbt_populator_populations_total Populator pods that ended, by driver, result (success, terminal, retry), reason and mode of the list.
# TYPE cbt_populator_populations_total counter
cbt_populator_populations_total{driver="a",mode="Allocated",reason="Populated",result="success"} 1
cbt_populator_populations_total{driver="a",mode="Delta",reason="Populated",result="success"} 2
cbt_populator_populations_total{driver="a",mode="Delta",reason="VolumeFull",result="terminal"} 1
cbt_populator_populations_total{driver="a",mode="UsedAllocated",reason="Populated",result="success"} 1
cbt_populator_populations_total{driver="unknown",mode="Delta",reason="StreamFailed",result="retry"} 1
cbt_populator_populations_total{driver="unknown",mode="unknown",reason="PopulatorOutOfMemory",result="retry"} 1
`},
		{m.entries, `
# HELP cbt_populator_list_entries_total Extents in the lists that were written.
# TYPE cbt_populator_list_entries_total counter
cbt_populator_list_entries_total{driver="a"} 7
`},
		{m.listBytes, `
# HELP cbt_populator_list_bytes_total Size of the lists that were written.
# TYPE cbt_populator_list_bytes_total counter
cbt_populator_list_bytes_total{driver="a"} 3000
`},
		{m.changedBytes, `
# HELP cbt_populator_changed_bytes_total Sum of the lengths of the extents in the lists that were written.
# TYPE cbt_populator_changed_bytes_total counter
cbt_populator_changed_bytes_total{driver="a"} 24576
`},
		{m.resumes, `
# HELP cbt_populator_stream_resumes_total Interruptions of a driver's stream that were healed by continuing it.
# TYPE cbt_populator_stream_resumes_total counter
cbt_populator_stream_resumes_total{driver="a"} 3
cbt_populator_stream_resumes_total{driver="unknown"} 0
`},
	} {
		if err := testutil.CollectAndCompare(c.collector, strings.NewReader(c.want)); err != nil {
			t.Error(err)
		}
	}
	if n := testutil.CollectAndCount(m.duration); n != 2 {
		t.Errorf("%d series of durations, want one of the successes and one of the pod that died", n)
	}
}

// TestCountedOnce looks twice at a pod that ended, the second time with a cache that has not heard of the annotation yet,
// after a first attempt that could not write it.
func TestCountedOnce(t *testing.T) {
	claim, pod := aClaim("a", isStarted), aPod("a", ofDriver("a"), ended(t, late, threeBlocks()))
	claim.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "cbr"}
	var refuse error
	var stale *corev1.Pod
	builder := indexedClient{fake.NewClientBuilder().WithScheme(testScheme()).
		WithObjects(aRange(), &claim, &pod).WithStatusSubresource(&v1alpha1.ChangedBlockRange{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
				if _, isPod := o.(*corev1.Pod); isPod && refuse != nil {
					return refuse
				}
				return c.Patch(ctx, o, p, opts...)
			},
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				pods, isPods := list.(*corev1.PodList)
				if err := c.List(ctx, list, opts...); err != nil || !isPods || stale == nil {
					return err
				}
				pods.Items = []corev1.Pod{*stale.DeepCopy()}
				return nil
			}})}
	if err := addIndexes(t.Context(), builder); err != nil {
		t.Fatal(err)
	}
	c := builder.Build()
	r := newReconciler(c, &tape{}, Config{PopulatorNamespace: populatorNamespace, Now: func() time.Time { return noon }})
	counted := func() float64 {
		return testutil.ToFloat64(r.metrics.populations.WithLabelValues("a", "success", "Populated", "Delta"))
	}
	look := func() error {
		_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "app", Name: "cbr"}})
		return err
	}
	refuse = errors.New("boom")
	if err := look(); !errors.Is(err, refuse) || counted() != 0 {
		t.Errorf("not annotated: %v, counted %v times", err, counted())
	}
	refuse = nil
	var before corev1.Pod
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(&pod), &before); err != nil {
		t.Fatal(err)
	}
	for _, cached := range []*corev1.Pod{nil, &before, nil} {
		if stale = cached; look() != nil || counted() != 1 {
			t.Errorf("counted %v times", counted())
		}
	}
}

func TestInFlight(t *testing.T) {
	pods := []corev1.Pod{aPod("1", ofDriver("a")), aPod("2", ofDriver("a")), aPod("3"), aPod("4", ofDriver("b"), ended(t, late, threeBlocks()))}
	stranger := aPod("5", ofDriver("a"))
	stranger.Labels = nil
	builder := fake.NewClientBuilder().WithScheme(testScheme()).WithObjects(&stranger)
	for i := range pods {
		builder = builder.WithObjects(&pods[i])
	}
	c, leading := builder.Build(), make(chan struct{})
	f := newInFlight(c, populatorNamespace, leading)
	if n := testutil.CollectAndCount(f); n != 0 {
		t.Errorf("who stands by counts %d series", n)
	}
	close(leading)
	want := func(what string) {
		t.Helper()
		if err := testutil.CollectAndCompare(f, strings.NewReader(`
# HELP cbt_populator_populations_in_flight Populator pods that have not ended, by driver.
# TYPE cbt_populator_populations_in_flight gauge
`+what)); err != nil {
			t.Error(err)
		}
	}
	want(`cbt_populator_populations_in_flight{driver="a"} 2
cbt_populator_populations_in_flight{driver="unknown"} 1
`)
	for i := range pods[:2] {
		if err := c.Delete(t.Context(), &pods[i]); err != nil {
			t.Fatal(err)
		}
	}
	want(`cbt_populator_populations_in_flight{driver="a"} 0
cbt_populator_populations_in_flight{driver="unknown"} 1
`)
}

// TestRegisteredAgain: a reconciler that follows another one in the same process takes its place.
func TestRegisteredAgain(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	leading := make(chan struct{})
	close(leading)
	for range 2 {
		pod := aPod("a", ofDriver("a"), ended(t, late, threeBlocks()))
		a := readAttempt(&pod)
		m := newMetrics()
		if err := m.register(registry, newInFlight(fake.NewClientBuilder().WithScheme(testScheme()).Build(), populatorNamespace, leading)); err != nil {
			t.Fatal(err)
		}
		m.count(&a, &v1alpha1.ChangedBlockRangeStatus{})
		if n := testutil.ToFloat64(m.entries.WithLabelValues("a")); n != 3 {
			t.Errorf("%v entries", n)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(registry, "cbt_populator_build_info", "cbt_populator_list_entries_total"); err != nil || n != 2 {
		t.Errorf("%d series, %v", n, err)
	}
}
