package machinery

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// rescheduled reports whether the provisioner gave the node up for which prime was made: it cannot make a volume there, or the
// node is gone. For any other claim the scheduler, which waits with the pod that wants it, would see the annotation go and
// choose again. It does not know of prime claims, and nothing would ever happen to this one.
func rescheduled(claim, prime *corev1.PersistentVolumeClaim) bool {
	return unprovisioned(claim, prime) &&
		prime.Annotations[annotationNode] != "" && prime.Annotations[annotationSelectedNode] == ""
}

// nodeless reports whether prime was made without a node although claim has one by now.
func nodeless(claim, prime *corev1.PersistentVolumeClaim) bool {
	return unprovisioned(claim, prime) && claim.Annotations[annotationSelectedNode] != "" &&
		prime.Annotations[annotationNode] == "" && prime.Annotations[annotationSelectedNode] == ""
}

// unprovisioned reports whether claim still waits for the volume that is to come of prime.
func unprovisioned(claim, prime *corev1.PersistentVolumeClaim) bool {
	return claim != nil && claim.DeletionTimestamp == nil && claim.Spec.VolumeName == "" &&
		prime.DeletionTimestamp == nil && prime.Spec.VolumeName == ""
}

// reschedule passes on to the claim what the provisioner said about its prime claim: the node's annotation is taken off, so
// that the scheduler fails the binding of the pod that waits for the claim and chooses again. The prime claim goes, for it
// cannot get another node; the library makes the next one when the claim has a node again.
func (r *releaser) reschedule(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) error {
	if !rescheduled(claim, prime) {
		return nil
	}
	// The claim comes first. Should the controller die in between, a node that was chosen in the meantime is another one.
	if claim.Annotations[annotationSelectedNode] == prime.Annotations[annotationNode] {
		claim = claim.DeepCopy()
		if err := annotate(ctx, r.client, claim, annotationSelectedNode, ""); err != nil {
			return fmt.Errorf("ask for another node for claim %s: %w", nameOf(claim), err)
		}
	}
	log.FromContext(ctx).Info("the provisioner gave up the selected node", "claim", nameOf(claim), "node", prime.Annotations[annotationNode])
	r.events.warn(claim, "NodeGivenUp",
		"No volume can be provisioned on node %s; the scheduler is to choose another one.", prime.Annotations[annotationNode])
	return r.deletes.exactly(ctx, prime)
}

// remake deletes a prime claim that was made without a node and cannot get a volume without one, because the StorageClass waits for
// the first consumer by now: the claim named no class until the cluster had a default one, or the class was replaced. The scheduler
// does not know of prime claims and chooses no node for this one; the library makes the next one with the claim's.
func (r *releaser) remake(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) error {
	if !nodeless(claim, prime) {
		return nil
	}
	// Where the class does not wait, anybody may have written the annotation on the claim.
	if waits, err := r.waitsForConsumer(ctx, claim); err != nil || !waits {
		return err
	}
	log.FromContext(ctx).Info("the prime claim was made without a node, which its StorageClass wants by now", "claim", nameOf(claim),
		"node", claim.Annotations[annotationSelectedNode])
	return r.deletes.exactly(ctx, prime)
}

// overlooked reports whether a claim has its volume, nothing temporary of it is left, and the library never takes the finalizer
// off: it looks at no claim without a selected node whose StorageClass waits for the first consumer, and no scheduler chooses
// one for a claim that is bound. Provisioners take the annotation off when the node is gone, which may be while the volume is
// handed over; and who restores claims from a backup leaves it out.
func (r *releaser) overlooked(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim, pod *corev1.Pod) (bool, error) {
	if pod != nil || prime != nil || claim.Spec.VolumeName == "" || !hasFinalizer(claim) || claim.Annotations[annotationSelectedNode] != "" {
		return false, nil
	}
	return r.waitsForConsumer(ctx, claim)
}

// waitsForConsumer reports whether the claim's StorageClass exists and waits for the first consumer.
func (r *releaser) waitsForConsumer(ctx context.Context, claim *corev1.PersistentVolumeClaim) (bool, error) {
	name := claim.Spec.StorageClassName
	if name == nil {
		return false, nil
	}
	var class storagev1.StorageClass
	switch err := r.client.Get(ctx, types.NamespacedName{Name: *name}, &class); {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("get StorageClass %s of claim %s: %w", *name, nameOf(claim), err)
	}
	return ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) == storagev1.VolumeBindingWaitForFirstConsumer, nil
}
