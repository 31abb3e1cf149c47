package machinery

import (
	"context"
	"fmt"
	"maps"

	populator "github.com/kubernetes-csi/lib-volume-populator/v3/populator-machinery"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// primeMutator returns the function that marks a prime claim as ours before the library creates it. The library does not
// tell whose it is, but names it after the claim's UID.
func primeMutator(cfg *Config, cache client.Reader, settling *settling) populator.MutatorConfig {
	return populator.MutatorConfig{
		PvcPrimeMutator: func(p populator.PvcPrimeMutatorParams) (*corev1.PersistentVolumeClaim, error) {
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			defer cancel()
			claim, err := claimByUID(ctx, cache, claimUIDFromName(p.PvcPrime.Name))
			if err != nil {
				return nil, fmt.Errorf("mark prime claim %s: %w", p.PvcPrime.Name, err)
			}
			if claim == nil {
				return nil, fmt.Errorf("mark prime claim %s: no claim has this UID", p.PvcPrime.Name)
			}
			// The library takes a class that is gone for one that exists; a volume of another kind must not come of it.
			if gate := (&gate{cache: cache, namespace: cfg.PopulatorNamespace}); !gate.classExists(ctx, claim) {
				return nil, fmt.Errorf("mark prime claim %s: StorageClass %s does not exist", p.PvcPrime.Name, *claim.Spec.StorageClassName)
			}
			// The library adds its finalizer to the claim right after it has made the prime claim.
			if !hasFinalizer(claim) {
				settling.begin(claim)
			}
			return markPrime(cfg, p.PvcPrime, claim), nil
		},
	}
}

// markPrime adds labels and annotations to prime. The node that the scheduler chose is noted once more, because the provisioner drops
// its annotation to ask for another one. The VolumeAttributesClass is the one field of the claim that the library does not copy although
// it matters: a claim binds only to a volume of its class. Everything else stays as the library copied it.
func markPrime(cfg *Config, prime, claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	prime = prime.DeepCopy()
	if class := claim.Spec.VolumeAttributesClassName; class != nil {
		prime.Spec.VolumeAttributesClassName = ptr.To(*class)
	}
	if prime.Labels == nil {
		prime.Labels = map[string]string{}
	}
	// The administrator's come first, so that they cannot replace ours.
	maps.Copy(prime.Labels, cfg.PrimeLabels)
	maps.Copy(prime.Labels, ownLabels(claim.UID))
	if prime.Annotations == nil {
		prime.Annotations = map[string]string{}
	}
	library := maps.Clone(prime.Annotations)
	maps.Copy(prime.Annotations, cfg.PrimeAnnotations)
	maps.Copy(prime.Annotations, library)
	if node := prime.Annotations[annotationSelectedNode]; node != "" {
		prime.Annotations[annotationNode] = node
	}
	prime.Annotations[v1alpha1.AnnotationClaimNamespace] = claim.Namespace
	prime.Annotations[v1alpha1.AnnotationClaimName] = claim.Name
	if source, ok := reference.Of(claim); ok {
		prime.Annotations[v1alpha1.AnnotationChangedBlockRange] = source.String()
	}
	return prime
}
