package machinery

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// gather returns the metrics of a family, by the value of a label.
func gather(t *testing.T, registry prometheus.Gatherer, family, label string) map[string]*dto.Metric {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*dto.Metric{}
	for _, f := range families {
		if f.GetName() != family {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label {
					found[l.GetValue()] = m
				}
			}
		}
	}
	return found
}

// TestLibraryMetrics fills claims and looks for the library's own metrics of all its instances, also after the controller was
// started once more in the same process, and when it has stopped.
func TestLibraryMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	w := newWorld(t, fill(t))
	w.cfg.Metrics = registry
	w.addRange("range")
	for _, name := range []string{"first", "second"} {
		w.startController()
		w.waitFilled(w.addClaim(name, "range"))
		w.eventually("the library has told that it finished a claim", func() bool {
			finished := gather(t, registry, metricOperationSeconds, "shard")
			var n uint64
			for _, m := range finished {
				if buckets := m.GetHistogram().GetBucket(); len(buckets) == 0 || buckets[len(buckets)-1].GetUpperBound() != 600 {
					t.Fatalf("buckets %v, want the library's, up to 600 s", buckets)
				}
				n += m.GetHistogram().GetSampleCount()
			}
			return n == 1
		})
		inFlight := gather(t, registry, metricOperationsInFlight, "shard")
		if len(inFlight) != w.cfg.Shards {
			t.Errorf("%d shards tell what is in flight, want %d", len(inFlight), w.cfg.Shards)
		}
		for shard, m := range inFlight {
			if m.GetGauge().GetValue() != 0 {
				t.Errorf("shard %s: %v in flight, want none", shard, m.GetGauge().GetValue())
			}
		}
		w.stop()
		if left := gather(t, registry, metricOperationsInFlight, "shard"); len(left) != 0 {
			t.Errorf("shards %v still tell something after the end", left)
		}
	}
}
