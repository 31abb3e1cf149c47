package kubeaccess

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// FollowRange watches a ChangedBlockRange: see follow.
func (a *Access) FollowRange(ctx context.Context, cbr *v1alpha1.ChangedBlockRange, seen func(*v1alpha1.ChangedBlockRange), gone func()) error {
	return follow(ctx, a, cbr.DeepCopy(), func() client.ObjectList { return &v1alpha1.ChangedBlockRangeList{} }, seen, gone)
}

// FollowClaim watches a claim: see follow.
func (a *Access) FollowClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, seen func(*corev1.PersistentVolumeClaim), gone func()) error {
	return follow(ctx, a, claim.DeepCopy(), func() client.ObjectList { return &corev1.PersistentVolumeClaimList{} }, seen, gone)
}

// follow watches one object and calls seen with every state of it, and gone when it is deleted. It returns
// when ctx has ended, and earlier with an error only if the object may not be watched. Broken watches are taken up again.
// T's list kind is newList's.
func follow[T client.Object](ctx context.Context, a *Access, object T, newList func() client.ObjectList, seen func(T), gone func()) error {
	one := fields.OneTermEqualSelector("metadata.name", object.GetName())
	options := func(raw metav1.ListOptions) *client.ListOptions {
		return &client.ListOptions{Namespace: object.GetNamespace(), FieldSelector: one, Raw: &raw}
	}
	informer := cache.NewSharedInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, raw metav1.ListOptions) (runtime.Object, error) {
			list := newList()
			err := a.List(ctx, list, options(raw))
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, raw metav1.ListOptions) (watch.Interface, error) {
			return a.Watch(ctx, newList(), options(raw))
		},
	}, object, 0)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	refuse := func(_ context.Context, _ *cache.Reflector, err error) {
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || meta.IsNoMatchError(err) {
			cancel(&refusedWatch{Explain(fmt.Sprintf("watch %s/%s", object.GetNamespace(), object.GetName()), err)})
		}
	}
	if err := informer.SetWatchErrorHandlerWithContext(refuse); err != nil {
		return fmt.Errorf("watch %s/%s: %w", object.GetNamespace(), object.GetName(), err)
	}
	tell := func(o any) {
		if t, ok := o.(T); ok {
			seen(t)
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: func(any) { gone() },
	}); err != nil {
		return fmt.Errorf("watch %s/%s: %w", object.GetNamespace(), object.GetName(), err)
	}
	informer.RunWithContext(ctx)
	if refused, ok := context.Cause(ctx).(*refusedWatch); ok { //nolint:errorlint // the cause is set here and wrapped by nobody
		return refused.err
	}
	return nil
}

// refusedWatch is the cause of the end of a watch that is not allowed.
type refusedWatch struct{ err error }

func (r *refusedWatch) Error() string { return r.err.Error() }
