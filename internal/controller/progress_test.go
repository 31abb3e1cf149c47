package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// at is the progress of a populator of a volume of 1,000 bytes.
func at(offset int64) outcome.Progress {
	return outcome.Progress{Version: outcome.ProgressVersion, EntryCount: offset / 10, OffsetBytes: offset, VolumeCapacityBytes: 1000}
}

func TestProgressIsTheFurthest(t *testing.T) {
	seen := aView(func(o *observation) {
		o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted), aClaim("b", isStarted), aClaim("c", isStarted)}
		o.pods = []corev1.Pod{aPod("a"), aPod("b"), aPod("c"), aPod("silent")}
		for i := range o.pods {
			o.pods[i].UID = types.UID(o.pods[i].Name)
		}
	})
	look := func() *v1alpha1.PopulationProgress {
		status := recompute(seen, noon)
		seen.cbr.Status = status
		return status.Progress
	}
	if got := look(); got != nil {
		t.Errorf("before anybody said anything: %+v", got)
	}
	seen.progress = map[types.UID]outcome.Progress{"populate-a": at(120), "populate-b": at(429), "populate-c": at(300)}
	want := &v1alpha1.PopulationProgress{EntryCount: 42, OffsetBytes: 429, Percent: 42, Done: "42%"}
	if diff := cmp.Diff(want, look()); diff != "" {
		t.Error(diff)
	}
	ended(t, late, threeBlocks())(&seen.pods[1])
	if got := look(); got == nil || got.Done != "30%" {
		t.Errorf("after the furthest has ended: %+v", got)
	}
	seen.pods = seen.pods[3:]
	if got := look(); got != nil {
		t.Errorf("when only one is left that says nothing: %+v", got)
	}
}

// TestRounds asks populators that are played by a table, round by round.
func TestRounds(t *testing.T) {
	says := map[string]outcome.Progress{}
	runs := func(ip, cbr string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.UID, p.Status.PodIP, p.Status.Phase = types.UID(p.Name), ip, corev1.PodRunning
			p.Annotations[v1alpha1.AnnotationChangedBlockRange] = cbr
		}
	}
	pods := []corev1.Pod{
		aPod("a", runs("10.0.0.1", "app/one")), aPod("b", runs("10.0.0.2", "app/one")), aPod("c", runs("10.0.0.3", "app/two")),
		aPod("pending", runs("", "app/three")), aPod("ended", runs("10.0.0.5", "app/three"), ended(t, late, threeBlocks())),
	}
	builder := fake.NewClientBuilder().WithScheme(testScheme())
	for i := range pods {
		builder = builder.WithObjects(&pods[i])
	}
	c := builder.Build()
	p := &poller{pods: c, namespace: populatorNamespace, board: &progressBoard{},
		ask: func(_ context.Context, ip string) (outcome.Progress, error) {
			if progress, known := says[ip]; known {
				return progress, nil
			}
			return outcome.Progress{}, fmt.Errorf("no route to %s", ip)
		}}
	for _, step := range []struct {
		name   string
		change func()
		news   string
		known  int
	}{
		{"nobody answers", func() {}, "", 0},
		{"two of one range answer", func() { says["10.0.0.1"], says["10.0.0.2"] = at(0), at(0) }, "app/one", 2},
		{"the same again", func() {}, "", 2},
		{"another", func() { says["10.0.0.2"], says["10.0.0.3"] = at(10), at(10) }, "app/one app/two", 3},
		{"one falls silent: its last word stays", func() { delete(says, "10.0.0.2") }, "", 3},
		{"who has no address or has ended is not asked", func() { says[""], says["10.0.0.5"] = at(1), at(1) }, "", 3},
		{"it is gone: forgotten", func() {
			if err := c.Delete(t.Context(), &pods[1]); err != nil {
				t.Fatal(err)
			}
		}, "", 2},
	} {
		step.change()
		var news []string
		for _, key := range p.round(t.Context()) {
			news = append(news, key.String())
		}
		slices.Sort(news)
		if got := strings.Join(news, " "); got != step.news || len(p.board.of(pods)) != step.known {
			t.Errorf("%s: news of %q, %d known; want %q, %d", step.name, got, len(p.board.of(pods)), step.news, step.known)
		}
	}
}

