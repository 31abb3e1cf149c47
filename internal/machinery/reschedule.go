package machinery

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// rescheduled reports whether the provisioner gave the node up for which prime was made: it cannot make a volume there, or the
// node is gone. For any other claim the scheduler, which waits with the pod that wants it, would see the annotation go and
// choose again. It does not know of prime claims, and nothing would ever happen to this one.
func rescheduled(claim, prime *corev1.PersistentVolumeClaim) bool {
	return claim != nil && claim.DeletionTimestamp == nil && claim.Spec.VolumeName == "" &&
		prime.DeletionTimestamp == nil && prime.Spec.VolumeName == "" &&
		prime.Annotations[annotationNode] != "" && prime.Annotations[annotationSelectedNode] == ""
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
		before := claim.DeepCopy()
		claim = claim.DeepCopy()
		delete(claim.Annotations, annotationSelectedNode)
		patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
		if err := r.client.Patch(ctx, claim, patch); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("ask for another node for claim %s: %w", nameOf(claim), err)
		}
	}
	log.FromContext(ctx).Info("the provisioner gave up the selected node", "claim", nameOf(claim), "node", prime.Annotations[annotationNode])
	r.events.warn(claim, "NodeGivenUp",
		"No volume can be provisioned on node %s; the scheduler is to choose another one.", prime.Annotations[annotationNode])
	return r.deletes.exactly(ctx, prime)
}
