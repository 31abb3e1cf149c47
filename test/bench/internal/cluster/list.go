package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const (
	source       = "source"
	snap1, snap2 = "snap-1", "snap-2"
	blockSize    = 4096
)

// changed are the blocks that are written between the snapshots.
var changed = []int{2, 4, 9}

// takeSnapshots makes a volume with two snapshots, between which blocks are written.
func (w *world) takeSnapshots(ctx context.Context) error {
	volume := claim(source, corev1.PersistentVolumeBlock, nil)
	volume.Labels = nil
	if err := w.create(ctx, volume); err != nil {
		return err
	}
	for i, step := range []struct {
		snapshot string
		blocks   []int
	}{{snap1, []int{1, 3, 5, 7, 9}}, {snap2, changed}} {
		var script strings.Builder
		for _, b := range step.blocks {
			fmt.Fprintf(&script, "dd if=/dev/urandom of=/dev/volume bs=%d count=1 seek=%d conv=notrunc,fsync\n", blockSize, b)
		}
		writer := pod(numbered("writer", i), source, corev1.PersistentVolumeBlock, script.String())
		if err := w.runPod(ctx, writer); err != nil {
			return err
		}
		s := snapshotOf(step.snapshot, source)
		if err := w.create(ctx, s); err != nil {
			return err
		}
		err := w.until(ctx, step.snapshot+" is ready", func(ctx context.Context) (bool, error) {
			err := w.Get(ctx, client.ObjectKeyFromObject(s), s)
			return s.Status != nil && ptr.Deref(s.Status.ReadyToUse, false), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// runPod runs a pod to its end and deletes it. Its termination message is in its status afterwards.
func (w *world) runPod(ctx context.Context, p *corev1.Pod) error {
	if err := w.create(ctx, p); err != nil {
		return err
	}
	err := w.until(ctx, "pod "+p.Name+" has ended", func(ctx context.Context) (bool, error) {
		err := w.Get(ctx, client.ObjectKeyFromObject(p), p)
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed, err
	})
	if err != nil {
		return err
	}
	if p.Status.Phase != corev1.PodSucceeded {
		return fmt.Errorf("pod %s failed: %+v", p.Name, p.Status.ContainerStatuses)
	}
	ended := p.DeepCopy()
	if err := w.Delete(ctx, p); err != nil {
		return fmt.Errorf("delete pod %s: %w", p.Name, err)
	}
	err = w.until(ctx, "pod "+p.Name+" is gone", func(ctx context.Context) (bool, error) {
		err := w.Get(ctx, client.ObjectKeyFromObject(p), p)
		return err != nil, client.IgnoreNotFound(err)
	})
	*p = *ended
	return err
}

// checkLists compares the list that a pod reads from the first claim with what was written, and the digests of all n
// ChangedBlockRanges with that list's.
func (w *world) checkLists(ctx context.Context, prefix string, n int) error {
	first := numbered(prefix, 0)
	reader := pod("reader", first, corev1.PersistentVolumeFilesystem,
		`cd /mnt; sha256sum -c *.sha256; { cut -c1-64 *.sha256; grep -o '"byte_offset":[0-9]*' changed-blocks.json | cut -d: -f2; } >/dev/termination-log`)
	if err := w.runPod(ctx, reader); err != nil {
		return err
	}
	said := strings.Fields(reader.Status.ContainerStatuses[0].State.Terminated.Message)
	if len(said) == 0 {
		return errors.New("the pod that reads a list said nothing")
	}
	var want []string
	for _, b := range changed {
		want = append(want, fmt.Sprint(b*blockSize))
	}
	if got := strings.Join(said[1:], " "); got != strings.Join(want, " ") {
		return fmt.Errorf("WRONG LIST: offsets %s, want %s", got, strings.Join(want, " "))
	}
	var lists v1alpha1.ChangedBlockRangeList
	ready := func() (n int) {
		for _, l := range lists.Items {
			if l.Status.ListDigest != "" {
				n++
			}
		}
		return n
	}
	if err := w.count(ctx, "lists have a digest", n, namespace, &lists, ready); err != nil {
		return err
	}
	for _, l := range lists.Items {
		if l.Status.ListDigest != "sha256:"+said[0] {
			return fmt.Errorf("WRONG LIST: the digest of %s is %s, that of %s sha256:%s", l.Name, l.Status.ListDigest, first, said[0])
		}
	}
	return nil
}

// removeSnapshots removes them before their volume, which the driver keeps as long as it has snapshots.
func (w *world) removeSnapshots(ctx context.Context) error {
	for _, name := range []string{snap2, snap1} {
		s := snapshotOf(name, source)
		if err := client.IgnoreNotFound(w.Delete(ctx, s)); err != nil {
			return fmt.Errorf("delete snapshot %s: %w", name, err)
		}
	}
	var snapshots snapshotv1.VolumeSnapshotList
	return w.count(ctx, "snapshots are left", 0, namespace, &snapshots, func() int { return len(snapshots.Items) })
}
