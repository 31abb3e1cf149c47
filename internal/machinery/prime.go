package machinery

import (
	"context"
	"fmt"
	"maps"

	populator "github.com/kubernetes-csi/lib-volume-populator/v3/populator-machinery"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// primeMutator returns the function that marks a prime claim as ours before the library creates it. The library does not
// tell whose it is, but names it after the claim's UID.
func primeMutator(cache client.Reader) populator.MutatorConfig {
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
			return markPrime(p.PvcPrime, claim), nil
		},
	}
}

// markPrime adds labels and annotations to prime. Everything else stays as the library copied it from the claim.
func markPrime(prime, claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	prime = prime.DeepCopy()
	if prime.Labels == nil {
		prime.Labels = map[string]string{}
	}
	maps.Copy(prime.Labels, ownLabels(claim.UID))
	if prime.Annotations == nil {
		prime.Annotations = map[string]string{}
	}
	prime.Annotations[v1alpha1.AnnotationClaimNamespace] = claim.Namespace
	prime.Annotations[v1alpha1.AnnotationClaimName] = claim.Name
	if source, ok := sourceOf(claim); ok {
		prime.Annotations[v1alpha1.AnnotationChangedBlockRange] = source.String()
	}
	return prime
}
