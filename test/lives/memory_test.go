package lives

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
	"github.com/cbt-populator/cbt-populator/test/compiled"
	"github.com/cbt-populator/cbt-populator/test/size"
)

var (
	unrelatedFlag = flag.Int("unrelated", 0, "number of claims and of pods in the cluster that TestMemory measures, which have nothing to do with the controller; 0: 10,000, or 1,000 with -short")
	rangesFlag    = flag.Int("ranges", 0, "number of ChangedBlockRanges that one tenant then creates there; 0: 5,000, or 500 with -short")
)

// Bounds of the controller's resident memory in bytes, at its peak: beside claims and pods of others, and with many
// ChangedBlockRanges too, about 300 MiB with 5,000. The manifests limit it to 512 MiB.
const (
	maxMemory         = 150 << 20
	maxMemoryPerRange = 30 << 10
)

// notesBytes is what each of the crowd's claims and pods holds besides what most have: the fewer of -short are as much to keep.
func notesBytes() int { return size.Of(0, 100_000) }

// TestMemory measures the controller's program in a cluster with many claims and pods that do not concern it, and then while
// a tenant creates as many ChangedBlockRanges as nobody needs, which may not keep another tenant waiting either. They are on
// a server of their own, because every other test would have to list them.
func TestMemory(t *testing.T) {
	server := apiserver.Start(t)
	w := &world{T: t, scheme: newScheme(t), config: server.Config, lives: map[string]*life{}}
	w.cfg.PopulatorNamespace = "populator-memory"
	var err error
	if w.c, err = client.NewWithWatch(unlimited(server.Config), client.Options{Scheme: w.scheme}); err != nil {
		t.Fatal(err)
	}
	unrelated, ranges := size.Or(*unrelatedFlag, 10_000, 1_000), size.Or(*rangesFlag, 5_000, 500)
	w.crowd(unrelated)

	program := filepath.Join(t.TempDir(), "controller")
	if err := compiled.Program(program, "../../cmd/controller"); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--populator-image=populator:test", "--populator-namespace="+w.cfg.PopulatorNamespace,
		"--kubeconfig="+server.Kubeconfig, "--leader-elect=false", "--health-probe-bind-address=127.0.0.1:0", "--metrics-bind-address=0")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A claim of ours gets its prime claim: every cache is filled and every queue has been gone through.
	l := w.newLife(deletions{at: provisioning})
	if err := l.begin(provisioning); err != nil {
		t.Error(err)
	}
	w.waitForPrime(l)
	w.checkMemory(cmd.Process.Pid, fmt.Sprintf("%d claims and %d pods", unrelated, unrelated), maxMemory)
	w.floodRanges(ranges)
	other := w.newLife(deletions{at: provisioning})
	if err := other.begin(provisioning); err != nil {
		t.Error(err)
	}
	w.waitForPrime(other)
	w.waitForStatuses("flood", ranges)
	w.checkMemory(cmd.Process.Pid, fmt.Sprintf("and %d ChangedBlockRanges", ranges), maxMemory+maxMemoryPerRange*int64(ranges))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		said, readErr := os.ReadFile(log.Name())
		t.Errorf("the controller: %v (%v)\n%s", err, readErr, said)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

// checkMemory prints how much memory the process takes beside what, and fails the test if it ever was more than bound.
func (w *world) checkMemory(pid int, what string, bound int64) {
	w.Helper()
	peak, now := residentBytes(w.T, pid)
	fmt.Printf("%s: %s: %.0f MiB resident, %.0f MiB at the peak\n", w.Name(), what, float64(now)/(1<<20), float64(peak)/(1<<20))
	if peak > bound {
		w.Errorf("%s: the controller took %d bytes, the bound is %d", what, peak, bound)
	}
}

