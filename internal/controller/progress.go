package controller

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
)

const (
	// askEvery is the time from the end of a round to the next one, so the least time between two status writes that only the progress causes.
	askEvery = 3 * time.Second
	// askTimeout bounds one question from the connection to the last byte of the answer.
	askTimeout = 2 * time.Second
	// maxAsks bounds the questions that are open at once.
	maxAsks = 16
	// maxAnswerHeader bounds an answer's HTTP header, in bytes.
	maxAnswerHeader = 4 << 10
)

// progressBoard holds what running populators said last, by the UID of their pods.
type progressBoard struct {
	mu   sync.RWMutex
	said map[types.UID]outcome.Progress
}

// of returns what is known about pods.
func (b *progressBoard) of(pods []corev1.Pod) map[types.UID]outcome.Progress {
	b.mu.RLock()
	defer b.mu.RUnlock()
	known := map[types.UID]outcome.Progress{}
	for i := range pods {
		if p, found := b.said[pods[i].UID]; found {
			known[pods[i].UID] = p
		}
	}
	return known
}

func (b *progressBoard) replace(said map[types.UID]outcome.Progress) (before map[types.UID]outcome.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, b.said = b.said, said
	return before
}

// poller asks the populators that run how far they are, round by round, and wakes the reconciler for each ChangedBlockRange
// about which there is news. Nothing but the progress in the status depends on it: a populator that does not answer is
// logged at most, and asked again in the next round.
type poller struct {
	pods      client.Reader
	namespace string
	every     time.Duration
	board     *progressBoard
	// ask asks the populator at an IP address.
	ask  func(ctx context.Context, ip string) (outcome.Progress, error)
	wake chan<- event.GenericEvent
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: only who writes statuses asks.
func (*poller) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable.
func (p *poller) Start(ctx context.Context) error {
	ticker := time.NewTicker(p.every)
	defer ticker.Stop()
	for {
		for _, key := range p.round(ctx) {
			cbr := &v1alpha1.ChangedBlockRange{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
			select {
			case p.wake <- event.GenericEvent{Object: cbr}:
			case <-ctx.Done():
				return nil
			}
		}
		// A tick that came during a long round would start the next one at once.
		ticker.Reset(p.every)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// round asks all once and returns the ChangedBlockRanges whose pods said something new.
func (p *poller) round(ctx context.Context) []types.NamespacedName {
	var pods corev1.PodList
	if err := p.pods.List(ctx, &pods, client.InNamespace(p.namespace), client.UnsafeDisableDeepCopy,
		client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentPopulator}); err != nil {
		log.FromContext(ctx).Error(err, "list populator pods")
		return nil
	}
	running := slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return !answers(&pod) })
	said := p.askAll(ctx, running)
	before := p.board.replace(said)
	news := map[types.NamespacedName]struct{}{}
	for i := range running {
		last, known := before[running[i].UID]
		if now, answered := said[running[i].UID]; !answered || (known && now == last) {
			continue
		}
		for _, request := range annotatedRange(&running[i]) {
			news[request.NamespacedName] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(news))
}

// answers reports whether a pod can be asked.
func answers(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && pod.Status.PodIP != "" && pod.DeletionTimestamp.IsZero() && podstate.Terminated(pod) == nil
}

// askAll returns what each pod says now, or said last if it does not answer.
func (p *poller) askAll(ctx context.Context, pods []corev1.Pod) map[types.UID]outcome.Progress {
	said := p.board.of(pods)
	var mu sync.Mutex
	var asking sync.WaitGroup
	slots := make(chan struct{}, maxAsks)
	for i := range pods {
		slots <- struct{}{}
		asking.Go(func() {
			defer func() { <-slots }()
			progress, err := p.ask(ctx, pods[i].Status.PodIP)
			if err != nil {
				log.FromContext(ctx).V(1).Info("a populator does not say how far it is", "pod", pods[i].Name, "cause", err.Error())
				return
			}
			mu.Lock()
			defer mu.Unlock()
			said[pods[i].UID] = progress
		})
	}
	asking.Wait()
	return said
}

// askOverHTTP returns a function that asks at a port. The answer comes from a pod and is not trusted: it is bounded, checked,
// and cannot send us elsewhere.
func askOverHTTP(port int) func(context.Context, string) (outcome.Progress, error) {
	asker := http.Client{
		Timeout:       askTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// Without a proxy, whatever the environment says.
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxAnswerHeader},
	}
	return func(ctx context.Context, ip string) (progress outcome.Progress, err error) {
		url := "http://" + net.JoinHostPort(ip, strconv.Itoa(port)) + outcome.ProgressPath
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return outcome.Progress{}, fmt.Errorf("ask populator at %s: %w", ip, err)
		}
		response, err := asker.Do(request)
		if err != nil {
			return outcome.Progress{}, fmt.Errorf("ask populator: %w", err)
		}
		defer func() { _ = response.Body.Close() }() // of a response that was read: there is nothing to lose
		if response.StatusCode != http.StatusOK {
			return outcome.Progress{}, fmt.Errorf("ask populator at %s: it answered %s", ip, response.Status)
		}
		data, err := io.ReadAll(io.LimitReader(response.Body, outcome.MaxProgressBytes+1))
		if err != nil {
			return outcome.Progress{}, fmt.Errorf("read the answer of the populator at %s: %w", ip, err)
		}
		if len(data) > outcome.MaxProgressBytes {
			return outcome.Progress{}, fmt.Errorf("the populator at %s answered more than %d bytes", ip, outcome.MaxProgressBytes)
		}
		return outcome.ParseProgress(data)
	}
}

// furthest returns the progress of that unfinished attempt which has listed most; nil if none has said anything yet.
func furthest(tries []attempt, said map[types.UID]outcome.Progress) *v1alpha1.PopulationProgress {
	var best *outcome.Progress
	for i := range tries {
		if p, known := said[tries[i].pod.UID]; known && !tries[i].finished && (best == nil || ahead(p, *best)) {
			best = &p
		}
	}
	if best == nil {
		return nil
	}
	percent := best.Percent()
	return &v1alpha1.PopulationProgress{
		EntryCount: best.EntryCount, OffsetBytes: best.OffsetBytes, Percent: int32(percent), Done: fmt.Sprintf("%d%%", percent),
	}
}

func ahead(a, b outcome.Progress) bool {
	if a.OffsetBytes != b.OffsetBytes {
		return a.OffsetBytes > b.OffsetBytes
	}
	return a.EntryCount > b.EntryCount
}
