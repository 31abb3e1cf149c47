package machinery

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// CacheOptions returns the options of the manager's cache that this package needs: our pods, the ConfigMaps, quotas
// and limit ranges of the populator namespace and that namespace only, of no object the managed fields, which no one reads, and
// of claims that do not concern this project no more than that they exist.
func CacheOptions(populatorNamespace string) cache.Options {
	own := map[string]cache.Config{populatorNamespace: {}}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {
				Namespaces: own,
				Label:      labels.SelectorFromSet(labels.Set{v1alpha1.LabelComponent: v1alpha1.ComponentPopulator}),
			},
			&corev1.PersistentVolumeClaim{}: {Transform: slimClaim(populatorNamespace)},

			&corev1.ConfigMap{}:     {Namespaces: own},
			&corev1.ResourceQuota{}: {Namespaces: own},
			&corev1.LimitRange{}:    {Namespaces: own},
			&corev1.Namespace{}:     {Field: fields.OneTermEqualSelector("metadata.name", populatorNamespace)},
		},
	}
}

// annotationApplied is where kubectl apply leaves a copy of the whole object.
const annotationApplied = "kubectl.kubernetes.io/last-applied-configuration"

// slimClaim returns the function that drops what no one reads of a claim before the cache keeps it. The library and the
// reconciler watch the claims of the whole cluster; of most of them it only matters that they are not ours. A claim never
// becomes ours later, because its dataSourceRef cannot be changed.
//
// A reference to the namespace "" is one to the claim's own, for the API server and for us. The library takes it for one to another
// namespace, of which it finds no ReferenceGrants, so it is not shown that there is anything.
func slimClaim(populatorNamespace string) toolscache.TransformFunc {
	return func(o any) (any, error) {
		claim, ok := o.(*corev1.PersistentVolumeClaim)
		if !ok {
			return o, nil
		}
		claim.ManagedFields = nil
		delete(claim.Annotations, annotationApplied)
		ref := claim.Spec.DataSourceRef
		if ref != nil && ref.Namespace != nil && *ref.Namespace == "" {
			ref.Namespace = nil
		}
		if claim.Namespace == populatorNamespace || hasFinalizer(claim) || (ref != nil && ref.APIGroup != nil && *ref.APIGroup == v1alpha1.GroupName) {
			return claim, nil
		}
		*claim = corev1.PersistentVolumeClaim{TypeMeta: claim.TypeMeta, ObjectMeta: metav1.ObjectMeta{
			Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			CreationTimestamp: claim.CreationTimestamp, DeletionTimestamp: claim.DeletionTimestamp,
		}}
		return claim, nil
	}
}
