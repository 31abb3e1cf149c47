package machinery

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// CacheOptions returns the options of the manager's cache that this package needs: our pods, the ConfigMaps, quotas
// and limit ranges of the populator namespace and that namespace only, and of no object the managed fields, which no one reads.
func CacheOptions(populatorNamespace string) cache.Options {
	own := map[string]cache.Config{populatorNamespace: {}}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {
				Namespaces: own,
				Label:      labels.SelectorFromSet(labels.Set{v1alpha1.LabelComponent: v1alpha1.ComponentPopulator}),
			},
			&corev1.ConfigMap{}:     {Namespaces: own},
			&corev1.ResourceQuota{}: {Namespaces: own},
			&corev1.LimitRange{}:    {Namespaces: own},
			&corev1.Namespace{}:     {Field: fields.OneTermEqualSelector("metadata.name", populatorNamespace)},
		},
	}
}
