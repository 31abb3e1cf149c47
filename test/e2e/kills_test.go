//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// slowBlocks at 64 a message and 150 ms between messages make a population of about 20 s, with -short 10 s.
func slowBlocks() int64 { return int64(size.Of(8192, 4096)) }

// kills returns how often each victim is killed.
func kills() int { return size.Of(10, 2) }

// siege is a slow driver, a snapshot whose list is known, and a source of random moments.
type siege struct {
	*world
	rng *rand.Rand
	// claims are those that the subtest created.
	claims []string
}

// TestKills kills the sidecar, the driver, the populator pods and the controller at random moments of populations that are
// slow enough to be hit, and renews the sidecar's certificate under a new authority: every claim must become Bound with the
// exact list. It slows the driver down for everyone, so it does not run beside other tests.
func TestKills(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := &siege{world: newWorld(t), rng: rand.New(rand.NewPCG(seed, seed))}
	s.create(claim("source", "32Mi", corev1.PersistentVolumeBlock))
	s.tools("writer", "source")
	s.exec("writer", fmt.Sprintf("dd if=/dev/urandom of=/dev/source bs=%d count=%d conv=notrunc 2>/dev/null\n", blockSize, slowBlocks())+syncDevice("/dev/source"))
	s.takeSnapshot("snap", "source")
	s.create(ranges("allocated", "", "snap"))
	t.Cleanup(func() { s.cluster("restart", "csidriver", "--reset-args") })
	s.cluster("restart", "csidriver", "--arg=--stream-delay=150ms", "--arg=--max-entries-per-message=64")

	for _, victim := range []struct {
		name string
		hit  func()
	}{
		{"sidecar", func() { s.cluster("restart", "csi-snapshot-metadata", "--signal=KILL") }},
		{"driver", func() { s.cluster("restart", "csidriver", "--signal=KILL") }},
		{"certificate", func() {
			s.cluster("rotate-cert", "--new-ca")
			s.cluster("restart", "csi-snapshot-metadata", "--signal=KILL")
		}},
	} {
		t.Run(victim.name, func(t *testing.T) { s.on(t).killDuringOne(victim.hit) })
	}
	t.Run("populator", func(t *testing.T) { s.on(t).killPopulators() })
	t.Run("controller", func(t *testing.T) { s.on(t).killController() })
}

// on returns s as seen by a subtest, whose failures are its own.
func (s *siege) on(t *testing.T) *siege {
	sub := *s.world
	sub.T = t
	return &siege{world: &sub, rng: s.rng}
}

// killDuringOne hits the victim while a claim is being populated, and populates as many claims as it takes.
func (s *siege) killDuringOne(hit func()) {
	name := s.claim()
	for range kills() {
		s.pause(1500 * time.Millisecond)
		if s.phase(name) == corev1.ClaimBound {
			name = s.claim()
		}
		s.awaitPod(name)
		hit()
	}
	s.awaitBoundAfterKills()
}

// killPopulators kills the pod of each of some claims once.
func (s *siege) killPopulators() {
	var names []string
	for range kills() {
		names = append(names, s.claim())
	}
	for _, name := range names {
		pod := s.awaitPod(name)
		s.pause(time.Second)
		if err := client.IgnoreNotFound(api.Delete(context.Background(), pod, client.GracePeriodSeconds(0))); err != nil {
			s.Fatalf("kill the populator of %s: %v", name, err)
		}
	}
	s.awaitBoundAfterKills()
}

// killController kills the controller while some claims are at whatever step they have reached.
func (s *siege) killController() {
	for range kills() {
		s.claim()
	}
	for range kills() {
		s.pause(4 * time.Second)
		err := api.DeleteAllOf(context.Background(), &corev1.Pod{}, client.InNamespace(populatorNS),
			client.MatchingLabels{"app.kubernetes.io/component": "controller"}, client.GracePeriodSeconds(0))
		if err != nil {
			s.Fatalf("kill the controller: %v", err)
		}
	}
	s.awaitBoundAfterKills()
}

// claim asks for the list once more.
func (s *siege) claim() string {
	s.Helper()
	name := fmt.Sprintf("list-%d-%s", len(s.claims), strings.ToLower(filepath.Base(s.Name())))
	s.create(listClaim(name, "allocated"))
	s.claims = append(s.claims, name)
	return name
}

func (s *siege) phase(name string) corev1.PersistentVolumeClaimPhase {
	s.Helper()
	var c corev1.PersistentVolumeClaim
	if err := s.get(name, &c); err != nil {
		s.Fatal(err)
	}
	return c.Status.Phase
}

// awaitPod waits until the claim's populator runs, or the claim is Bound already.
func (s *siege) awaitPod(name string) *corev1.Pod {
	s.Helper()
	var found corev1.Pod
	s.eventually("populator of "+name+" runs", patience, func(ctx context.Context) (bool, string) {
		var c corev1.PersistentVolumeClaim
		if err := s.get(name, &c); err != nil {
			return false, err.Error()
		}
		var pods corev1.PodList
		if err := api.List(ctx, &pods, client.InNamespace(populatorNS), client.MatchingLabels{v1alpha1.LabelClaimUID: string(c.UID)}); err != nil {
			return false, err.Error()
		}
		if len(pods.Items) > 0 {
			found = pods.Items[0]
		}
		return found.Status.Phase == corev1.PodRunning || c.Status.Phase == corev1.ClaimBound, string(found.Status.Phase)
	})
	return &found
}

// pause lets a random moment of up to limit pass: what is killed next is to be hit at any point of its work, so there is no
// condition to wait for.
func (s *siege) pause(limit time.Duration) {
	<-time.After(time.Duration(s.rng.Int64N(int64(limit))))
}

func (s *siege) awaitBoundAfterKills() {
	s.Helper()
	for _, name := range s.claims {
		s.eventually("claim "+name+" is Bound", 4*time.Minute, func(context.Context) (bool, string) {
			phase := s.phase(name)
			return phase == corev1.ClaimBound, string(phase)
		})
	}
	s.checkLists()
}

// checkLists reads every list.
func (s *siege) checkLists() {
	s.Helper()
	var want []int64
	for n := range slowBlocks() {
		want = append(want, n)
	}
	reader := "reader-" + strings.ToLower(filepath.Base(s.Name()))
	s.tools(reader, s.claims...)
	for _, name := range s.claims {
		s.wantExtents(name, s.readList(reader, name, blocklist.JSON), blocks(want...))
	}
	s.Logf("%d lists are exact", len(s.claims))
}

// cluster runs the program that runs the local cluster.
func (w *world) cluster(args ...string) {
	w.Helper()
	program := os.Getenv("CBT_CLUSTER")
	if program == "" {
		program = "../../bin/cluster"
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		w.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}
