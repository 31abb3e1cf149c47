package machinery

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// giveUp ends the population of a claim that failed for good, and whose failed pod is removed, when its ChangedBlockRange is
// being deleted: nothing would ever follow, and the ChangedBlockRange would be kept for as long as the claim exists. The
// claim waits like one that was never begun, until there is a ChangedBlockRange of that name again.
//
// The finalizer goes first: while the claim has it, the library would replace the prime claim.
func (r *releaser) giveUp(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) error {
	failed, ok := rememberedFailure(prime)
	if !ok || claim.Spec.VolumeName != "" || prime.DeletionTimestamp != nil {
		return nil
	}
	if !hasFinalizer(claim) {
		// A prime claim with a failure had a claim with the finalizer; it was given up.
		r.slots.release(podName(claim.UID))
		r.starts.forget(claim.UID)
		return r.deletes.exactly(ctx, prime)
	}
	source, ok := reference.Of(claim)
	if !ok || failed.Reason.Class() != outcome.Terminal {
		return nil
	}
	var cbr v1alpha1.ChangedBlockRange
	switch err := r.client.Get(ctx, source, &cbr); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("get ChangedBlockRange %s: %w", source, err)
	}
	if cbr.DeletionTimestamp == nil || string(cbr.UID) != failed.SourceUID {
		return nil
	}
	log.FromContext(ctx).Info("giving up a claim that failed, because its ChangedBlockRange is being deleted", "claim", nameOf(claim))
	return r.removeFinalizer(ctx, claim.DeepCopy())
}

// abandoned reports whether the ChangedBlockRange of a claim is gone, or the claim may not refer to it any more, although there
// are temporary objects of the claim. Nobody knows whether that changes again, and the library does nothing about such a
// claim, not even clean up; so the claim becomes one that was never begun. A volume that was handed over stays the
// claim's. That it is so is not believed of the cache alone.
func (r *releaser) abandoned(ctx context.Context, claim *corev1.PersistentVolumeClaim, pod *corev1.Pod, prime *corev1.PersistentVolumeClaim) (bool, error) {
	source, ok := reference.Of(claim)
	if !ok || (pod == nil && prime == nil && !hasFinalizer(claim)) {
		return false, nil
	}
	if withdrawn, err := r.references.Withdrawn(ctx, claim); withdrawn || err != nil {
		return withdrawn, err
	}
	for _, reader := range []client.Reader{r.client, r.live} {
		var cbr v1alpha1.ChangedBlockRange
		switch err := reader.Get(ctx, source, &cbr); {
		case err == nil:
			return false, nil
		case !apierrors.IsNotFound(err):
			return false, fmt.Errorf("get ChangedBlockRange %s: %w", source, err)
		}
	}
	return true, nil
}

// ending lets pass that an object is being deleted or gone.
func ending() predicate.Predicate {
	deleting := func(o client.Object) bool { return o.GetDeletionTimestamp() != nil }
	return predicate.Funcs{
		CreateFunc:  func(e event.CreateEvent) bool { return deleting(e.Object) },
		UpdateFunc:  func(e event.UpdateEvent) bool { return deleting(e.ObjectNew) },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// claimsOfRange returns the requests of the claims that are filled from a ChangedBlockRange which is being deleted or gone.
func (r *releaser) claimsOfRange(ctx context.Context, o client.Object) []reconcile.Request {
	return r.indexed(ctx, indexSource, client.ObjectKeyFromObject(o).String())
}

// claimsOfClass returns the requests of the claims of a StorageClass: one of the same name may want a node for its volumes.
func (r *releaser) claimsOfClass(ctx context.Context, o client.Object) []reconcile.Request {
	return r.indexed(ctx, indexClass, o.GetName())
}

func (r *releaser) indexed(ctx context.Context, index, value string) []reconcile.Request {
	var claims corev1.PersistentVolumeClaimList
	if err := r.client.List(ctx, &claims, client.MatchingFields{index: value}); err != nil {
		// Only a cache that is being stopped fails here.
		log.FromContext(ctx).Error(err, "cannot look up claims", "index", index, "value", value)
		return nil
	}
	var requests []reconcile.Request
	for i := range claims.Items {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: string(claims.Items[i].UID)}})
	}
	return requests
}
