package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Names on a populator pod. The reconciler of ChangedBlockRanges and the machinery that runs pods know each other
// through these alone.
const (
	// LabelClaimUID holds the UID of the claim that the pod populates.
	LabelClaimUID = GroupName + "/claim-uid"
	// LabelChangedBlockRangeUID holds the UID of the ChangedBlockRange that the pod reads from.
	LabelChangedBlockRangeUID = GroupName + "/changedblockrange-uid"

	// LabelName and LabelComponent are the recommended Kubernetes labels, with the values NameValue and
	// ComponentPopulator.
	LabelName      = "app.kubernetes.io/name"
	LabelComponent = "app.kubernetes.io/component"

	// LabelVeleroExclude, with the value "true", keeps temporary objects out of Velero's backups.
	LabelVeleroExclude = "velero.io/exclude-from-backup"

	// AnnotationClaimNamespace and AnnotationClaimName name the claim that the pod populates. Names may be longer than
	// the 63 characters of a label's value, so they are annotations.
	AnnotationClaimNamespace = GroupName + "/claim-namespace"
	AnnotationClaimName      = GroupName + "/claim-name"
	// AnnotationChangedBlockRange names the ChangedBlockRange that the pod reads from, as namespace/name.
	AnnotationChangedBlockRange = GroupName + "/changedblockrange"
	// AnnotationDriver names the CSI driver that the pod asks; driver names may be longer than a label's value.
	AnnotationDriver = GroupName + "/driver"

	// AnnotationSource is the pod's ListFingerprint: a pod with another one than the ChangedBlockRange has by now makes the wrong
	// list, and its result is not about the snapshots in the status.
	AnnotationSource = GroupName + "/source"

	// AnnotationResultRecorded is set by the reconciler on a finished pod: to ResultRecorded once the pod's result is in the
	// ChangedBlockRange's status, unless the status itself says so of this pod (recordedPod), and to ResultOutdated once the status
	// names other snapshots than the pod has read. Until one of them is said, the pod must neither be deleted nor replaced, nor its
	// claim completed, because the pod is the only place where the result is.
	AnnotationResultRecorded = GroupName + "/result-recorded"

	// AnnotationFailure, on a prime claim, is how the last attempt to fill it failed (internal/outcome: Failure), once the
	// pod of that attempt is removed.
	AnnotationFailure = GroupName + "/failure"
)

// Names on a volume, and on the claim that has it.
const (
	// AnnotationPopulatedFor, on a volume, is the UID of the claim that it was filled for. A volume that came to its claim in
	// another way has none, or that of the claim that had it before.
	AnnotationPopulatedFor = GroupName + "/populated-for"

	// AnnotationOtherVolume, on a claim, names the claim's volume if that was not filled for it: one that was there already, to which
	// Kubernetes bound the claim, or one that was restored. See HasOtherVolume.
	AnnotationOtherVolume = GroupName + "/bound-to-other-volume"
)

// HasOtherVolume reports whether the volume of a claim is known not to have been filled for it. volume is the claim's
// spec.volumeName. The annotation counts only if it names that volume: who copies a claim, or restores it, copies its annotations.
func HasOtherVolume(claim metav1.Object, volume string) bool {
	return volume != "" && claim.GetAnnotations()[AnnotationOtherVolume] == volume
}

// Values of AnnotationResultRecorded. Pods and ChangedBlockRanges are watched apart, so that a pod's mark may be seen before the
// status that it follows from: what is outdated must not be taken for recorded then.
const (
	ResultRecorded = "true"
	ResultOutdated = "outdated"
)

// Values of the labels above.
const (
	NameValue          = "cbt-populator"
	ComponentPopulator = "populator"
)

// PrimeClaimPrefix and the UID of a claim are the name of its prime claim, the temporary claim whose volume it gets. The
// populator library chose it.
const PrimeClaimPrefix = "prime-"

// ContainerPopulate is the name of the populator pod's container; its termination message is the population's result.
const ContainerPopulate = "populate"

const (
	// FinalizerPopulating keeps a ChangedBlockRange while a claim is being populated from it: the populator library
	// leaves a claim in Terminating for good when its data source goes first.
	FinalizerPopulating = GroupName + "/populating"

	// FinalizerClaim is the populator library's finalizer on a claim that it works on. The library derives it from its
	// prefix, which is GroupName.
	FinalizerClaim = GroupName + "/populate-target-protection"
)
