package fakecluster

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Available returns a volume that was made by hand, or is free again, for claims of a StorageClass like this one.
func Available(name string, claim *corev1.PersistentVolumeClaim, annotations map[string]string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      claim.Spec.Resources.Requests,
			StorageClassName:              *claim.Spec.StorageClassName,
			VolumeMode:                    claim.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: Driver, VolumeHandle: name},
			},
		},
	}
}

// available returns a volume that nobody has and that a claim may be bound to: the one that it names, or any of its class. Like the
// real binder it does not look at what the claim is to be filled from.
func (s *state) available(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	for i := range s.volumes {
		v := &s.volumes[i]
		if v.Spec.ClaimRef != nil || v.DeletionTimestamp != nil || c.Spec.StorageClassName == nil || v.Spec.StorageClassName != *c.Spec.StorageClassName {
			continue
		}
		if c.Spec.VolumeName == "" || c.Spec.VolumeName == v.Name {
			return v
		}
	}
	return nil
}

// take binds a volume that nobody has to a claim. The claim is bound to the volume after that.
func (f *Cluster) take(ctx context.Context, v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) error {
	v = v.DeepCopy() // other claims look at it at the same time
	Take(v, c)
	return f.client.Update(ctx, v)
}

// Take makes a volume name a claim, as the binder does first.
func Take(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) {
	v.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name, UID: c.UID}
}
