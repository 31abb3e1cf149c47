package controller

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// collected is a registry that only remembers what it was given.
type collected struct {
	prometheus.Registerer
	collectors []prometheus.Collector
}

func (c *collected) Register(one prometheus.Collector) error {
	c.collectors = append(c.collectors, one)
	return nil
}

// TestMetricsAreDocumented compares the table of docs/controller.md with what is registered.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/controller.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(cbt_populator_[a-z_]+)`").FindAllSubmatch(page, -1) {
		documented[string(m[1])] = true
	}
	registry := &collected{}
	if err := newMetrics().register(registry, newInFlight(nil, "ns", nil)); err != nil {
		t.Fatal(err)
	}
	registered := map[string]bool{}
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, collector := range registry.collectors {
		descs := make(chan *prometheus.Desc, 8)
		collector.Describe(descs)
		close(descs)
		for desc := range descs {
			registered[name.FindStringSubmatch(desc.String())[1]] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(registered)), slices.Sorted(maps.Keys(documented))); diff != "" {
		t.Errorf("docs/controller.md differs from the code (-code +page):\n%s", diff)
	}
}
