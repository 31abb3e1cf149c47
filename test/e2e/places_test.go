//go:build e2e

package e2e

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestRestrictedNamespace has the populator's namespace enforce the strictest PodSecurity level, which Filesystem volumes
// must live with. It changes the namespace for everyone, so it does not run beside others.
func TestRestrictedNamespace(t *testing.T) {
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	level := func(level string) {
		w.run(nil, "label", "namespace", populatorNS, "--overwrite", "pod-security.kubernetes.io/enforce="+level)
	}
	t.Cleanup(func() { level("baseline") })
	level("restricted")
	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"))
	w.awaitBound("list")
	w.tools("backup", "list")
	w.wantExtents("restricted", w.readList("backup", "list", blocklist.JSON), blocks(2, 4, 9))
}

// TestWaitForFirstConsumer has a claim whose volume is made only when a pod that mounts it has been given a node.
func TestWaitForFirstConsumer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	late := listClaim("list", "delta")
	late.Spec.StorageClassName = ptr.To("csi-hostpath-wffc")
	w.create(ranges("delta", "snap-1", "snap-2"), late)
	w.tools("backup", "list")
	w.wantExtents("first consumer", w.readList("backup", "list", blocklist.JSON), blocks(2, 4, 9))
}

// TestReadWriteOncePod has a claim that one pod at a time may mount: the populator's must be gone before the backup's.
func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	alone := listClaim("list", "delta")
	alone.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	w.create(ranges("delta", "snap-1", "snap-2"), alone)
	w.awaitBound("list")
	w.tools("backup", "list")
	w.wantExtents("one pod", w.readList("backup", "list", blocklist.JSON), blocks(2, 4, 9))
}
