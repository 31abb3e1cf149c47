package machinery

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Names of temporary objects. Both derive from the claim's UID, so that the API server itself keeps a claim from having
// two of them; the prime claim's is the library's.
const (
	primePrefix = v1alpha1.PrimeClaimPrefix
	podPrefix   = "populate-"
)

// Annotations of a populator pod that only this package reads.
const (
	// annotationAttempt counts the pods of a claim since its inputs last changed, from 1; it outlives a restart of the
	// controller.
	annotationAttempt = v1alpha1.GroupName + "/attempt"
	// annotationPrimeUID is the UID of the prime claim that the pod writes to: its result says nothing about another one.
	annotationPrimeUID = v1alpha1.GroupName + "/prime-uid"
	// annotationSetting is a digest of how the list is made: where the service is, which image. When it changes, a
	// failure that was final is worth another attempt.
	annotationSetting = v1alpha1.GroupName + "/setting"
)

// annotationNode, on a prime claim, is the node that it was made for, if its StorageClass waits for the first consumer. Only this
// package reads it.
const annotationNode = v1alpha1.GroupName + "/node"

func podName(claim types.UID) string   { return podPrefix + string(claim) }
func primeName(claim types.UID) string { return primePrefix + string(claim) }

// claimUIDFromName returns the UID in the name of a prime claim or populator pod, or "".
func claimUIDFromName(name string) types.UID {
	for _, prefix := range []string{primePrefix, podPrefix} {
		if uid, ok := strings.CutPrefix(name, prefix); ok {
			return types.UID(uid)
		}
	}
	return ""
}

// temporaryOf returns the UID of the claim that an object of the populator namespace serves to fill; "" if it is not ours. The namespace
// may be shared and the label of the component is anybody's, so name and label must tell of the same claim.
func temporaryOf(o client.Object) types.UID {
	uid := claimUIDFromName(o.GetName())
	if o.GetLabels()[v1alpha1.LabelClaimUID] != string(uid) {
		return ""
	}
	return uid
}

// claimKey is the library's key of a claim.
func claimKey(claim types.NamespacedName) string {
	return "pvc/" + claim.Namespace + "/" + claim.Name
}

// parseClaimKey is the inverse of claimKey.
func parseClaimKey(key string) (types.NamespacedName, bool) {
	parts := strings.Split(key, "/")
	if len(parts) != 3 || parts[0] != "pvc" || parts[1] == "" || parts[2] == "" {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: parts[1], Name: parts[2]}, true
}

func nameOf(claim *corev1.PersistentVolumeClaim) types.NamespacedName {
	return types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}
}

// claimOf returns the claim that a prime claim or populator pod belongs to, by its annotations.
func claimOf(annotations map[string]string) (types.NamespacedName, bool) {
	name := types.NamespacedName{
		Namespace: annotations[v1alpha1.AnnotationClaimNamespace],
		Name:      annotations[v1alpha1.AnnotationClaimName],
	}
	return name, name.Namespace != "" && name.Name != ""
}

// hasFinalizer reports whether the library works on claim, or left temporary objects of it.
func hasFinalizer(claim *corev1.PersistentVolumeClaim) bool {
	for _, f := range claim.Finalizers {
		if f == v1alpha1.FinalizerClaim {
			return true
		}
	}
	return false
}

// ownLabels are the labels of every temporary object.
func ownLabels(claim types.UID) map[string]string {
	return map[string]string{
		v1alpha1.LabelName:          v1alpha1.NameValue,
		v1alpha1.LabelComponent:     v1alpha1.ComponentPopulator,
		v1alpha1.LabelVeleroExclude: "true",
		v1alpha1.LabelClaimUID:      string(claim),
	}
}

// digest returns a short fingerprint of the JSON form of v, for comparing two states of the same kind.
func digest(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		// Only structs of strings, numbers and byte slices are digested.
		panic(fmt.Sprintf("digest %T: %v", v, err))
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
