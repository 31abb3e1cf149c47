//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const guideCapacity = 10 << 20

// guide writes the blocks of the upstream hostpath driver's guide: 1, 3, 5, 7, 9 before the first snapshot, 2, 4, 9
// before the second.
func (w *world) guide(from, to string) {
	w.Helper()
	w.create(claim("source", "10Mi", corev1.PersistentVolumeBlock))
	w.tools("writer", "source")
	w.writeBlocks("writer", "/dev/source", 1, 3, 5, 7, 9)
	w.takeSnapshot(from, "source")
	w.writeBlocks("writer", "/dev/source", 2, 4, 9)
	w.takeSnapshot(to, "source")
}

func TestGuide(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")

	questions := []struct {
		name, from, to string
		want           []blocklist.Extent
	}{
		{"delta", "snap-1", "snap-2", blocks(2, 4, 9)},
		{"allocated-1", "", "snap-1", blocks(1, 3, 5, 7, 9)},
		{"allocated-2", "", "snap-2", blocks(1, 2, 3, 4, 5, 7, 9)},
	}
	var claims []string
	for _, q := range questions {
		w.create(
			ranges(q.name+"-json", q.from, q.to), listClaim(q.name+"-json", q.name+"-json"),
			ranges(q.name+"-binary", q.from, q.to, binary), listClaim(q.name+"-binary", q.name+"-binary"),
		)
		claims = append(claims, q.name+"-json", q.name+"-binary")
	}
	w.awaitBound(claims...)
	w.tools("backup", claims...)

	for _, q := range questions {
		json := w.readList("backup", q.name+"-json", blocklist.JSON)
		w.wantExtents(q.name+" in JSON", json, q.want)
		// Binary merges adjacent extents unless told otherwise.
		w.wantExtents(q.name+" in Binary", w.readList("backup", q.name+"-binary", blocklist.Binary), merged(q.want))
		if json.header.VolumeCapacityBytes != guideCapacity {
			w.Errorf("%s: capacity %d, want %d", q.name, json.header.VolumeCapacityBytes, guideCapacity)
		}
		w.checkStatus(q.name+"-json", json)
	}
	w.checkColumns()
}

// checkStatus compares what the ChangedBlockRange says with the list that was read.
func (w *world) checkStatus(name string, l list) {
	w.Helper()
	w.awaitReason(name, metav1.ConditionTrue, v1alpha1.ReasonPopulated)
	// Details follow the conditions within a second or two.
	cbr := &v1alpha1.ChangedBlockRange{}
	w.eventually(name+" counts its claim", patience, func(context.Context) (bool, string) {
		err := w.get(name, cbr)
		return err == nil && cbr.Status.PopulatedClaims == 1, fmt.Sprint(err, cbr.Status.PopulatedClaims)
	})
	s := cbr.Status
	if s.State != v1alpha1.StateReady || ptr.Deref(s.EntryCount, -1) != l.trailer.EntryCount ||
		ptr.Deref(s.ChangedBytes, -1) != l.trailer.ChangedBytes || ptr.Deref(s.NumBytesWritten, -1) != int64(len(l.raw)) || string(s.Mode) != string(l.header.Mode) {
		w.Errorf("status of %s does not describe its list: %+v", name, s)
	}
	if s.ToSnapshotHandle == "" || s.ToSnapshotHandle != l.header.TargetSnapshotHandle {
		w.Errorf("status of %s has the target handle %q, the list %q", name, s.ToSnapshotHandle, l.header.TargetSnapshotHandle)
	}
}

func (w *world) checkColumns() {
	w.Helper()
	out := w.kubectl("get", "cbr", "delta-json")
	for _, want := range []string{"FROM", "TO", "STATE", "ENTRIES", "CHANGED", "AGE", "snap-1", "snap-2", "Ready", "12 KiB"} {
		if !strings.Contains(out, want) {
			w.Errorf("kubectl get cbr does not show %q:\n%s", want, out)
		}
	}
	w.kubectl("wait", "--for=condition=Ready", "cbt/delta-json", "--timeout=10s")
}

func TestPrototypeManifest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("cbt-vs-from", "cbt-vs-to")
	manifest, err := os.ReadFile("../../examples/prototype/changedblockrange.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w.run(strings.NewReader(string(manifest)), "-n", w.ns, "apply", "-f", "-")
	w.awaitBound("cbt-pvc")
	w.tools("backup", "cbt-pvc")
	w.wantExtents("prototype", w.readList("backup", "cbt-pvc", blocklist.JSON), blocks(2, 4, 9))
}

func TestBlockTarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	target := listClaim("list", "delta")
	target.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
	w.create(ranges("delta", "snap-1", "snap-2", binary), target)
	w.awaitBound("list")
	w.tools("backup", "list")
	w.wantExtents("block target", w.readDevice(w.imageOf("backup", "/dev/list")), blocks(2, 4, 9))
	w.verify("list")
}