// TestQuestionsAreBounded: no more than maxAsks at once, however many pods there are, and the poller ends with its context.
func TestQuestionsAreBounded(t *testing.T) {
	builder := fake.NewClientBuilder().WithScheme(testScheme())
	for i := range 5 * maxAsks {
		pod := aPod(strconv.Itoa(i), func(p *corev1.Pod) { p.UID, p.Status.PodIP = types.UID(p.Name), "10.0.0.1" })
		pod.Status.Phase = corev1.PodRunning
		builder = builder.WithObjects(&pod)
	}
	var mu sync.Mutex
	open, most := 0, 0
	full := make(chan struct{})
	fill := sync.OnceFunc(func() { close(full) })
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		open += n
		if most = max(most, open); most == maxAsks {
			fill()
		}
	}
	p := &poller{pods: builder.Build(), namespace: populatorNamespace, board: &progressBoard{}, every: askEvery, wake: make(chan event.GenericEvent),
		ask: func(ctx context.Context, _ string) (outcome.Progress, error) {
			count(1)
			defer count(-1)
			<-ctx.Done()
			return outcome.Progress{}, ctx.Err()
		}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Start(ctx) }()
	<-full
	cancel()
	if err := <-done; err != nil || most > maxAsks {
		t.Errorf("%v; %d at once", err, most)
	}
}

// TestAnswersAreNotTrusted: what a pod answers can neither be large, nor wrong, nor send the controller elsewhere.
func TestAnswersAreNotTrusted(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the controller went elsewhere") }))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"good":     {func(w http.ResponseWriter, _ *http.Request) { write(t, w, `{"version":1,"entryCount":7}`) }, ""},
		"long":     {func(w http.ResponseWriter, _ *http.Request) { write(t, w, `{"version":1}`+strings.Repeat(" ", 2000)) }, "more than"},
		"another":  {func(w http.ResponseWriter, _ *http.Request) { write(t, w, `{"version":9}`) }, "version 9"},
		"no json":  {func(w http.ResponseWriter, _ *http.Request) { write(t, w, `hello`) }, "parse progress"},
		"error":    {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) }, "418"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "302"},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			mux.HandleFunc(outcome.ProgressPath, c.answer)
			server := httptest.NewServer(mux)
			defer server.Close()
			got, err := askOverHTTP(portOf(t, server))(t.Context(), "127.0.0.1")
			switch {
			case c.says == "" && (err != nil || got.EntryCount != 7):
				t.Errorf("%+v, %v", got, err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%+v, %v; want an error with %q", got, err, c.says)
			}
		})
	}
	if _, err := askOverHTTP(1)(t.Context(), "not an address"); err == nil {
		t.Error("an address that is none is asked")
	}
}

func write(t *testing.T, w http.ResponseWriter, body string) {
	t.Helper()
	if _, err := w.Write([]byte(body)); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err) // who asked may have hung up
	}
}

func portOf(t *testing.T, server *httptest.Server) int {
	t.Helper()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestProgressIsShown runs a populator of whose answers the status and kubectl's column are made, until it ends.
func TestProgressIsShown(t *testing.T) {
	c := aCluster(t)
	c.createResolvable()
	cbr := c.createRange("cbr")
	claim := c.createClaim("claim", "cbr")
	becomes(c, "the claim holds it", cbr, (*v1alpha1.ChangedBlockRange).MayPopulate)
	c.startClaim(claim)
	populatorSays.Store(ptr(at(429)))
	pod := c.createPod(claim, cbr)
	change(c, pod, true, func(p *corev1.Pod) { p.Status.Phase, p.Status.PodIP = corev1.PodRunning, "127.0.0.1" })

	shows := func(done string) {
		t.Helper()
		becomes(c, "the progress is "+done, cbr, func(o *v1alpha1.ChangedBlockRange) bool {
			return o.Status.Progress != nil && o.Status.Progress.Done == done
		})
	}
	shows("42%")
	columns := strings.Fields(c.kubectl("", "-n", c.namespace, "get", "cbr", "cbr", "--no-headers"))
	if got := strings.Join(columns[:5], " "); got != "cbr from to Populating 42%" {
		t.Errorf("kubectl get cbr prints %s", got)
	}
	populatorSays.Store(ptr(at(999)))
	shows("99%")
	c.endPod(pod, threeBlocks())
	c.reaches(cbr, v1alpha1.StateReady, v1alpha1.ReasonPopulated)
	if cbr.Status.Progress != nil {
		t.Errorf("the progress is still there: %+v", cbr.Status.Progress)
	}
}
