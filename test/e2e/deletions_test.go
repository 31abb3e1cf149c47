//go:build e2e

package e2e

import (
	"context"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// terminating is the longest that an object may be in Terminating.
const terminating = namespaceDeadline

// TestDeletions deletes what a population needs while it runs, before it can begin, and after it failed. What was asked to
// go must go, what can be populated must be, and every test's namespace must go in the end, with nothing left in ours.
func TestDeletions(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(func() {
		removals.Wait() // of namespaces in which the slow driver is at work
		w.cluster("restart", "csidriver", "--reset-args")
	})
	w.cluster("restart", "csidriver", "--arg=--stream-delay=150ms", "--arg=--max-entries-per-message=64")

	// A subtest that holds the parallel ones returns when they have all ended, and the driver is reset after that.
	t.Run("of", func(t *testing.T) {
		for name, play := range map[string]func(*life){
			"claim": func(l *life) {
				l.running()
				l.delete(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&corev1.PersistentVolumeClaim{}, "list")
			},
			"range": func(l *life) {
				l.running()
				l.delete(&v1alpha1.ChangedBlockRange{}, "range")
				l.filled()
				l.gone(&v1alpha1.ChangedBlockRange{}, "range")
			},
			"range and claim": func(l *life) {
				l.running()
				l.delete(&v1alpha1.ChangedBlockRange{}, "range")
				l.delete(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&v1alpha1.ChangedBlockRange{}, "range")
			},
			"snapshot and claim": func(l *life) {
				l.running()
				l.delete(&snapshotv1.VolumeSnapshot{}, "snap")
				l.delete(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&snapshotv1.VolumeSnapshot{}, "snap")
			},
			"populator pod": func(l *life) {
				pod := l.running()
				l.deleteTemporary(pod)
				l.filled()
			},
			"prime claim": func(l *life) {
				l.running()
				l.deleteTemporary(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: l.prime(), Namespace: populatorNS}})
				l.filled()
			},
			"prime claim and claim": func(l *life) {
				l.running()
				l.deleteTemporary(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: l.prime(), Namespace: populatorNS}})
				l.delete(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&corev1.PersistentVolumeClaim{}, "list")
			},
			"namespace": func(l *life) { l.running() }, // which the end of every test deletes
			"claim without range": func(l *life) {
				l.create(listClaim("orphan", "no-such-range"))
				l.delete(&corev1.PersistentVolumeClaim{}, "orphan")
				l.gone(&corev1.PersistentVolumeClaim{}, "orphan")
			},
			"waiting range, then claim": func(l *life) {
				l.create(ranges("waiting", "", "no-such-snapshot"), listClaim("waits", "waiting"))
				l.awaitReason("waiting", metav1.ConditionFalse, v1alpha1.ReasonSnapshotNotFound)
				l.delete(&v1alpha1.ChangedBlockRange{}, "waiting")
				l.gone(&v1alpha1.ChangedBlockRange{}, "waiting")
				l.delete(&corev1.PersistentVolumeClaim{}, "waits")
				l.gone(&corev1.PersistentVolumeClaim{}, "waits")
			},
			"failed range, then claim": func(l *life) {
				l.create(ranges("fails", "", "snap", func(s *v1alpha1.ChangedBlockRangeSpec) { s.MaxSizeInBytes = ptr.To[int64](100) }), listClaim("failed", "fails"))
				l.awaitReason("fails", metav1.ConditionFalse, v1alpha1.ReasonListTooLarge)
				l.delete(&v1alpha1.ChangedBlockRange{}, "fails")
				l.gone(&v1alpha1.ChangedBlockRange{}, "fails")
				l.delete(&corev1.PersistentVolumeClaim{}, "failed")
				l.gone(&corev1.PersistentVolumeClaim{}, "failed")
			},
			"everything after population": func(l *life) {
				l.running()
				l.filled()
				l.delete(&v1alpha1.ChangedBlockRange{}, "range")
				l.gone(&v1alpha1.ChangedBlockRange{}, "range")
				l.delete(&corev1.Pod{}, "reader")
				l.delete(&corev1.PersistentVolumeClaim{}, "list")
				l.gone(&corev1.PersistentVolumeClaim{}, "list")
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				l := &life{world: newWorld(t)}
				l.prepare()
				play(l)
			})
		}
	})
}

const lifeBlocks = 4096

// life is a namespace with a snapshot of 16 MiB, whose population takes about ten seconds.
type life struct {
	*world
	uid string
}

func (l *life) prepare() {
	l.Helper()
	l.create(claim("source", "16Mi", corev1.PersistentVolumeBlock))
	l.tools("writer", "source")
	l.exec("writer", "dd if=/dev/urandom of=/dev/source bs=1M count=16 conv=notrunc 2>/dev/null\n"+syncDevice("/dev/source"))
	l.takeSnapshot("snap", "source")
}

// running asks for the list and waits until its populator runs, which it returns.
func (l *life) running() *corev1.Pod {
	l.Helper()
	c := listClaim("list", "range")
	l.create(ranges("range", "", "snap"), c)
	l.uid = string(c.UID)
	pod := &corev1.Pod{}
	l.eventually("the populator runs", patience, func(ctx context.Context) (bool, string) {
		if err := api.Get(ctx, clientKey(populatorNS, "populate-"+l.uid), pod); err != nil {
			return false, err.Error()
		}
		return pod.Status.Phase == corev1.PodRunning, string(pod.Status.Phase)
	})
	return pod
}

func (l *life) prime() string { return "prime-" + l.uid }

// filled waits until the claim is Bound, and compares its list.
func (l *life) filled() {
	l.Helper()
	l.awaitBound("list")
	l.tools("reader", "list")
	var want []int64
	for n := range int64(lifeBlocks) {
		want = append(want, n)
	}
	l.wantExtents("list", l.readList("reader", "list", blocklist.JSON), blocks(want...))
}

func (l *life) delete(obj client.Object, name string) {
	l.Helper()
	obj.SetNamespace(l.ns)
	obj.SetName(name)
	l.deleteTemporary(obj)
}

func (l *life) deleteTemporary(obj client.Object) {
	l.Helper()
	if err := api.Delete(context.Background(), obj, client.GracePeriodSeconds(0)); err != nil {
		l.Fatalf("delete %T %s: %v", obj, obj.GetName(), err)
	}
}

func (l *life) gone(obj client.Object, name string) {
	l.Helper()
	l.eventually(name+" is gone", terminating, func(context.Context) (bool, string) {
		err := l.get(name, obj)
		return apierrors.IsNotFound(err), "its finalizers: " + strings.Join(obj.GetFinalizers(), ", ")
	})
}
