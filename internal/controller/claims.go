package controller

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// waiting reports whether a claim wants to be populated.
func waiting(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp.IsZero()
}

// started reports whether the populator library works on a claim: it has made temporary objects for it, or is about to, or
// has not cleaned them up yet.
func started(claim *corev1.PersistentVolumeClaim) bool {
	return slices.Contains(claim.Finalizers, v1alpha1.FinalizerClaim)
}

// astray reports whether a claim has a volume that was not filled for it: the machinery says so on the claim, or is about to.
func (o *observation) astray(claim *corev1.PersistentVolumeClaim) bool {
	return v1alpha1.HasOtherVolume(claim, claim.Spec.VolumeName) || o.taken[claim.UID]
}

func bound(claim *corev1.PersistentVolumeClaim) bool { return claim.Status.Phase == corev1.ClaimBound }

// mustHold reports whether the ChangedBlockRange must not go away now. While nobody deletes it, every claim that waits or
// is worked on holds it, so that the finalizer is there before anything is started. While it is being deleted, those hold
// it that are on their way to an end: the library cannot bring a claim to its end without its data source. A claim that
// will get nowhere does not hold it, or deleting it would never succeed; the machinery cleans up after such a claim when
// the claim is deleted.
func mustHold(seen *observation, found resolution, tries []attempt) bool {
	if slices.ContainsFunc(tries, func(a attempt) bool { return !a.recorded }) {
		return true
	}
	deleting := !seen.cbr.DeletionTimestamp.IsZero()
	return slices.ContainsFunc(seen.claims, func(claim corev1.PersistentVolumeClaim) bool {
		if deleting {
			return started(&claim) && !stuck(&claim, seen.classless[claim.UID], found, tries)
		}
		return started(&claim) || waiting(&claim)
	})
}

// stuck reports whether a claim that nothing runs for can only go on after somebody changes something. classless says that its
// StorageClass does not exist; tries are all recorded.
func stuck(claim *corev1.PersistentVolumeClaim, classless bool, found resolution, tries []attempt) bool {
	if !waiting(claim) {
		return false
	}
	ofClaim := func(a *attempt) bool { return a.pod.Labels[v1alpha1.LabelClaimUID] == string(claim.UID) }
	if a := last(tries, ofClaim); a != nil {
		return a.terminal() || (!a.succeeded() && (classless || !found.ok()))
	}
	return classless || !found.ok()
}

// shownClaim names a claim for readers of the ChangedBlockRange: with its namespace if that is another one.
func shownClaim(cbr *v1alpha1.ChangedBlockRange, claim *corev1.PersistentVolumeClaim) string {
	return reference.Shown(cbr.Namespace, client.ObjectKeyFromObject(claim))
}

// claimOf returns the name of the claim that a pod populates, by its annotations.
func claimOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{
		Namespace: pod.Annotations[v1alpha1.AnnotationClaimNamespace], Name: pod.Annotations[v1alpha1.AnnotationClaimName],
	}
}

// countPopulated counts the claims that have the list: those that are bound, and those that will be in a moment, because their
// volume is filled. So a result and the claim that it is for are told by one write. Kubernetes may have bound a claim to another volume.
func countPopulated(seen *observation, tries []attempt) int32 {
	filled := map[types.UID]bool{}
	for i := range tries {
		if tries[i].succeeded() {
			filled[claimUIDOf(tries[i].pod)] = true
		}
	}
	var n int32
	for i := range seen.claims {
		if claim := &seen.claims[i]; !seen.astray(claim) && (bound(claim) || filled[claim.UID]) {
			n++
		}
	}
	return n
}

// firstClaim returns the oldest claim that satisfies is, so that messages name the same one every time; nil if there is none.
func firstClaim(claims []corev1.PersistentVolumeClaim, is func(*corev1.PersistentVolumeClaim) bool) *corev1.PersistentVolumeClaim {
	var first *corev1.PersistentVolumeClaim
	for i := range claims {
		claim := &claims[i]
		if is(claim) && (first == nil || older(claim, first)) {
			first = claim
		}
	}
	return first
}

func older(a, b *corev1.PersistentVolumeClaim) bool {
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace)) < 0
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}
