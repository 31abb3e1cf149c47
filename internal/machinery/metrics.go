package machinery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const (
	libraryMetricsPath = "/metrics"
	// scrapeTimeout bounds the collection of the metrics of one instance.
	scrapeTimeout = 2 * time.Second
	// maxScrape bounds, in bytes, what an instance may answer; it is about 4 KiB.
	maxScrape = 1 << 20
)

// The library's own metrics. It keeps them in a registry that only its own HTTP endpoint reaches.
const (
	metricOperationSeconds   = "volume_populator_operation_seconds"
	metricOperationsInFlight = "volume_populator_operations_in_flight"
)

// libraryMetrics is a collector of the metrics of all instances of the library, told apart by the label shard. Each instance serves
// them on a port of the loopback interface, which is asked when somebody asks the manager's endpoint. It is safe for concurrent use.
type libraryMetrics struct {
	client             http.Client
	duration, inFlight *prometheus.Desc

	mu sync.Mutex
	// endpoints has the address of each instance that runs, by its shard.
	endpoints map[string]string
}

func newLibraryMetrics() *libraryMetrics {
	return &libraryMetrics{
		// Without a proxy, whatever the environment says.
		client: http.Client{Timeout: scrapeTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
		duration: prometheus.NewDesc(metricOperationSeconds,
			"Time from when lib-volume-populator began to work on a claim until it had finished.", []string{"result", "shard"}, nil),
		inFlight: prometheus.NewDesc(metricOperationsInFlight,
			"Claims that lib-volume-populator began to work on and has not finished. It does not notice that a claim is deleted.", []string{"shard"}, nil),
		endpoints: map[string]string{},
	}
}

// register adds the collector to a registry. That of an earlier machinery of this process gives way.
func (m *libraryMetrics) register(registry prometheus.Registerer) error {
	err := registry.Register(m)
	var there prometheus.AlreadyRegisteredError
	if errors.As(err, &there) && registry.Unregister(there.ExistingCollector) {
		err = registry.Register(m)
	}
	if err != nil {
		return fmt.Errorf("register the metrics of the populator library: %w", err)
	}
	return nil
}

// open returns an address for the metrics of a shard; "" if there is none to be had, and then the shard has no metrics. The
// address is free when it is chosen; instances start one after the other, and a pod has its ports for itself.
func (m *libraryMetrics) open(shard string) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Log.WithName("machinery").Error(err, "the library's metrics cannot be had", "shard", shard)
		return ""
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		log.Log.WithName("machinery").Error(err, "the library's metrics cannot be had", "shard", shard)
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints[shard] = address
	return address
}

// close forgets a shard, whose instance has ended.
func (m *libraryMetrics) close(shard string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.endpoints, shard)
}

// Describe implements prometheus.Collector.
func (m *libraryMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.duration
	descs <- m.inFlight
}

// Collect implements prometheus.Collector. An instance that does not answer is left out: an error here would take all other
// metrics with it.
func (m *libraryMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	endpoints := make(map[string]string, len(m.endpoints))
	for shard, address := range m.endpoints {
		endpoints[shard] = address
	}
	m.mu.Unlock()
	var all sync.WaitGroup
	for shard, address := range endpoints {
		all.Go(func() {
			families, err := m.scrape(address)
			if err != nil {
				log.Log.WithName("machinery").V(1).Info("an instance of the library does not tell its metrics", "shard", shard, "cause", err.Error())
				return
			}
			m.translate(families, shard, metrics)
		})
	}
	all.Wait()
}

func (m *libraryMetrics) scrape(address string) (families map[string]*dto.MetricFamily, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+libraryMetricsPath, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s for metrics: %w", address, err)
	}
	response, err := m.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // of a response that was read: there is nothing to lose
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s for metrics: %s", address, response.Status)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	if families, err = parser.TextToMetricFamilies(io.LimitReader(response.Body, maxScrape)); err != nil {
		return nil, fmt.Errorf("read the metrics of %s: %w", address, err)
	}
	return families, nil
}

// translate sends what the library says of one shard.
func (m *libraryMetrics) translate(families map[string]*dto.MetricFamily, shard string, metrics chan<- prometheus.Metric) {
	for _, metric := range families[metricOperationsInFlight].GetMetric() {
		metrics <- prometheus.MustNewConstMetric(m.inFlight, prometheus.GaugeValue, metric.GetGauge().GetValue(), shard)
	}
	for _, metric := range families[metricOperationSeconds].GetMetric() {
		histogram := metric.GetHistogram()
		buckets := map[float64]uint64{}
		for _, b := range histogram.GetBucket() {
			if !math.IsInf(b.GetUpperBound(), 1) { // which is the sample count
				buckets[b.GetUpperBound()] = b.GetCumulativeCount()
			}
		}
		var result string
		for _, label := range metric.GetLabel() {
			if label.GetName() == "result" {
				result = label.GetValue()
			}
		}
		metrics <- prometheus.MustNewConstHistogram(m.duration, histogram.GetSampleCount(), histogram.GetSampleSum(), buckets, result, shard)
	}
}

// shardLabel is the value of the label shard of a queue's instance.
func shardLabel(queue *claimQueue, foreign bool) string {
	if foreign {
		return "foreign-" + strconv.Itoa(queue.shard)
	}
	return strconv.Itoa(queue.shard)
}
