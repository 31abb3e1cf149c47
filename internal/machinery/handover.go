package machinery

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// handedOver reports whether a claim is bound to the volume that was filled for it. Its temporary objects have served then. The
// library would leave them until the prime claim is Lost, which the volume controller notices only when it looks at the
// prime claim the next time: after up to 15 s, or when the prime claim is deleted.
//
// Deleting the prime claim does the volume no harm: whether a volume is reclaimed is decided by the claim that its claimRef names, and
// the volume controller has acted upon that claimRef, or the claim would not be Bound. It is read from the API server here,
// because what follows cannot be undone.
func (r *releaser) handedOver(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) (bool, error) {
	if claim == nil || prime == nil || claim.DeletionTimestamp != nil || claim.Status.Phase != corev1.ClaimBound ||
		claim.Spec.VolumeName == "" || claim.Spec.VolumeName != prime.Spec.VolumeName {
		return false, nil
	}
	var volume corev1.PersistentVolume
	if err := r.live.Get(ctx, types.NamespacedName{Name: claim.Spec.VolumeName}, &volume); err != nil {
		if apierrors.IsNotFound(err) {
			// The claim becomes Lost, and so does the prime claim: the library goes on.
			return false, nil
		}
		return false, fmt.Errorf("get volume %s of claim %s: %w", claim.Spec.VolumeName, nameOf(claim), err)
	}
	if filledFor(&volume, claim) {
		r.origins.note(claim.UID, true)
	}
	return volume.Spec.ClaimRef != nil && volume.Spec.ClaimRef.UID == claim.UID, nil
}

// finish removes what served to fill a claim that has its volume: the pod, then, when that is gone, the prime claim. The end
// of that wakes the library, which takes its finalizer off the claim.
func (r *releaser) finish(ctx context.Context, claim *corev1.PersistentVolumeClaim, pod *corev1.Pod, prime *corev1.PersistentVolumeClaim) error {
	switch {
	case pod != nil && pod.DeletionTimestamp != nil:
		return nil
	case pod != nil:
		return r.deletes.populated(ctx, claim, pod)
	case prime.DeletionTimestamp != nil:
		return nil
	}
	return r.deletes.exactly(ctx, prime)
}
