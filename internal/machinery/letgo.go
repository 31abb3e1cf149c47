package machinery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// letGoEvery is the time between two looks at what is left.
const letGoEvery = 500 * time.Millisecond

// LetGo takes everything of this project off the claims and ChangedBlockRanges of a cluster, for an administrator who has removed the
// controller: populations that run are given up, nothing keeps a finalizer, and prime claims and populator pods go. It returns
// when they are gone, or with an error when ctx ends. Claims stay, filled or not, and so do ChangedBlockRanges: a controller
// that is installed later goes on with them. One that still runs would begin anew, so the caller holds the lease.
//
// c reads from the API server; it needs to list and patch claims and ChangedBlockRanges everywhere, and to list and delete pods
// and claims in the populator namespace.
func LetGo(ctx context.Context, c client.Client, populatorNamespace string) error {
	left := -1
	err := wait.PollUntilContextCancel(ctx, letGoEvery, true, func(ctx context.Context) (bool, error) {
		var err error
		left, err = letGoOnce(ctx, c, populatorNamespace)
		return left == 0, err
	})
	if err != nil && left > 0 && ctx.Err() != nil {
		return fmt.Errorf("%d claims, ChangedBlockRanges, prime claims and populator pods are not let go yet: %w", left, err)
	}
	return err
}

// letGoOnce does what can be done at once and returns the number of objects that it found something on.
func letGoOnce(ctx context.Context, c client.Client, populatorNamespace string) (left int, err error) {
	var ranges v1alpha1.ChangedBlockRangeList
	var claims, primes corev1.PersistentVolumeClaimList
	var pods corev1.PodList
	temporary := []client.ListOption{client.InNamespace(populatorNamespace), client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentPopulator}}
	rangesErr := c.List(ctx, &ranges)
	if meta.IsNoMatchError(rangesErr) {
		// Their definition was deleted, and they with it.
		rangesErr = nil
	}
	if err := errors.Join(rangesErr, c.List(ctx, &claims), c.List(ctx, &primes, temporary...), c.List(ctx, &pods, temporary...)); err != nil {
		return -1, fmt.Errorf("look for what is to be let go: %w", err)
	}
	var errs []error
	found := func(what client.Object, do func() error) {
		left++
		log.FromContext(ctx).Info("letting go", "type", fmt.Sprintf("%T", what), "object", client.ObjectKeyFromObject(what))
		// An object that changed meanwhile is looked at again.
		if err := do(); !apierrors.IsConflict(err) {
			errs = append(errs, err)
		}
	}
	for i := range ranges.Items {
		if held := &ranges.Items[i]; slices.Contains(held.Finalizers, v1alpha1.FinalizerPopulating) {
			found(held, func() error { return dropFinalizer(ctx, c, held, v1alpha1.FinalizerPopulating) })
		}
	}
	for i := range claims.Items {
		if held := &claims.Items[i]; hasFinalizer(held) {
			found(held, func() error { return dropFinalizer(ctx, c, held, v1alpha1.FinalizerClaim) })
		}
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; temporaryOf(pod) != "" {
			found(pod, func() error { return dropObject(ctx, c, pod) })
		}
	}
	for i := range primes.Items {
		if prime := &primes.Items[i]; temporaryOf(prime) != "" {
			found(prime, func() error { return dropObject(ctx, c, prime) })
		}
	}
	return left, errors.Join(errs...)
}

// dropObject deletes an object that is not being deleted yet.
func dropObject(ctx context.Context, c client.Client, o client.Object) error {
	if o.GetDeletionTimestamp() != nil {
		return nil
	}
	_, err := deleteExactly(ctx, c, o)
	return err
}
