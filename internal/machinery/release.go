package machinery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// releaser removes the temporary objects of claims that are being deleted, and then the library's finalizer; those of
// claims that are gone or that need them no more; and those of claims that have got their volume. For the first, the library
// returns before its own cleanup when the ChangedBlockRange, the StorageClass or the selected node is missing, and then the claim
// hangs in Terminating for good; so the queue keeps claims that are being deleted from it. For the last, it would wait longer
// than it needs to.
//
// A request's name is the UID of a claim: the claim itself may be gone.
type releaser struct {
	client    client.Client
	live      client.Reader
	namespace string
	slots     *slots
	starts    *starts
	events    *events
	refused   *refusals
	deletes   *deletes
	origins   origins

	references *reference.Policy
}

func (r *releaser) setup(mgr ctrl.Manager) error {
	toUID := func(extract func(client.Object) types.UID) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			uid := extract(o)
			if uid == "" {
				return nil
			}
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: string(uid)}}}
		})
	}
	err := ctrl.NewControllerManagedBy(mgr).Named("release").
		Watches(&corev1.PersistentVolumeClaim{}, toUID(r.uidOfClaim)).
		Watches(&corev1.Pod{}, toUID(temporaryOf)).
		Watches(&v1alpha1.ChangedBlockRange{}, handler.EnqueueRequestsFromMapFunc(r.claimsOfRange), builder.WithPredicates(ending())).
		Watches(&storagev1.StorageClass{}, handler.EnqueueRequestsFromMapFunc(r.claimsOfClass)).
		WatchesRawSource(r.references.Source(r.foreignClaims)).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the release controller: %w", err)
	}
	return nil
}

// uidOfClaim returns the UID of a claim of ours, be it the prime claim or the claim itself, for which there may be
// something to do.
func (r *releaser) uidOfClaim(o client.Object) types.UID {
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return ""
	}
	if claim.Namespace == r.namespace {
		return temporaryOf(o)
	}
	if concernsUs(claim) {
		return claim.UID
	}
	return ""
}

// Reconcile implements reconcile.Reconciler for UIDs of claims.
func (r *releaser) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	uid := types.UID(req.Name)
	pod, prime, err := r.temporaries(ctx, uid)
	if err != nil {
		return reconcile.Result{}, err
	}
	claim, err := r.claim(ctx, uid, pod, prime)
	if err != nil {
		return reconcile.Result{}, err
	}
	release, err := r.releases(ctx, claim, pod, prime)
	if err != nil {
		return reconcile.Result{}, err
	}
	if claim != nil && (release || prime == nil) {
		// It is told before anything goes: a claim that lost its finalizer counts as filled.
		if err := r.checkVolume(ctx, claim); err != nil {
			// The newer version of a claim that changed in between wakes us.
			return reconcile.Result{}, ignoreConflict(err)
		}
	}
	if !release {
		return reconcile.Result{}, r.goOn(ctx, claim, pod, prime)
	}
	gone, err := r.remove(ctx, uid, pod, prime)
	if err != nil || !gone {
		// The end of what is being deleted wakes us.
		return reconcile.Result{}, err
	}
	if claim == nil {
		r.origins.forget(uid)
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, r.removeFinalizer(ctx, claim)
}

// goOn does for a claim that is not released what the library does not.
func (r *releaser) goOn(ctx context.Context, claim *corev1.PersistentVolumeClaim, pod *corev1.Pod, prime *corev1.PersistentVolumeClaim) error {
	if prime == nil {
		return nil
	}
	over, err := r.handedOver(ctx, claim, prime)
	switch {
	case err != nil:
		return err
	case over:
		return r.finish(ctx, claim, pod, prime)
	case pod == nil:
		return errors.Join(r.reschedule(ctx, claim, prime), r.remake(ctx, claim, prime), r.giveUp(ctx, claim, prime))
	}
	return nil
}

// releases reports whether the temporary objects of a claim are to go, and its finalizer with them.
func (r *releaser) releases(ctx context.Context, claim *corev1.PersistentVolumeClaim, pod *corev1.Pod, prime *corev1.PersistentVolumeClaim) (bool, error) {
	if released(claim, prime) {
		return true, nil
	}
	if abandoned, err := r.abandoned(ctx, claim, pod, prime); abandoned || err != nil {
		return abandoned, err
	}
	return r.overlooked(ctx, claim, prime, pod)
}

