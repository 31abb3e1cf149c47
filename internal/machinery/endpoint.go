package machinery

import (
	"context"
	"fmt"
	"maps"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Keys of an endpoint ConfigMap, which are file names in the populator's --endpoint-dir.
const (
	endpointAddress = "address"
	endpointCA      = "ca.crt"

	componentEndpoint = "endpoint"
	endpointPrefix    = "endpoint-"
	maxNameLength     = 253
)

// endpointName returns the name of the ConfigMap of a driver's metadata service. Services are named after their drivers.
func endpointName(driver string) string {
	if name := endpointPrefix + driver; len(name) <= maxNameLength {
		return name
	}
	return endpointPrefix + digest(driver)
}

// endpointConfigMap builds the ConfigMap that tells populator pods where a metadata service is. It belongs to the service
// and goes with it.
func endpointConfigMap(namespace string, service *smsv1beta1.SnapshotMetadataService) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name:      endpointName(service.Name),
			Namespace: namespace,
			Labels: map[string]string{
				v1alpha1.LabelName:          v1alpha1.NameValue,
				v1alpha1.LabelComponent:     componentEndpoint,
				v1alpha1.LabelVeleroExclude: "true",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: smsv1beta1.SchemeGroupVersion.String(),
				Kind:       "SnapshotMetadataService",
				Name:       service.Name,
				UID:        service.UID,
			}},
		},
		Data: map[string]string{
			endpointAddress: service.Spec.Address,
			endpointCA:      string(service.Spec.CACert),
		},
	}
}

// ensureEndpoint makes the ConfigMap of a service what it should be. Two callers at once do no harm.
func ensureEndpoint(ctx context.Context, c client.Client, namespace string, service *smsv1beta1.SnapshotMetadataService) error {
	want := endpointConfigMap(namespace, service)
	key := client.ObjectKeyFromObject(want)
	var have corev1.ConfigMap
	err := c.Get(ctx, key, &have)
	if apierrors.IsNotFound(err) {
		err = c.Create(ctx, want)
		if apierrors.IsAlreadyExists(err) && !refusal(err) {
			// Another caller was quicker; the reconciler corrects it should it differ.
			return nil
		}
		if err != nil {
			return fmt.Errorf("create endpoint ConfigMap %s: %w", key, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("get endpoint ConfigMap %s: %w", key, err)
	}
	if maps.Equal(have.Data, want.Data) && len(have.BinaryData) == 0 &&
		equality.Semantic.DeepEqual(have.OwnerReferences, want.OwnerReferences) && maps.Equal(have.Labels, want.Labels) {
		return nil
	}
	have.Labels, have.OwnerReferences = want.Labels, want.OwnerReferences
	have.Data, have.BinaryData = want.Data, nil
	if err := c.Update(ctx, &have); err != nil {
		return fmt.Errorf("update endpoint ConfigMap %s: %w", key, err)
	}
	return nil
}

// endpointReconciler keeps the endpoint ConfigMaps current, so that a populator in mid-stream finds a rotated certificate or
// a moved service: the kubelet updates the mounted files within about a minute.
type endpointReconciler struct {
	client    client.Client
	namespace string
}

func (r *endpointReconciler) setup(mgr ctrl.Manager) error {
	toService := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		for _, owner := range o.GetOwnerReferences() {
			if owner.Kind == "SnapshotMetadataService" {
				return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: owner.Name}}}
			}
		}
		return nil
	})
	err := ctrl.NewControllerManagedBy(mgr).Named("endpoint").
		For(&smsv1beta1.SnapshotMetadataService{}).
		Watches(&corev1.ConfigMap{}, toService).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the endpoint controller: %w", err)
	}
	return nil
}

// Reconcile implements reconcile.Reconciler for SnapshotMetadataServices.
func (r *endpointReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var service smsv1beta1.SnapshotMetadataService
	if err := r.client.Get(ctx, req.NamespacedName, &service); err != nil {
		if apierrors.IsNotFound(err) {
			// Its ConfigMap goes with it, by the garbage collector.
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("get SnapshotMetadataService %s: %w", req.Name, err)
	}
	if service.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, ensureEndpoint(ctx, r.client, r.namespace, &service)
}
