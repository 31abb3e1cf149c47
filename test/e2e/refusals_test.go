//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestPermissionDenied takes the populator's permission away. It changes the whole cluster, so it does not run beside
// others; Go runs it before the parallel tests go on.
func TestPermissionDenied(t *testing.T) {
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "cbt-populator-worker"}}
	if err := api.Get(context.Background(), client.ObjectKeyFromObject(binding), binding); err != nil {
		t.Fatal(err)
	}
	if err := api.Delete(context.Background(), binding.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		binding.ResourceVersion, binding.UID = "", ""
		if err := api.Create(context.Background(), binding); err != nil {
			t.Errorf("give the permission back: %v", err)
		}
	})
	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"))
	w.awaitRefusal("delta", "list", v1alpha1.ReasonPermissionDenied)
}

// TestDeltaUnavailable switches the driver's changed block tracking off: a delta is refused, and replaced by the allocated
// blocks where the user asked for that, visibly. It changes the driver for everyone, so it does not run beside others.
func TestDeltaUnavailable(t *testing.T) {
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	t.Cleanup(func() { w.cluster("restart", "csidriver", "--reset-args") })
	w.cluster("restart", "csidriver", "--arg=--no-delta")

	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("delta", "delta"),
		ranges("fallback", "snap-1", "snap-2", func(s *v1alpha1.ChangedBlockRangeSpec) { s.WhenDeltaUnavailable = v1alpha1.FallbackUseAllocated }),
		listClaim("fallback", "fallback"))
	w.wantNoList(w.awaitRefusal("delta", "delta", v1alpha1.ReasonDeltaUnavailable))

	w.awaitBound("fallback")
	w.tools("backup", "fallback")
	list := w.readList("backup", "fallback", blocklist.JSON)
	w.wantExtents("fallback", list, blocks(1, 2, 3, 4, 5, 7, 9))
	if list.header.Mode != blocklist.Allocated {
		w.Errorf("the list's header says mode %s", list.header.Mode)
	}
	w.checkStatus("fallback", list)
}

// TestAdmissionRefuses has the API server refuse what cannot mean anything, with a sentence.
func TestAdmissionRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	both := ranges("both", "snap-1", "snap-2")
	both.Spec.FromSnapshotHandle = "handle"
	both.Namespace = w.ns
	w.wantRefused(api.Create(context.Background(), both), "both name the base")

	cbr := ranges("fixed", "snap-1", "snap-2")
	w.create(cbr)
	w.eventually("the change is refused", patience, func(ctx context.Context) (bool, string) {
		if err := w.get("fixed", cbr); err != nil {
			return false, err.Error()
		}
		cbr.Spec.ToVolumeSnapshotName = "snap-3"
		err := api.Update(ctx, cbr)
		return err != nil && strings.Contains(err.Error(), "cannot be changed"), fmt.Sprint(err)
	})
}

func (w *world) wantRefused(err error, sentence string) {
	w.Helper()
	if err == nil || !strings.Contains(err.Error(), sentence) {
		w.Errorf("got %v, want a refusal with %q", err, sentence)
	}
}

// TestSnapshotsRefused names snapshots that no list can be made from.
func TestSnapshotsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	w.create(claim("other", "10Mi", corev1.PersistentVolumeBlock))
	w.awaitBound("other")
	w.takeSnapshot("of-other-volume", "other")
	w.create(snapshot("not-ready", "no-such-claim"))
	w.foreignSnapshot("foreign-1")
	w.foreignSnapshot("foreign-2")

	for name, c := range map[string]struct{ from, to, reason string }{
		"unknown-snapshot":    {"snap-1", "no-such-snapshot", v1alpha1.ReasonSnapshotNotFound},
		"unknown-base":        {"no-such-snapshot", "snap-2", v1alpha1.ReasonSnapshotNotFound},
		"unready-snapshot":    {"snap-1", "not-ready", v1alpha1.ReasonSnapshotNotReady},
		"two-volumes":         {"of-other-volume", "snap-2", v1alpha1.ReasonVolumeMismatch},
		"two-drivers":         {"foreign-1", "snap-2", v1alpha1.ReasonDriverMismatch},
		"no-metadata-service": {"foreign-1", "foreign-2", v1alpha1.ReasonMetadataServiceNotFound},
	} {
		w.create(ranges(name, c.from, c.to), listClaim(name, name))
		w.awaitRefusal(name, name, c.reason)
	}
}

