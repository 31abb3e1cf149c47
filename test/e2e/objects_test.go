//go:build e2e

package e2e

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// claim builds a PVC of the sample driver.
func claim(name, size string, mode corev1.PersistentVolumeMode) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(storageClass),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			VolumeMode:       ptr.To(mode),
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			},
		},
	}
}

// listClaim builds a PVC that becomes the list of the ChangedBlockRange cbr.
func listClaim(name, cbr string) *corev1.PersistentVolumeClaim {
	c := claim(name, "10Mi", corev1.PersistentVolumeFilesystem)
	c.Spec.DataSourceRef = &corev1.TypedObjectReference{
		APIGroup: ptr.To(v1alpha1.GroupVersion.Group), Kind: "ChangedBlockRange", Name: cbr,
	}
	return c
}

// restored builds a Block PVC that holds the snapshot's content.
func restored(name, size, snapshot string) *corev1.PersistentVolumeClaim {
	c := claim(name, size, corev1.PersistentVolumeBlock)
	c.Spec.DataSourceRef = &corev1.TypedObjectReference{
		APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: snapshot,
	}
	return c
}

// ranges builds a ChangedBlockRange; an empty from asks for the allocated blocks.
func ranges(name, from, to string, options ...func(*v1alpha1.ChangedBlockRangeSpec)) *v1alpha1.ChangedBlockRange {
	cbr := &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: from, ToVolumeSnapshotName: to},
	}
	for _, option := range options {
		option(&cbr.Spec)
	}
	return cbr
}

func binary(s *v1alpha1.ChangedBlockRangeSpec) { s.Format = v1alpha1.FormatBinary }

func snapshot(name, source string) *snapshotv1.VolumeSnapshot {
	return &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: ptr.To(snapshotClass),
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To(source)},
		},
	}
}

// takeSnapshot snapshots a claim and waits until the snapshot can be used.
func (w *world) takeSnapshot(name, source string) {
	w.Helper()
	w.create(snapshot(name, source))
	w.awaitSnapshot(name)
}

func (w *world) awaitSnapshot(name string) {
	w.Helper()
	w.eventually("snapshot "+name+" is ready", patience, func(context.Context) (bool, string) {
		var s snapshotv1.VolumeSnapshot
		if err := w.get(name, &s); err != nil {
			return false, err.Error()
		}
		return s.Status != nil && ptr.Deref(s.Status.ReadyToUse, false), fmt.Sprintf("%+v", s.Status)
	})
}

// awaitBound waits until the claims are Bound.
func (w *world) awaitBound(names ...string) {
	w.Helper()
	for _, name := range names {
		w.eventually("claim "+name+" is Bound", patience, func(context.Context) (bool, string) {
			var c corev1.PersistentVolumeClaim
			if err := w.get(name, &c); err != nil {
				return false, err.Error()
			}
			return c.Status.Phase == corev1.ClaimBound, string(c.Status.Phase)
		})
	}
}

// awaitReason waits until the ChangedBlockRange's Ready condition has the status and the reason, and returns the object.
func (w *world) awaitReason(name string, status metav1.ConditionStatus, reason string) *v1alpha1.ChangedBlockRange {
	w.Helper()
	var cbr v1alpha1.ChangedBlockRange
	w.eventually(fmt.Sprintf("ChangedBlockRange %s has Ready=%s with reason %s", name, status, reason), patience, func(context.Context) (bool, string) {
		if err := w.get(name, &cbr); err != nil {
			return false, err.Error()
		}
		c := meta.FindStatusCondition(cbr.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Status == status && c.Reason == reason && c.ObservedGeneration == cbr.Generation, fmt.Sprintf("%+v", cbr.Status)
	})
	return &cbr
}

// tools runs a pod that mounts the claims, named by the claims: a Block volume as /dev/<claim>, a Filesystem at
// /mnt/<claim>.
func (w *world) tools(pod string, claims ...string) {
	w.Helper()
	w.toolsIn(w.ns, pod, claims...)
}

func (w *world) toolsIn(ns, name string, claims ...string) {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To[int64](0),
			Containers:                    []corev1.Container{{Name: "tools", Image: toolsImage, Command: []string{"sleep", "86400"}}},
		},
	}
	container := &pod.Spec.Containers[0]
	for i, name := range claims {
		var c corev1.PersistentVolumeClaim
		if err := api.Get(context.Background(), clientKey(ns, name), &c); err != nil {
			w.Fatalf("get claim %s: %v", name, err)
		}
		volume := fmt.Sprintf("claim-%d", i)
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
		if ptr.Deref(c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) == corev1.PersistentVolumeBlock {
			container.VolumeDevices = append(container.VolumeDevices, corev1.VolumeDevice{Name: volume, DevicePath: "/dev/" + name})
		} else {
			container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: "/mnt/" + name})
		}
	}
	if err := api.Create(context.Background(), pod); err != nil {
		w.Fatalf("create pod %s: %v", name, err)
	}
	w.eventually("pod "+name+" is ready", patience, func(ctx context.Context) (bool, string) {
		if err := api.Get(ctx, clientKey(ns, name), pod); err != nil {
			return false, err.Error()
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", pod.Status)
	})
}
