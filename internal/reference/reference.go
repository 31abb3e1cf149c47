// Package reference is about how a claim refers to a ChangedBlockRange: to which one, and whether it may.
//
// A claim may always be filled from a ChangedBlockRange of its own namespace. From one of another namespace it may only if
// an administrator has switched that on and somebody who may write ReferenceGrants in the ChangedBlockRange's namespace has
// permitted it there. The populator's service account may read the metadata of every snapshot, so this check is what keeps
// a namespace from reading another one's: the reconciler and the machinery both ask it, and neither does anything about an
// object of another namespace without its consent.
package reference

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Of returns the ChangedBlockRange that claim refers to, be it permitted or not; ok is false if it refers to none.
func Of(claim *corev1.PersistentVolumeClaim) (source types.NamespacedName, ok bool) {
	ref := claim.Spec.DataSourceRef
	if ref == nil || ref.APIGroup == nil || *ref.APIGroup != v1alpha1.GroupName || ref.Kind != v1alpha1.Kind || ref.Name == "" {
		return types.NamespacedName{}, false
	}
	source = types.NamespacedName{Namespace: claim.Namespace, Name: ref.Name}
	if ref.Namespace != nil && *ref.Namespace != "" {
		source.Namespace = *ref.Namespace
	}
	return source, true
}

// Foreign reports whether claim refers to a ChangedBlockRange of another namespace.
func Foreign(claim *corev1.PersistentVolumeClaim) bool {
	source, ok := Of(claim)
	return ok && source.Namespace != claim.Namespace
}

// Shown returns the name of what an object in one namespace says about an object for people to read: its bare name within
// the namespace, namespace/name beyond it.
func Shown(from string, object types.NamespacedName) string {
	if object.Namespace == from {
		return object.Name
	}
	return object.String()
}

// The reasons of refusals, as claims hear of them in events.
const (
	// ReasonDisabled: references to other namespaces are switched off.
	ReasonDisabled = "CrossNamespaceDisabled"
	// ReasonUnavailable: the cluster has no ReferenceGrants, or the controller cannot read them.
	ReasonUnavailable = "ReferenceGrantsUnavailable"
	// ReasonNotGranted: no ReferenceGrant permits the reference.
	ReasonNotGranted = "ReferenceNotGranted"
)

// Refusal says why a claim may not be filled from the ChangedBlockRange that it refers to, and what would change that.
type Refusal struct{ Reason, Message string }

func refuse(reason string, source types.NamespacedName, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf("The claim refers to a ChangedBlockRange of namespace %q. ", source.Namespace) + fmt.Sprintf(format, args...)}
}

// notGranted says which ReferenceGrant is missing. Whether the ChangedBlockRange exists is not the claim's to know.
func notGranted(claim *corev1.PersistentVolumeClaim, source types.NamespacedName) *Refusal {
	return refuse(ReasonNotGranted, source,
		"No ReferenceGrant there permits it. It takes one in namespace %q with spec.from {group: \"\", kind: PersistentVolumeClaim, namespace: %s} "+
			"and spec.to {group: %s, kind: %s, name: %s}; without the name it permits all. The claim then continues by itself.",
		source.Namespace, claim.Namespace, v1alpha1.GroupName, v1alpha1.Kind, source.Name)
}

// permits reports whether grant, which is in the namespace of source, lets claims of namespace from refer to source.
func permits(grant *gatewayv1beta1.ReferenceGrant, from string, source types.NamespacedName) bool {
	if grant.Namespace != source.Namespace {
		return false
	}
	allowed := false
	for _, f := range grant.Spec.From {
		allowed = allowed || (f.Group == corev1.GroupName && f.Kind == "PersistentVolumeClaim" && string(f.Namespace) == from)
	}
	if !allowed {
		return false
	}
	for _, to := range grant.Spec.To {
		if to.Group == v1alpha1.GroupName && to.Kind == v1alpha1.Kind && (to.Name == nil || *to.Name == "" || string(*to.Name) == source.Name) {
			return true
		}
	}
	return false
}