// awaitRefusal waits until the ChangedBlockRange gives the reason and a sentence, and checks that the claim is not Bound.
func (w *world) awaitRefusal(cbr, list, reason string) *corev1.PersistentVolumeClaim {
	w.Helper()
	refused := w.awaitReason(cbr, metav1.ConditionFalse, reason)
	if !strings.Contains(refused.Status.Message, " ") {
		w.Errorf("%s: the message %q is no sentence", cbr, refused.Status.Message)
	}
	w.Logf("%s: %s", reason, refused.Status.Message)
	var c corev1.PersistentVolumeClaim
	if err := w.get(list, &c); err != nil {
		w.Fatal(err)
	}
	if c.Status.Phase != corev1.ClaimPending {
		w.Errorf("%s: its claim is %s, want Pending", cbr, c.Status.Phase)
	}
	return &c
}

// foreignSnapshot makes a ready snapshot of a driver that this cluster does not run, as an administrator does who imports
// one: a content by hand, and its status as that driver's sidecar would write it.
func (w *world) foreignSnapshot(name string) {
	w.Helper()
	ctx := context.Background()
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: w.ns + "-" + name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver:            "foreign-csi.example.com",
			DeletionPolicy:    snapshotv1.VolumeSnapshotContentRetain,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr.To("handle-of-" + name)},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: w.ns, Name: name},
		},
	}
	if err := api.Create(ctx, content); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		// The driver's sidecar would lift the protection of a content; there is none, so the test does.
		w.kubectl("patch", "volumesnapshotcontent", content.Name, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
		if err := client.IgnoreNotFound(api.Delete(ctx, content)); err != nil {
			w.Errorf("delete content %s: %v", content.Name, err)
		}
	})
	w.create(&snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &content.Name}},
	})
	w.eventually("content "+content.Name+" is ready", patience, func(ctx context.Context) (bool, string) {
		if err := api.Get(ctx, client.ObjectKeyFromObject(content), content); err != nil {
			return false, err.Error()
		}
		content.Status = &snapshotv1.VolumeSnapshotContentStatus{
			SnapshotHandle: content.Spec.Source.SnapshotHandle, ReadyToUse: ptr.To(true), RestoreSize: ptr.To[int64](guideCapacity),
		}
		err := api.Status().Update(ctx, content)
		return err == nil, fmt.Sprint(err)
	})
	w.awaitSnapshot(name)
}

// TestListTooLarge bounds the list below its size: the claim must not be filled, and nothing on its volume may look like a
// list.
func TestListTooLarge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	w.create(ranges("delta", "snap-1", "snap-2", func(s *v1alpha1.ChangedBlockRangeSpec) { s.MaxSizeInBytes = ptr.To[int64](100) }),
		listClaim("list", "delta"))
	w.wantNoList(w.awaitRefusal("delta", "list", v1alpha1.ReasonListTooLarge))
}

// TestVolumeFull asks for a list of 32,768 extents, about 1.4 MiB of JSON, on a volume of 1 MiB.
func TestVolumeFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(claim("source", "128Mi", corev1.PersistentVolumeBlock))
	w.tools("writer", "source")
	w.exec("writer", "dd if=/dev/urandom of=/dev/source bs=1M count=128 conv=notrunc 2>/dev/null\n"+syncDevice("/dev/source"))
	w.takeSnapshot("snap-1", "source")
	small := listClaim("list", "allocated")
	small.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("1Mi")
	w.create(ranges("allocated", "", "snap-1"), small)
	c := w.awaitRefusal("allocated", "list", v1alpha1.ReasonVolumeFull)
	w.wantNoList(c)
}

// wantNoList looks at the volume that was to become the claim's: it is still the prime claim's.
func (w *world) wantNoList(c *corev1.PersistentVolumeClaim) {
	w.Helper()
	prime := "prime-" + string(c.UID)
	pod := "look-" + string(c.UID)
	w.Cleanup(func() { w.run(nil, "-n", populatorNS, "delete", "pod", pod, "--ignore-not-found", "--wait") })
	w.toolsIn(populatorNS, pod, prime)
	files := strings.Fields(string(w.run(nil, "-n", populatorNS, "exec", pod, "--", "find", "/mnt/"+prime, "-type", "f")))
	if len(files) > 0 {
		w.Errorf("the volume of the failed population holds %v", files)
	}
}
