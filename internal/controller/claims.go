package controller

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
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

func bound(claim *corev1.PersistentVolumeClaim) bool { return claim.Status.Phase == corev1.ClaimBound }

// mustHold reports whether the ChangedBlockRange must not go away now. A claim that merely waits holds one that nobody
// deletes, so that the finalizer is there before anything is started; it does not hold one that is being deleted, because
// nobody would come to release it. A claim that the library works on holds it in any case: without its data source
// the library would never clean up, and the claim could not be deleted any more.
func mustHold(seen *observation, tries []attempt) bool {
	deleting := !seen.cbr.DeletionTimestamp.IsZero()
	for i := range seen.claims {
		claim := &seen.claims[i]
		if started(claim) || (waiting(claim) && !deleting) {
			return true
		}
	}
	// A finished pod that is kept for its logs holds nothing.
	return slices.ContainsFunc(tries, func(a attempt) bool { return !a.recorded })
}

func countBound(claims []corev1.PersistentVolumeClaim) int32 {
	var n int32
	for i := range claims {
		if bound(&claims[i]) {
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
		return a.Name < b.Name
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}
