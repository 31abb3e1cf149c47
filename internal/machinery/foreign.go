package machinery

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// foreignClaims tells claims that refer to a ChangedBlockRange of another namespace why they are not filled from it, and wakes
// them when they may be.
type foreignClaims struct {
	client     client.Client
	references *reference.Policy
	events     *events
	// namespace is the populator namespace, whose claims are never filled.
	namespace string
	wake      func(types.NamespacedName)
}

func (f *foreignClaims) setup(mgr ctrl.Manager) error {
	foreign := predicate.NewPredicateFuncs(func(o client.Object) bool {
		claim, ok := o.(*corev1.PersistentVolumeClaim)
		return ok && claim.Namespace != f.namespace && reference.Foreign(claim)
	})
	err := ctrl.NewControllerManagedBy(mgr).Named("foreign-claims").
		For(&corev1.PersistentVolumeClaim{}, builder.WithPredicates(foreign)).
		WatchesRawSource(f.references.Source(func(ctx context.Context, namespace string) []reconcile.Request {
			var requests []reconcile.Request
			for _, claim := range claimsInto(ctx, f.client, namespace) {
				requests = append(requests, reconcile.Request{NamespacedName: nameOf(&claim)})
			}
			return requests
		})).
		Complete(f)
	if err != nil {
		return fmt.Errorf("set up the controller of claims that refer to other namespaces: %w", err)
	}
	return nil
}

// Reconcile implements reconcile.Reconciler for claims.
func (f *foreignClaims) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var claim corev1.PersistentVolumeClaim
	if err := f.client.Get(ctx, req.NamespacedName, &claim); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	refusal := f.references.Refused(&claim)
	if refusal != nil {
		f.events.warn(&claim, refusal.Reason, "%s", refusal.Message)
		return reconcile.Result{}, nil
	}
	f.events.retract(claim.UID, reference.ReasonDisabled, reference.ReasonUnavailable, reference.ReasonNotGranted)
	f.wake(req.NamespacedName)
	return reconcile.Result{}, nil
}

// claimsInto returns the claims of other namespaces that refer to a ChangedBlockRange in namespace, or in any if it is "".
func claimsInto(ctx context.Context, cache client.Reader, namespace string) []corev1.PersistentVolumeClaim {
	if namespace == "" {
		namespace = anywhere
	}
	var claims corev1.PersistentVolumeClaimList
	if err := cache.List(ctx, &claims, client.MatchingFields{indexForeign: namespace}); err != nil {
		// Only a cache that is being stopped fails here.
		log.FromContext(ctx).Error(err, "cannot look up the claims that refer to a namespace", "namespace", namespace)
		return nil
	}
	return claims.Items
}

// foreignClaims returns the requests of the claims whose ReferenceGrants changed: what was begun without one has to go.
func (r *releaser) foreignClaims(ctx context.Context, namespace string) []reconcile.Request {
	var requests []reconcile.Request
	for _, claim := range claimsInto(ctx, r.client, namespace) {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: string(claim.UID)}})
	}
	return requests
}

// noteOrigin corrects the annotation in which the library notes on a volume what it was populated from: it takes the claim's
// namespace for the source's.
func noteOrigin(ctx context.Context, c client.Writer, claim *corev1.PersistentVolumeClaim) error {
	if !reference.Foreign(claim) || claim.Spec.VolumeName == "" {
		return nil
	}
	source, _ := reference.Of(claim)
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, annotationPopulatedFrom, source)
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName}}
	if err := c.Patch(ctx, volume, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("note on volume %s what it was populated from: %w", volume.Name, err)
	}
	return nil
}
