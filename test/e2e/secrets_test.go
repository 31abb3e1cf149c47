//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// secret matches a JSON web token, such as every service account's is, and a private key.
var secret = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.|PRIVATE KEY`)

// guard looks for secrets in whatever the product says, while all tests run.
type guard struct {
	clients kubernetes.Interface
	stop    context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex
	pods    map[types.UID]bool
	leaks   []error
	watched error
}

// newGuard starts to read the logs and termination messages of all populator pods that end.
func newGuard(clients kubernetes.Interface) *guard {
	ctx, stop := context.WithCancel(context.Background())
	g := &guard{clients: clients, stop: stop, done: make(chan struct{}), pods: map[types.UID]bool{}}
	go func() {
		defer close(g.done)
		// The API server ends a watch after a while.
		for ctx.Err() == nil {
			if err := g.watch(ctx); err != nil && ctx.Err() == nil {
				g.watched = err
				return
			}
		}
	}()
	return g
}

func (g *guard) watch(ctx context.Context) error {
	watch, err := g.clients.CoreV1().Pods(populatorNS).Watch(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelClaimUID})
	if err != nil {
		return fmt.Errorf("watch populator pods: %w", err)
	}
	defer watch.Stop()
	for event := range watch.ResultChan() {
		if pod, ok := event.Object.(*corev1.Pod); ok {
			g.look(ctx, pod)
		}
	}
	return nil
}

func (g *guard) look(ctx context.Context, pod *corev1.Pod) {
	if g.pods[pod.UID] || pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
		return
	}
	status, err := yaml.Marshal(pod.Status)
	g.check("status of pod "+pod.Name, status, err)
	log, err := g.clients.CoreV1().Pods(populatorNS).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil {
		return // it was removed meanwhile; others are not
	}
	g.pods[pod.UID] = true
	g.check("log of pod "+pod.Name, log, nil)
}

// check takes note of a secret in text.
func (g *guard) check(where string, text []byte, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch found := secret.Find(text); {
	case err != nil:
		g.leaks = append(g.leaks, fmt.Errorf("%s: %w", where, err))
	case found != nil:
		g.leaks = append(g.leaks, fmt.Errorf("%s holds a secret: %.20s…", where, found))
	}
}

// finish also looks at the controller's log, all events and all ChangedBlockRanges, and returns what was found anywhere.
func (g *guard) finish(ctx context.Context) error {
	g.stop()
	<-g.done
	if len(g.pods) == 0 {
		return errors.New("no log of a populator pod was read")
	}
	var controllers corev1.PodList
	if err := api.List(ctx, &controllers, client.InNamespace(populatorNS), client.MatchingLabels{"app.kubernetes.io/component": "controller"}); err != nil {
		return fmt.Errorf("list controllers: %w", err)
	}
	for _, pod := range controllers.Items {
		log, err := g.clients.CoreV1().Pods(populatorNS).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err == nil && len(bytes.TrimSpace(log)) == 0 {
			err = errors.New("it is empty")
		}
		g.check("log of "+pod.Name, log, err)
	}
	var events corev1.EventList
	var ranges v1alpha1.ChangedBlockRangeList
	if err := errors.Join(api.List(ctx, &events), api.List(ctx, &ranges)); err != nil {
		return fmt.Errorf("list what the product wrote: %w", err)
	}
	for _, e := range events.Items {
		g.check("event of "+e.InvolvedObject.Name, []byte(e.Message), nil)
	}
	for _, r := range ranges.Items {
		text, err := yaml.Marshal(r)
		g.check("ChangedBlockRange "+r.Name, text, err)
	}
	return errors.Join(append(g.leaks, g.watched)...)
}
