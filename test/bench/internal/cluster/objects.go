package cluster

import (
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// measured labels everything that one measurement creates.
const measured = "cbt-bench/measured"

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{measured: "true"}}
}

// claim builds a PVC of 10 MiB. Its source, if there is one, is of the group and kind.
func claim(name string, mode corev1.PersistentVolumeMode, source *corev1.TypedObjectReference) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: meta(name),
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(storageClass), VolumeMode: ptr.To(mode), DataSourceRef: source,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")},
			},
		},
	}
}

// pod builds a pod that runs a shell script with the claim: a Filesystem at /mnt, a Block volume as /dev/volume.
func pod(name, claim string, mode corev1.PersistentVolumeMode, script string) *corev1.Pod {
	c := corev1.Container{Name: "shell", Image: image, Command: []string{"sh", "-ec", script}}
	if mode == corev1.PersistentVolumeBlock {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: "volume", DevicePath: "/dev/volume"}}
	} else {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "volume", MountPath: "/mnt"}}
	}
	return &corev1.Pod{
		ObjectMeta: meta(name),
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr.To[int64](0),
			AutomountServiceAccountToken: ptr.To(false),
			Containers:                   []corev1.Container{c},
			Volumes: []corev1.Volume{{Name: "volume", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}},
		},
	}
}

func snapshotOf(name, source string) *snapshotv1.VolumeSnapshot {
	return &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: ptr.To(snapshotClass),
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To(source)},
		},
	}
}

func changedBlockRange(name string) *v1alpha1.ChangedBlockRange {
	return &v1alpha1.ChangedBlockRange{
		ObjectMeta: meta(name),
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: snap1, ToVolumeSnapshotName: snap2},
	}
}

func sourceOf(group, kind, name string) *corev1.TypedObjectReference {
	return &corev1.TypedObjectReference{APIGroup: ptr.To(group), Kind: kind, Name: name}
}

func numbered(prefix string, i int) string { return fmt.Sprintf("%s-%d", prefix, i) }
