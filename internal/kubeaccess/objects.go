package kubeaccess

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Object is an object of the API.
type Object = client.Object

// ReadRange reads a ChangedBlockRange of the namespace.
func (a *Access) ReadRange(ctx context.Context, name string) (*v1alpha1.ChangedBlockRange, error) {
	var cbr v1alpha1.ChangedBlockRange
	key := client.ObjectKey{Namespace: a.Namespace, Name: name}
	if err := a.Get(ctx, key, &cbr); err != nil {
		return nil, Explain(fmt.Sprintf("read ChangedBlockRange %s", key), err)
	}
	return &cbr, nil
}

// Ranges lists the ChangedBlockRanges that the selectors choose, nil choosing all; of all namespaces if namespace is empty.
func (a *Access) Ranges(ctx context.Context, namespace string, label labels.Selector, field fields.Selector) ([]v1alpha1.ChangedBlockRange, error) {
	var ranges v1alpha1.ChangedBlockRangeList
	if err := a.List(ctx, &ranges, &client.ListOptions{Namespace: namespace, LabelSelector: label, FieldSelector: field}); err != nil {
		place := "in all namespaces"
		if namespace != "" {
			place = "in namespace " + namespace
		}
		return nil, Explain("list ChangedBlockRanges "+place, err)
	}
	return ranges.Items, nil
}

// ErrExists is the error that Make wraps when there is an object of that name already.
var ErrExists = errors.New("it exists already")

// Make creates o, which takes the API server's answer, or has it only checked.
func (a *Access) Make(ctx context.Context, o Object, checkOnly bool) error {
	kind := v1alpha1.Kind
	if _, ok := o.(*corev1.PersistentVolumeClaim); ok {
		kind = "claim"
	}
	var options []client.CreateOption
	if checkOnly {
		options = append(options, client.DryRunAll)
	}
	err := a.Create(ctx, o, options...)
	doing := fmt.Sprintf("create %s %s/%s", kind, o.GetNamespace(), o.GetName())
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%s: %w", doing, ErrExists)
	}
	return Explain(doing, err)
}

// WaitsForConsumer reports whether the storage class of that name provisions only once a pod uses the claim. A class that may
// not be read is taken for one that does not.
func (a *Access) WaitsForConsumer(ctx context.Context, name string) bool {
	var class storagev1.StorageClass
	if a.Get(ctx, client.ObjectKey{Name: name}, &class) != nil {
		return false
	}
	return ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) == storagev1.VolumeBindingWaitForFirstConsumer
}

// ClaimsOf returns the claims in the namespace that refer to cbr.
func (a *Access) ClaimsOf(ctx context.Context, cbr *v1alpha1.ChangedBlockRange) ([]corev1.PersistentVolumeClaim, error) {
	var all corev1.PersistentVolumeClaimList
	if err := a.List(ctx, &all, client.InNamespace(cbr.Namespace)); err != nil {
		return nil, Explain("list claims in namespace "+cbr.Namespace, err)
	}
	return slices.DeleteFunc(all.Items, func(c corev1.PersistentVolumeClaim) bool {
		ref := c.Spec.DataSourceRef
		return ref == nil || ref.APIGroup == nil || *ref.APIGroup != v1alpha1.GroupName || ref.Kind != v1alpha1.Kind || ref.Name != cbr.Name ||
			(ref.Namespace != nil && *ref.Namespace != cbr.Namespace)
	}), nil
}

// EventsOf returns the events about cbr and its claims, the oldest first.
func (a *Access) EventsOf(ctx context.Context, cbr *v1alpha1.ChangedBlockRange, claims []corev1.PersistentVolumeClaim) ([]corev1.Event, error) {
	about := []client.Object{cbr}
	for i := range claims {
		about = append(about, &claims[i])
	}
	var events []corev1.Event
	for _, o := range about {
		var some corev1.EventList
		selector := client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("involvedObject.uid", string(o.GetUID()))}
		if err := a.List(ctx, &some, client.InNamespace(cbr.Namespace), selector); err != nil {
			return nil, Explain("list events in namespace "+cbr.Namespace, err)
		}
		events = append(events, some.Items...)
	}
	slices.SortStableFunc(events, func(x, y corev1.Event) int { return LastSeen(&x).Compare(LastSeen(&y).Time) })
	return events, nil
}

// LastSeen is when an event happened last; which field says so depends on the API that it was written with.
func LastSeen(e *corev1.Event) metav1.Time {
	switch {
	case e.Series != nil:
		return metav1.NewTime(e.Series.LastObservedTime.Time)
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp
	case !e.EventTime.IsZero():
		return metav1.NewTime(e.EventTime.Time)
	}
	return e.CreationTimestamp
}

// Plain returns o as it is printed: with its kind, which typed clients leave out, and without the fields that only the API
// server needs.
func (a *Access) Plain(o Object) (map[string]any, error) {
	gvk, err := apiutil.GVKForObject(o, a.Scheme())
	if err != nil {
		return nil, fmt.Errorf("print %T %s: %w", o, o.GetName(), err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("print %s %s: %w", gvk.Kind, o.GetName(), err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(gvk)
	u.SetManagedFields(nil)
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	if created := o.GetCreationTimestamp(); !created.IsZero() {
		u.SetCreationTimestamp(created)
	}
	if status, ok := content["status"].(map[string]any); ok && o.GetUID() == "" && len(status) <= 1 {
		// Of an object that was never sent anywhere.
		delete(content, "status")
	}
	return content, nil
}
