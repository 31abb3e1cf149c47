package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

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

// TestCountedOnce looks twice at a pod that ended, the second time with a cache that has not heard of the first write yet,
// after a first attempt that could not write. A list is recorded in the status, a failure on the pod.
func TestCountedOnce(t *testing.T) {
	for name, test := range map[string]struct {
		result outcome.Result
		labels []string
		writes []string
	}{
		"a list":    {threeBlocks(), []string{"a", "success", "Populated", "Delta"}, []string{"range", "range/status"}},
		"a failure": {outcome.Result{Reason: outcome.VolumeFull, Message: "m"}, []string{"a", "terminal", "VolumeFull", "Delta"}, []string{"range", "range/status", "pod"}},
	} {
		t.Run(name, func(t *testing.T) {
			claim, pod := aClaim("a", isStarted, refersTo("cbr")), aPod("a", ofDriver("a"), ended(t, late, test.result))
			d := newDesk(t, &claim, &pod)
			counted := func() float64 { return testutil.ToFloat64(d.metrics.populations.WithLabelValues(test.labels...)) }
			for _, what := range test.writes {
				d.refuse = what
				if err := d.reconcile(); !errors.Is(err, errRefused) || counted() != 0 {
					t.Errorf("%s refused: %v, counted %v times", what, err, counted())
				}
			}
			d.refuse = ""
			d.remember()
			if err := d.reconcile(); err != nil || counted() != 1 {
				t.Errorf("%v, counted %v times", err, counted())
			}
			d.lags = true
			for range 2 {
				if err := d.reconcile(); err != nil || counted() != 1 {
					t.Errorf("with an old cache: %v, counted %v times", err, counted())
				}
				// What the next one knows is not from memory.
				d.writes = newWriteLog()
			}
			d.lags = false
			if err := d.reconcile(); err != nil || counted() != 1 {
				t.Errorf("at last: %v, counted %v times", err, counted())
			}
		})
	}
}

func TestInFlight(t *testing.T) {
	pods := []corev1.Pod{aPod("1", ofDriver("a")), aPod("2", ofDriver("a")), aPod("3"), aPod("4", ofDriver("b"), ended(t, late, threeBlocks()))}
	for i, created := range []time.Time{late.Add(-90 * time.Second), late.Add(-time.Minute)} {
		pods[i].Status.Phase, pods[i].CreationTimestamp = corev1.PodPending, metav1.NewTime(created)
	}
	stranger := aPod("5", ofDriver("a"))
	stranger.Labels = nil
	builder := fake.NewClientBuilder().WithScheme(testScheme()).WithObjects(&stranger)
	for i := range pods {
		builder = builder.WithObjects(&pods[i])
	}
	c, leading := builder.Build(), make(chan struct{})
	f := newInFlight(c, populatorNamespace, leading)
	f.now = func() time.Time { return late }
	if n := testutil.CollectAndCount(f); n != 0 {
		t.Errorf("who stands by counts %d series", n)
	}
	close(leading)
	want := func(a, pending int) {
		t.Helper()
		if err := testutil.CollectAndCompare(f, strings.NewReader(fmt.Sprintf(`
# HELP cbt_populator_oldest_pending_pod_seconds Age of the oldest populator pod that is Pending, by driver; 0 if none is.
# TYPE cbt_populator_oldest_pending_pod_seconds gauge
cbt_populator_oldest_pending_pod_seconds{driver="a"} %d
cbt_populator_oldest_pending_pod_seconds{driver="unknown"} 0
# HELP cbt_populator_populations_in_flight Populator pods that have not ended, by driver.
# TYPE cbt_populator_populations_in_flight gauge
cbt_populator_populations_in_flight{driver="a"} %d
cbt_populator_populations_in_flight{driver="unknown"} 1
`, pending, a))); err != nil {
			t.Error(err)
		}
	}
	want(2, 90)
	for i := range pods[:2] {
		if err := c.Delete(t.Context(), &pods[i]); err != nil {
			t.Fatal(err)
		}
	}
	want(0, 0)
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
