//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// podBound is the shipped configuration's bound on populators that have not ended.
const podBound = 20

// TestManyClaims has 200 claims (30 with -short) of one ChangedBlockRange, created at once, become Bound with never more
// populators than the bound.
func TestManyClaims(t *testing.T) {
	w := newWorldAlone(t)
	w.guide("snap-1", "snap-2")
	w.create(ranges("delta", "snap-1", "snap-2"))
	manyClaims := size.Of(200, 30)
	start := time.Now()
	for i := range manyClaims {
		w.create(listClaim(fmt.Sprintf("list-%d", i), "delta"))
	}
	most := 0
	w.eventually("all claims are Bound", 6*time.Minute, func(ctx context.Context) (bool, string) {
		running := w.runningPopulators(ctx)
		if most = max(most, running); most > podBound {
			w.Fatalf("%d populators have not ended, the bound is %d", most, podBound)
		}
		bound := w.boundLists(ctx)
		return bound == manyClaims, fmt.Sprintf("%d are Bound, %d populators run", bound, running)
	})
	w.Logf("%d claims Bound after %s, at most %d populators at once", manyClaims, time.Since(start).Round(time.Second), most)
}

func (w *world) runningPopulators(ctx context.Context) int {
	w.Helper()
	var pods corev1.PodList
	if err := api.List(ctx, &pods, client.InNamespace(populatorNS), client.HasLabels{v1alpha1.LabelClaimUID}); err != nil {
		w.Fatal(err)
	}
	n := 0
	for _, p := range pods.Items {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		for _, c := range p.Status.ContainerStatuses {
			ended = ended || (c.Name == v1alpha1.ContainerPopulate && c.State.Terminated != nil)
		}
		if !ended {
			n++
		}
	}
	return n
}

// boundLists counts the claims with a list that are Bound.
func (w *world) boundLists(ctx context.Context) int {
	w.Helper()
	var claims corev1.PersistentVolumeClaimList
	if err := api.List(ctx, &claims, client.InNamespace(w.ns)); err != nil {
		w.Fatal(err)
	}
	n := 0
	for _, c := range claims.Items {
		if strings.HasPrefix(c.Name, "list-") && c.Status.Phase == corev1.ClaimBound {
			n++
		}
	}
	return n
}

// TestLeaderDies runs two replicas and kills the leader while claims are being populated: the other one takes over, loses
// nothing and does nothing twice.
func TestLeaderDies(t *testing.T) {
	const claims = 10
	w := newWorldAlone(t)
	w.guide("snap-1", "snap-2")
	scale := func(replicas string) {
		w.run(nil, "-n", populatorNS, "scale", "deployment/cbt-populator-controller", "--replicas="+replicas)
		w.run(nil, "-n", populatorNS, "rollout", "status", "deployment/cbt-populator-controller", "--timeout=180s")
	}
	scale("2")
	t.Cleanup(func() { scale("1") })

	w.create(ranges("delta", "snap-1", "snap-2"))
	for i := range claims {
		w.create(listClaim(fmt.Sprintf("list-%d", i), "delta"))
	}
	w.eventually("populators run", patience, func(ctx context.Context) (bool, string) { return w.runningPopulators(ctx) > 0, "none" })
	holder := string(w.run(nil, "-n", populatorNS, "get", "lease", "cbt-populator-controller", "-o", "jsonpath={.spec.holderIdentity}"))
	leader, _, _ := strings.Cut(holder, "_")
	w.run(nil, "-n", populatorNS, "delete", "pod", leader, "--grace-period=0", "--force")

	w.eventually("all claims are Bound", patience, func(ctx context.Context) (bool, string) {
		n := w.boundLists(ctx)
		return n == claims, fmt.Sprintf("%d are Bound", n)
	})
	if again := w.kubectl("get", "events", "-o", "jsonpath={range .items[*]}{.note}{.message}{\"\\n\"}{end}"); strings.Contains(again, "(attempt 2)") {
		t.Errorf("a claim was populated twice:\n%s", again)
	}
}