// crowd creates n claims and n pods as an application's administrator would.
func (w *world) crowd(n int) {
	w.Helper()
	if err := w.c.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.cfg.PopulatorNamespace}}); err != nil {
		w.Fatal(err)
	}
	w.createMany("crowd", n, func(i int) []client.Object {
		meta := metav1.ObjectMeta{
			Namespace: "crowd", Name: fmt.Sprintf("data-application-%d", i),
			Labels: map[string]string{
				"app.kubernetes.io/name": "application", "app.kubernetes.io/instance": fmt.Sprintf("application-%d", i),
				"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "application-1.2.3",
			},
			Annotations: map[string]string{
				"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 1000),
				"application.example.com/notes":                    strings.Repeat("z", notesBytes()),
				"volume.kubernetes.io/storage-provisioner":         "csi.example.com",
				"pv.kubernetes.io/bind-completed":                  "yes",
				"pv.kubernetes.io/bound-by-controller":             "yes",
			},
		}
		return []client.Object{strangeClaim(meta), strangePod(meta)}
	})
}

// floodRanges creates n ChangedBlockRanges of snapshots that do not exist.
func (w *world) floodRanges(n int) {
	w.Helper()
	w.createMany("flood", n, func(i int) []client.Object {
		return []client.Object{&v1alpha1.ChangedBlockRange{
			ObjectMeta: metav1.ObjectMeta{Namespace: "flood", Name: fmt.Sprintf("range-of-a-tenant-%d", i)},
			Spec: v1alpha1.ChangedBlockRangeSpec{
				FromVolumeSnapshotName: fmt.Sprintf("snapshot-%d", i), ToVolumeSnapshotName: fmt.Sprintf("snapshot-%d", i+1),
			},
		}}
	})
}

// createMany makes a namespace and, n times, the objects that objects returns.
func (w *world) createMany(namespace string, n int, objects func(int) []client.Object) {
	w.Helper()
	if err := w.c.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		w.Fatal(err)
	}
	const writers = 16
	var all sync.WaitGroup
	for start := range writers {
		all.Go(func() {
			for i := start; i < n; i += writers {
				for _, o := range objects(i) {
					if err := w.c.Create(w.Context(), o); err != nil {
						w.Error(err)
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// waitForStatuses waits until n ChangedBlockRanges of a namespace say what they wait for.
func (w *world) waitForStatuses(namespace string, n int) {
	w.Helper()
	var said int
	err := wait.PollUntilContextTimeout(w.Context(), 200*time.Millisecond, 2*deadline, true, func(ctx context.Context) (bool, error) {
		var ranges v1alpha1.ChangedBlockRangeList
		if err := w.c.List(ctx, &ranges, client.InNamespace(namespace)); err != nil {
			return false, err
		}
		said = 0
		for i := range ranges.Items {
			if len(ranges.Items[i].Status.Conditions) > 0 {
				said++
			}
		}
		return said >= n, nil
	})
	if err != nil {
		w.Errorf("%d of %d ChangedBlockRanges have a status: %v", said, n, err)
	}
}

func strangeClaim(meta metav1.ObjectMeta) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: meta,
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("standard"),
			VolumeName:       "pvc-" + meta.Name,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}},
		},
	}
}

func strangePod(meta metav1.ObjectMeta) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: meta,
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "application", Image: "registry.example/application:1.2.3",
				Env:          []corev1.EnvVar{{Name: "A", Value: strings.Repeat("y", 500)}},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: meta.Name},
			}}},
		},
	}
}

// waitForPrime waits until there is a prime claim for the life's claim.
func (w *world) waitForPrime(l *life) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 2*time.Minute)
	defer cancel()
	claims, err := w.c.Watch(ctx, &corev1.PersistentVolumeClaimList{}, client.InNamespace(w.cfg.PopulatorNamespace))
	if err != nil {
		w.Fatal(err)
	}
	defer claims.Stop()
	for event := range claims.ResultChan() {
		if prime, ok := event.Object.(*corev1.PersistentVolumeClaim); ok && prime.Annotations[v1alpha1.AnnotationClaimNamespace] == l.namespace {
			return
		}
	}
	w.Errorf("%s: no prime claim within two minutes", l)
}

// residentBytes returns the resident memory of a process, at its peak and now (proc_pid_status(5)).
func residentBytes(t *testing.T, pid int) (peak, now int64) {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch {
		case err != nil:
		case name == "VmHWM":
			peak = kib << 10
		case name == "VmRSS":
			now = kib << 10
		}
	}
	if peak == 0 || now == 0 {
		t.Fatalf("process %d tells nothing about its memory", pid)
	}
	return peak, now
}
