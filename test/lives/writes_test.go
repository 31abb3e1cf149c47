package lives

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// fewWrites is what filling a claim may cost when 20 claims want the list of one ChangedBlockRange.
const fewWrites = 11

// ownRangeWrites is the same with a ChangedBlockRange for each claim, whose finalizer and status come on top, if it was resolved
// before there was a claim, which is a write of its own whether a claim comes or not.
const ownRangeWrites = 12

// TestWrites counts the requests other than reads that the controller sends, the library's included, until claims are filled and
// released: from before their ChangedBlockRanges exist, or from when these are resolved.
func TestWrites(t *testing.T) {
	const claims = 20
	for _, test := range []struct {
		name         string
		lives, bound int
		resolved     bool
	}{
		{"one ChangedBlockRange", 1, fewWrites, false},
		{"a ChangedBlockRange each", claims, ownRangeWrites + 1, false},
		// It is 12 where everything is so slow that every change of a status is written by itself, and 11 otherwise.
		{"a ChangedBlockRange each, resolved before", claims, ownRangeWrites + 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			counter := w.countWrites()
			w.startController()
			var lives []*life
			for range test.lives {
				lives = append(lives, w.newLife(deletions{at: done}))
			}
			if test.resolved {
				lives = w.each(lives, (*life).resolve)
				counter.reset()
			}
			each := claims / test.lives
			began := time.Now()
			lives = w.each(lives, func(l *life) error {
				if test.resolved {
					return l.fillMany(each)
				}
				return errors.Join(l.giveSource(), l.fillMany(each))
			})
			total, list := counter.sum(claims)
			// What takes so long that people wonder says so, in an event and in the status. Here it does on a busy machine only.
			bound := float64(test.bound) + math.Floor(time.Since(began).Seconds()/10)
			t.Logf("%.2f writes a claim:\n%s", total, list)
			if total >= bound || total < 5 {
				t.Errorf("%.2f writes a claim, want fewer than %.0f, and so many that they were counted:\n%s", total, bound, list)
			}
			w.each(lives, (*life).end)
			w.checkNothingLeft()
		})
	}
}

// giveSource creates a life but for its claim.
func (l *life) giveSource() error {
	return l.give(theNamespace, theClass, theService, theFrom, theTo, theRange)
}

// resolve creates a life but for its claim, and waits until its snapshots are resolved.
func (l *life) resolve() error {
	if err := l.giveSource(); err != nil {
		return err
	}
	return l.until("the snapshots are resolved", func(s sight) string {
		if s.cbr == nil || !meta.IsStatusConditionTrue(s.cbr.Status.Conditions, v1alpha1.ConditionSnapshotsResolved) {
			return fmt.Sprintf("the ChangedBlockRange does not say so: %+v", s.cbr)
		}
		return ""
	})
}

// fillMany creates a life's claim and some more of its ChangedBlockRange, and waits until all are filled and the status says so.
func (l *life) fillMany(claims int) error {
	if err := l.give(theClaim); err != nil {
		return err
	}
	for i := 1; i < claims; i++ {
		more := l.newClaim()
		more.Name = fmt.Sprintf("%s-%d", claimName, i)
		if err := l.create(more); err != nil {
			return err
		}
	}
	return l.until("all claims are filled", func(s sight) string {
		if s.cbr == nil || len(s.cbr.Finalizers) > 0 || int(s.cbr.Status.PopulatedClaims) != claims {
			return fmt.Sprintf("the ChangedBlockRange does not say so: %+v", s.cbr)
		}
		var all corev1.PersistentVolumeClaimList
		if err := l.seen.List(context.Background(), &all, client.InNamespace(l.namespace)); err != nil {
			return err.Error()
		}
		for i := range all.Items {
			if missing := l.checkFilled(sight{claim: &all.Items[i]}); missing != "" {
				return missing
			}
		}
		return ""
	})
}

// writeCounter counts requests by what they do.
type writeCounter struct {
	mu    sync.Mutex
	count map[string]int
}

// countWrites puts a proxy between the controller, which is not started yet, and the API server.
func (w *world) countWrites() *writeCounter {
	w.Helper()
	counter := &writeCounter{count: map[string]int{}}
	server, err := url.Parse(w.config.Host)
	if err != nil {
		w.Fatal(err)
	}
	transport, err := rest.TransportFor(w.config)
	if err != nil {
		w.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(server) },
		Transport: transport, FlushInterval: -1,
		// Watches are cut when the controller stops.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {},
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		counter.add(r)
		forward.ServeHTTP(rw, r)
	}))
	w.Cleanup(func() {
		// A running controller would open its watches again in between, and Close waits for them for ever.
		w.stopController()
		proxy.CloseClientConnections()
		proxy.Close()
	})
	w.config = unlimited(&rest.Config{Host: proxy.URL})
	return counter
}

// add counts a request that is not a read. The endpoint ConfigMap of a driver is made once for all of its claims, and here
// each claim has a driver of its own.
func (c *writeCounter) add(r *http.Request) {
	if r.Method == http.MethodGet || strings.Contains(r.URL.Path, "/configmaps") {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[r.Method+" "+resourceOf(r.URL.Path)]++
}

// resourceOf returns resource and subresource of a path such as /api/v1/namespaces/NAMESPACE/pods/NAME/status.
func resourceOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	parts = parts[min(len(parts), map[string]int{"api": 2, "apis": 3}[parts[0]]):]
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	if len(parts) > 2 {
		return parts[0] + "/" + parts[2]
	}
	return parts[0]
}

// reset forgets what was counted.
func (c *writeCounter) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.count)
}

// sum returns the writes per claim, and what they were.
func (c *writeCounter) sum(claims int) (perClaim float64, list string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	total := 0
	for _, what := range slices.Sorted(maps.Keys(c.count)) {
		total += c.count[what]
		fmt.Fprintf(&b, "  %5.2f %s\n", float64(c.count[what])/float64(claims), what)
	}
	return float64(total) / float64(claims), b.String()
}
