package machinery

import (
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CacheOptions returns the options of the manager's cache that this package needs: pods and ConfigMaps of the populator
// namespace only, and nothing kept of any object that no one reads.
func CacheOptions(populatorNamespace string) cache.Options {
	own := cache.ByObject{Namespaces: map[string]cache.Config{populatorNamespace: {}}}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:       own,
			&corev1.ConfigMap{}: own,
		},
	}
}