// released reports whether the temporary objects of a claim are to go although the library does not say so. claim is nil
// when it is gone.
func released(claim, prime *corev1.PersistentVolumeClaim) bool {
	if claim == nil || claim.DeletionTimestamp != nil {
		return true
	}
	if _, refers := reference.Of(claim); !refers {
		// It is never filled, and only its finalizer is ours: who restores a claim from a backup may keep that and leave the
		// reference out, and the library adds it by the claim's name, which may be another claim's by then.
		return true
	}
	switch {
	case claim.Spec.VolumeName == "":
		return false
	case !hasFinalizer(claim):
		// Bound and let go by the library: what is left was left behind.
		return true
	default:
		// Bound to a volume that is not ours, so the library waits in vain for the prime claim to lose its own, if it ever gets one.
		return prime != nil && prime.Spec.VolumeName != claim.Spec.VolumeName
	}
}

// temporaries returns the pod and the prime claim of a claim from the cache; nil for what does not exist.
func (r *releaser) temporaries(ctx context.Context, uid types.UID) (*corev1.Pod, *corev1.PersistentVolumeClaim, error) {
	var pod *corev1.Pod
	var prime *corev1.PersistentVolumeClaim
	var p corev1.Pod
	switch err := r.client.Get(ctx, types.NamespacedName{Namespace: r.namespace, Name: podName(uid)}, &p); {
	case err == nil:
		pod = &p
	case !apierrors.IsNotFound(err):
		return nil, nil, fmt.Errorf("get populator pod %s: %w", podName(uid), err)
	}
	var c corev1.PersistentVolumeClaim
	switch err := r.client.Get(ctx, types.NamespacedName{Namespace: r.namespace, Name: primeName(uid)}, &c); {
	case err == nil:
		prime = &c
	case !apierrors.IsNotFound(err):
		return nil, nil, fmt.Errorf("get prime claim %s: %w", primeName(uid), err)
	}
	return pod, prime, nil
}

// claim returns the claim with this UID, or nil if there is none any more. That it is gone is not believed of the cache
// alone, because what follows cannot be undone.
func (r *releaser) claim(ctx context.Context, uid types.UID, pod *corev1.Pod, prime *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	claim, err := claimByUID(ctx, r.client, uid)
	if claim != nil || err != nil {
		return claim, err
	}
	var marks []map[string]string
	if pod != nil {
		marks = append(marks, pod.Annotations)
	}
	if prime != nil {
		marks = append(marks, prime.Annotations)
	}
	for _, annotations := range marks {
		name, ok := claimOf(annotations)
		if !ok {
			continue
		}
		var live corev1.PersistentVolumeClaim
		if err := r.live.Get(ctx, name, &live); client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("get claim %s: %w", name, err)
		}
		if live.UID == uid {
			return &live, nil
		}
	}
	return nil, nil
}

// remove deletes the pod and then, when that is gone, the prime claim. It reports whether both are gone.
func (r *releaser) remove(ctx context.Context, uid types.UID, pod *corev1.Pod, prime *corev1.PersistentVolumeClaim) (bool, error) {
	var next client.Object
	switch {
	case pod != nil:
		next = pod
	case prime != nil:
		next = prime
	default:
		r.slots.release(podName(uid))
		r.starts.forget(uid)
		r.events.forget(uid)
		r.refused.remove(uid)
		return true, nil
	}
	if next.GetDeletionTimestamp() != nil {
		return false, nil
	}
	log.FromContext(ctx).Info("removing a temporary object of a claim that is released", "object", next.GetName())
	return false, r.deletes.exactly(ctx, next)
}

// removeFinalizer lets the claim go. A claim that changed in between is looked at again.
func (r *releaser) removeFinalizer(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if !hasFinalizer(claim) {
		return nil
	}
	return dropFinalizer(ctx, r.client, claim, v1alpha1.FinalizerClaim)
}

// dropFinalizer takes a finalizer off an object, if that is still there. It insists on the version that was read, since a merge patch
// replaces the whole list of finalizers.
func dropFinalizer(ctx context.Context, c client.Client, o client.Object, finalizer string) error {
	err := amend(ctx, c, o, func() {
		// The list may be a cache's.
		o.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer }))
	})
	if err != nil {
		return fmt.Errorf("take the finalizer off %T %s: %w", o, client.ObjectKeyFromObject(o), err)
	}
	return nil
}

// annotate sets an annotation of an object, or takes it off if value is "". It insists on the version that was read, because another
// object of that name may have come since, which it would not be true of.
func annotate(ctx context.Context, c client.Client, o client.Object, key, value string) error {
	return amend(ctx, c, o, func() {
		// The map may be a cache's.
		annotations := maps.Clone(o.GetAnnotations())
		if value == "" {
			delete(annotations, key)
		} else {
			if annotations == nil {
				annotations = map[string]string{}
			}
			annotations[key] = value
		}
		o.SetAnnotations(annotations)
	})
}

// amend writes to an object what change does to it, if that is still what was read. An object that is gone is no error.
func amend(ctx context.Context, c client.Client, o client.Object, change func()) error {
	before := o.DeepCopyObject().(client.Object)
	change()
	return client.IgnoreNotFound(c.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})))
}
