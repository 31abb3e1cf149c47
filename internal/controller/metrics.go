package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
	"github.com/cbt-populator/cbt-populator/internal/version"
)

const (
	metricPrefix = "cbt_populator_"
	// unknownLabel stands for a driver or a mode that is not known.
	unknownLabel = "unknown"
	// collectTimeout bounds a look into the cache, which answers at once unless it has not been filled yet.
	collectTimeout = 2 * time.Second
)

// durationBuckets reach from a list of a few extents to one of the largest volumes on a slow array, in seconds.
var durationBuckets = []float64{1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600}

// metrics count populations when their result is recorded, which happens once to each, whatever restarts in between.
// No label holds the name of an object, so the number of series is bounded by the drivers.
type metrics struct {
	populations                               *prometheus.CounterVec
	duration                                  *prometheus.HistogramVec
	entries, listBytes, changedBytes, resumes *prometheus.CounterVec
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, labels)
	}
	return &metrics{
		populations: counter("populations_total", "Populator pods that ended, by driver, result (success, terminal, retry), reason and mode of the list.",
			"driver", "result", "reason", "mode"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricPrefix + "population_duration_seconds", Help: "Time from the start of a populator pod to its end.", Buckets: durationBuckets,
		}, []string{"driver", "result"}),
		entries:      counter("list_entries_total", "Extents in the lists that were written.", "driver"),
		listBytes:    counter("list_bytes_total", "Size of the lists that were written.", "driver"),
		changedBytes: counter("changed_bytes_total", "Sum of the lengths of the extents in the lists that were written.", "driver"),
		resumes:      counter("stream_resumes_total", "Interruptions of a driver's stream that were healed by continuing it.", "driver"),
	}
}

// count takes a finished attempt into account. status is the one that has its result.
func (m *metrics) count(a *attempt, status *v1alpha1.ChangedBlockRangeStatus) {
	driver, result := driverLabel(a.pod), strings.ToLower(string(a.result.Reason.Class()))
	mode := cmp.Or(a.result.Mode, unknownLabel)
	if fellBack(a.result, status) {
		mode = v1alpha1.ReasonUsedAllocated
	}
	m.populations.WithLabelValues(driver, result, string(a.result.Reason), mode).Inc()
	if took, known := duration(a.pod); known {
		m.duration.WithLabelValues(driver, result).Observe(took.Seconds())
	}
	m.resumes.WithLabelValues(driver).Add(notNegative(int64(a.result.Resumes)))
	if a.succeeded() {
		m.entries.WithLabelValues(driver).Add(notNegative(a.result.EntryCount))
		m.listBytes.WithLabelValues(driver).Add(notNegative(a.result.NumBytesWritten))
		m.changedBytes.WithLabelValues(driver).Add(notNegative(a.result.ChangedBytes))
	}
}

// notNegative guards a counter, which panics at a negative number, against a pod's message.
func notNegative(n int64) float64 { return float64(max(n, 0)) }

func driverLabel(pod *corev1.Pod) string {
	return cmp.Or(pod.Annotations[v1alpha1.AnnotationDriver], unknownLabel)
}

// duration is the time from when the kubelet took a pod to the end of its container. A pod that never ran has none.
func duration(pod *corev1.Pod) (took time.Duration, known bool) {
	terminated := podstate.Terminated(pod)
	if terminated == nil || terminated.FinishedAt.IsZero() || pod.Status.StartTime.IsZero() {
		return 0, false
	}
	return max(terminated.FinishedAt.Sub(pod.Status.StartTime.Time), 0), true
}

// register adds all metrics of this package to a registry. Those of an earlier reconciler of this process give way.
func (m *metrics) register(registry prometheus.Registerer, flying *inFlight) error {
	for _, collector := range []prometheus.Collector{
		m.populations, m.duration, m.entries, m.listBytes, m.changedBytes, m.resumes, flying, buildInfo(),
	} {
		err := registry.Register(collector)
		var there prometheus.AlreadyRegisteredError
		if errors.As(err, &there) && registry.Unregister(there.ExistingCollector) {
			err = registry.Register(collector)
		}
		if err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// buildInfo is always 1; its labels say what runs.
func buildInfo() prometheus.Collector {
	v := version.Get()
	labels := prometheus.Labels{"version": v.Version, "revision": v.Commit, "date": v.Date, "goversion": v.Go}
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: metricPrefix + "build_info", Help: "1, with the version of the controller as labels.", ConstLabels: labels,
	}, func() float64 { return 1 })
}

// inFlight tells of the populator pods that have not ended, at the moment when somebody asks, so that it cannot drift.
type inFlight struct {
	pods      client.Reader
	namespace string
	// leading is closed once this process leads; one that stands by would count the same pods again.
	leading        <-chan struct{}
	now            func() time.Time
	count, pending *prometheus.Desc

	mu sync.Mutex
	// drivers have had a pod; each keeps its series, at 0.
	drivers map[string]struct{}
}

func newInFlight(pods client.Reader, namespace string, leading <-chan struct{}) *inFlight {
	return &inFlight{
		pods: pods, namespace: namespace, leading: leading, now: time.Now, drivers: map[string]struct{}{},
		count: prometheus.NewDesc(metricPrefix+"populations_in_flight", "Populator pods that have not ended, by driver.", []string{"driver"}, nil),
		pending: prometheus.NewDesc(metricPrefix+"oldest_pending_pod_seconds",
			"Age of the oldest populator pod that is Pending, by driver; 0 if none is.", []string{"driver"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (f *inFlight) Describe(descs chan<- *prometheus.Desc) {
	descs <- f.count
	descs <- f.pending
}

// Collect implements prometheus.Collector.
func (f *inFlight) Collect(metrics chan<- prometheus.Metric) {
	select {
	case <-f.leading:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	var pods corev1.PodList
	if err := f.pods.List(ctx, &pods, client.InNamespace(f.namespace), client.UnsafeDisableDeepCopy,
		client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentPopulator}); err != nil {
		// A metric that is an error would take all others with it.
		log.Log.Error(err, "count populator pods")
		return
	}
	count, oldest, now := map[string]int{}, map[string]time.Duration{}, f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range pods.Items {
		pod := &pods.Items[i]
		if podstate.Ended(pod) {
			continue
		}
		driver := driverLabel(pod)
		f.drivers[driver] = struct{}{}
		count[driver]++
		if pod.Status.Phase == corev1.PodPending {
			oldest[driver] = max(oldest[driver], now.Sub(pod.CreationTimestamp.Time))
		}
	}
	for driver := range f.drivers {
		metrics <- prometheus.MustNewConstMetric(f.count, prometheus.GaugeValue, float64(count[driver]), driver)
		metrics <- prometheus.MustNewConstMetric(f.pending, prometheus.GaugeValue, oldest[driver].Seconds(), driver)
	}
}