// verify has the populator's own image check the list on a claim's raw device.
func (w *world) verify(claim string) {
	w.Helper()
	image := w.kubectl("get", "deployment", "-n", populatorNS, "cbt-populator-controller",
		"-o", `jsonpath={.spec.template.spec.containers[0].env[?(@.name=="POPULATOR_IMAGE")].value}`)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "verify-" + claim},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "verify", Image: image, Args: []string{"verify", "/dev/list"},
				// The device belongs to root.
				SecurityContext: &corev1.SecurityContext{RunAsUser: ptr.To[int64](0)},
				VolumeDevices:   []corev1.VolumeDevice{{Name: "list", DevicePath: "/dev/list"}},
			}},
			Volumes: []corev1.Volume{{Name: "list", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}},
		},
	}
	w.create(pod)
	w.eventually("the list is verified", patience, func(context.Context) (bool, string) {
		if err := w.get(pod.Name, pod); err != nil {
			return false, err.Error()
		}
		if pod.Status.Phase == corev1.PodFailed {
			w.Fatalf("verify failed:\n%s", w.kubectl("logs", pod.Name))
		}
		return pod.Status.Phase == corev1.PodSucceeded, string(pod.Status.Phase)
	})
	w.Logf("%s", w.kubectl("logs", pod.Name))
}

// TestTwoClaims has two claims of one ChangedBlockRange hold the same bytes.
func TestTwoClaims(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("one", "delta"), listClaim("two", "delta"))
	w.awaitBound("one", "two")
	w.tools("backup", "one", "two")
	one, two := w.readList("backup", "one", blocklist.JSON), w.readList("backup", "two", blocklist.JSON)
	w.wantExtents("first claim", one, blocks(2, 4, 9))
	if !bytes.Equal(one.raw, two.raw) {
		t.Errorf("the two claims hold different bytes:\n%s\n%s", one.raw, two.raw)
	}
	w.eventually("both claims are counted", patience, func(context.Context) (bool, string) {
		return w.kubectl("get", "cbr", "delta", "-o", "jsonpath={.status.populatedClaims}") == "2", w.kubectl("get", "cbr", "delta", "-o", "yaml")
	})
}

// TestClaimBeforeRange creates the claim first, then the ChangedBlockRange, then snapshots whose volume does not exist
// yet and that therefore are not ready: each step must be noticed without a restart.
func TestClaimBeforeRange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(listClaim("list", "later"))
	w.create(ranges("later", "snap-1", "snap-2"))
	w.awaitReason("later", metav1.ConditionFalse, v1alpha1.ReasonSnapshotNotFound)

	w.create(snapshot("snap-1", "source"), snapshot("snap-2", "source"))
	w.awaitReason("later", metav1.ConditionFalse, v1alpha1.ReasonSnapshotNotReady)

	w.create(claim("source", "10Mi", corev1.PersistentVolumeBlock))
	w.awaitSnapshot("snap-1")
	w.awaitSnapshot("snap-2")
	w.awaitBound("list")
	w.tools("backup", "list")
	// Nothing was ever written, so the list is whole and empty: not the same as no list.
	got := w.readList("backup", "list", blocklist.JSON)
	w.wantExtents("empty delta", got, nil)
	if got.header.VolumeCapacityBytes != guideCapacity {
		t.Errorf("capacity %d, want %d", got.header.VolumeCapacityBytes, guideCapacity)
	}
}

// TestFilesystemSource lists the blocks under a filesystem and compares them with what differs between the two restored
// images, one of which becomes a filesystem again.
func TestFilesystemSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(claim("source", "32Mi", corev1.PersistentVolumeFilesystem))
	w.tools("writer", "source")
	w.exec("writer", "cd /mnt/source; dd if=/dev/urandom of=a bs=1M count=4 2>/dev/null; dd if=/dev/urandom of=b bs=1M count=2 2>/dev/null; sync")
	w.takeSnapshot("snap-1", "source")
	w.exec("writer", "cd /mnt/source; dd if=/dev/urandom of=a bs=4096 seek=100 count=50 conv=notrunc 2>/dev/null; rm b; echo new > c; sync")
	w.takeSnapshot("snap-2", "source")

	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"))
	for _, snap := range []string{"snap-1", "snap-2"} {
		w.allowModeChange(snap)
		w.create(restored("image-of-"+snap, "32Mi", snap))
	}
	w.awaitBound("list", "image-of-snap-1", "image-of-snap-2")
	w.tools("backup", "list", "image-of-snap-1", "image-of-snap-2")
	one, two := w.imageOf("backup", "/dev/image-of-snap-1"), w.imageOf("backup", "/dev/image-of-snap-2")
	want := w.differingBlocks(one, two)
	if len(want) < 50 {
		t.Fatalf("only %d blocks differ; the writes did not reach the snapshots", len(want))
	}
	w.wantExtents("filesystem delta", w.readList("backup", "list", blocklist.JSON), blocks(want...))

	// The way back: a snapshot of the device becomes a filesystem again.
	w.takeSnapshot("device", "image-of-snap-2")
	w.allowModeChange("device")
	back := restored("back", "32Mi", "device")
	back.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeFilesystem)
	w.create(back)
	w.awaitBound("back")
	w.tools("reader", "back")
	if got := string(w.exec("reader", "cat /mnt/back/c")); got != "new\n" {
		t.Errorf("the file has %q", got)
	}
}

// imageOf returns what is on a device of a pod. It comes compressed, because most of it is zeros, and what kubectl exec prints goes
// through several processes that give up on a busy machine when it is long.
func (w *world) imageOf(pod, device string) []byte {
	w.Helper()
	z, err := gzip.NewReader(bytes.NewReader(w.exec(pod, "gzip -c < "+device)))
	if err != nil {
		w.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		w.Fatal(err)
	}
	return data
}

// allowModeChange lets a snapshot be restored as a volume of the other mode, by the commands that docs/backup.md has for it.
func (w *world) allowModeChange(name string) {
	w.Helper()
	w.shell(strings.ReplaceAll(w.onPage("docs/backup.md", "Volumes with a filesystem", "sh"), "volumesnapshot monday ", "volumesnapshot "+name+" "))
}
