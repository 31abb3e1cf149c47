package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ListFormat is the encoding of the written list.
// +kubebuilder:validation:Enum=JSON;Binary
type ListFormat string

// The formats.
const (
	FormatJSON   ListFormat = "JSON"
	FormatBinary ListFormat = "Binary"
)

// DeltaFallback says what happens when the driver cannot tell which blocks changed.
// +kubebuilder:validation:Enum=Fail;UseAllocated
type DeltaFallback string

const (
	// FallbackFail fails the population with the reason DeltaUnavailable.
	FallbackFail DeltaFallback = "Fail"
	// FallbackUseAllocated lists the target snapshot's allocated blocks instead; mode Allocated in the status, in an event
	// and in the list says so.
	FallbackUseAllocated DeltaFallback = "UseAllocated"
)

// State is a one-word summary of the conditions.
// +kubebuilder:validation:Enum=Pending;Populating;Ready;Failed
type State string

const (
	// StatePending means that something is missing, or no claim refers to the ChangedBlockRange.
	StatePending State = "Pending"
	// StatePopulating means that a claim is being populated, or will be again after a failure.
	StatePopulating State = "Populating"
	// StateReady means that the last population succeeded (condition Ready is True).
	StateReady State = "Ready"
	// StateFailed means that the last population failed for a reason that another attempt would not change.
	StateFailed State = "Failed"
)

// ListMode says what a list lists.
// +kubebuilder:validation:Enum=Delta;Allocated
type ListMode string

const (
	// ModeDelta lists the blocks that differ between the base snapshot and the target snapshot.
	ModeDelta ListMode = "Delta"
	// ModeAllocated lists the blocks of the target snapshot that hold data.
	ModeAllocated ListMode = "Allocated"
)

// ChangedBlockRangeSpec names the snapshots to compare and says how the list is written. It cannot be changed after
// creation.
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the spec of a ChangedBlockRange cannot be changed: create another ChangedBlockRange with the values that you want"
// +kubebuilder:validation:XValidation:rule="!(has(self.fromVolumeSnapshotName) && has(self.fromSnapshotHandle))",message="fromVolumeSnapshotName and fromSnapshotHandle both name the base: set one of them, or neither to list the allocated blocks of the target"
// +kubebuilder:validation:XValidation:rule="!has(self.fromVolumeSnapshotName) || self.fromVolumeSnapshotName != self.toVolumeSnapshotName",message="fromVolumeSnapshotName and toVolumeSnapshotName are the same snapshot: name the older one in fromVolumeSnapshotName, or leave it out to list the allocated blocks of the target"
type ChangedBlockRangeSpec struct {
	// fromVolumeSnapshotName is the name of the base VolumeSnapshot, in the same namespace. Without it and without
	// fromSnapshotHandle, the list holds the allocated blocks of the target snapshot.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="fromVolumeSnapshotName must be the name of a VolumeSnapshot (lower case letters, digits, '-' and '.'): leave it out to list the allocated blocks of the target"
	FromVolumeSnapshotName string `json:"fromVolumeSnapshotName,omitempty"`

	// fromSnapshotHandle is the base as the CSI driver's snapshot handle or change ID, for a base whose VolumeSnapshot is
	// gone. The status field toSnapshotHandle of the ChangedBlockRange of the backup before is such a handle.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.size() > 0",message="fromSnapshotHandle must not be empty: leave it out to list the allocated blocks of the target"
	FromSnapshotHandle string `json:"fromSnapshotHandle,omitempty"`

	// toVolumeSnapshotName is the name of the target VolumeSnapshot, in the same namespace.
	// +required
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="toVolumeSnapshotName must be the name of a VolumeSnapshot: lower case letters, digits, '-' and '.'"
	ToVolumeSnapshotName string `json:"toVolumeSnapshotName"`

	// format is the encoding of the list: JSON (one extent per line) or Binary (compact, checked, splittable). A claim with
	// volumeMode Block needs Binary.
	// +optional
	// +kubebuilder:default=JSON
	Format ListFormat `json:"format,omitempty"`

	// maxSizeInBytes bounds the size of the written list. A larger list fails with the reason ListTooLarge; it is never
	// cut. Without it the claim's volume is the bound.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self > 0",message="maxSizeInBytes must be greater than 0: leave it out for no bound but the volume"
	MaxSizeInBytes *int64 `json:"maxSizeInBytes,omitempty"`

	// granularityBytes rounds extents outwards to multiples of it and merges what then touches. A power of two from 512 to
	// 1073741824 (1 GiB). Without it the extents are the driver's.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152, 4194304, 8388608, 16777216, 33554432, 67108864, 134217728, 268435456, 536870912, 1073741824]",message="granularityBytes must be a power of two from 512 to 1073741824, for example 65536 for 64 KiB"
	GranularityBytes *int64 `json:"granularityBytes,omitempty"`

	// mergeExtents merges extents that touch; drivers split them at message boundaries. The default is true for Binary and
	// false for JSON, which so mirrors what the driver sent.
	// +optional
	MergeExtents *bool `json:"mergeExtents,omitempty"`

	// whenDeltaUnavailable says what happens when the driver cannot tell which blocks changed: Fail, or UseAllocated to
	// list the target's allocated blocks instead. The status field mode says which list was written.
	// +optional
	// +kubebuilder:default=Fail
	WhenDeltaUnavailable DeltaFallback `json:"whenDeltaUnavailable,omitempty"`
}

// ChangedBlockRangeStatus says what was found and what the last successful population wrote. Sizes are bytes.
type ChangedBlockRangeStatus struct {
	// observedGeneration is the generation of the spec that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// state summarises the conditions: Pending, Populating, Ready or Failed.
	// +optional
	State State `json:"state,omitempty"`

	// message says in a sentence what the state means and what to do next.
	// +optional
	Message string `json:"message,omitempty"`

	// driver is the CSI driver of the snapshots.
	// +optional
	Driver string `json:"driver,omitempty"`

	// fromSnapshotHandle is the base's CSI handle or change ID; empty when the allocated blocks are listed.
	// +optional
	FromSnapshotHandle string `json:"fromSnapshotHandle,omitempty"`

	// toSnapshotHandle is the target's CSI handle, or its change ID for a driver that has one: the base of the next
	// increment.
	// +optional
	ToSnapshotHandle string `json:"toSnapshotHandle,omitempty"`

	// fromRestoreSizeBytes is the size of a volume restored from the base snapshot, when it is known.
	// +optional
	FromRestoreSizeBytes *int64 `json:"fromRestoreSizeBytes,omitempty"`

	// toRestoreSizeBytes is the size of a volume restored from the target snapshot, when it is known.
	// +optional
	ToRestoreSizeBytes *int64 `json:"toRestoreSizeBytes,omitempty"`

	// mode says what the list lists: Delta, or Allocated.
	// +optional
	Mode ListMode `json:"mode,omitempty"`

	// volumeCapacityBytes is the capacity that the driver reported.
	// +optional
	VolumeCapacityBytes *int64 `json:"volumeCapacityBytes,omitempty"`

	// blockMetadataType is the driver's: FIXED_LENGTH, VARIABLE_LENGTH, or UNKNOWN for an empty list.
	// +optional
	BlockMetadataType string `json:"blockMetadataType,omitempty"`

	// blockSize is the length of each of the driver's extents when blockMetadataType is FIXED_LENGTH, else 0.
	// +optional
	BlockSize *int64 `json:"blockSize,omitempty"`

	// entryCount is the number of extents in the list.
	// +optional
	EntryCount *int64 `json:"entryCount,omitempty"`

	// changedBytes is the sum of the extents' lengths.
	// +optional
	ChangedBytes *int64 `json:"changedBytes,omitempty"`

	// changed is changedBytes for people, such as "12 KiB".
	// +optional
	Changed string `json:"changed,omitempty"`

	// numBytesWritten is the size of the list.
	// +optional
	NumBytesWritten *int64 `json:"numBytesWritten,omitempty"`

	// listSize is numBytesWritten for people, such as "1.4 MiB".
	// +optional
	ListSize string `json:"listSize,omitempty"`

	// listDigest is "sha256:" and the hexadecimal digest of the list.
	// +optional
	ListDigest string `json:"listDigest,omitempty"`

	// progress says how far the claim is that is being populated, or the furthest of several; absent when none is.
	// +optional
	Progress *PopulationProgress `json:"progress,omitempty"`

	// recordedPod is a populator pod whose result is in this status. The pod was kept until then, and may be gone by now. Other pods
	// have an annotation for it.
	// +optional
	RecordedPod *RecordedPod `json:"recordedPod,omitempty"`

	// populatedClaims is the number of claims that refer to this ChangedBlockRange and have its list: those that are bound, or will
	// be in a moment, but not those to which Kubernetes gave a volume that was not filled for them. Those of other namespaces count
	// while a ReferenceGrant permits them to.
	// +optional
	PopulatedClaims int32 `json:"populatedClaims"`

	// conditions are SnapshotsResolved and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PopulationProgress says how far a running populator is. It is a few seconds old.
type PopulationProgress struct {
	// entryCount is the number of extents that the driver sent so far, before rounding and merging.
	EntryCount int64 `json:"entryCount"`

	// offsetBytes is the end of the last of them: the part of the volume that is listed.
	OffsetBytes int64 `json:"offsetBytes"`

	// percent is offsetBytes in relation to the volume's capacity, from 0 to 100, rounded down.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent int32 `json:"percent"`

	// done is percent for people, such as "42%".
	Done string `json:"done"`
}

// RecordedPod is a pod of the populator namespace.
type RecordedPod struct {
	// name of the pod.
	Name string `json:"name"`

	// uid of the pod: another one of that name has another result.
	UID types.UID `json:"uid"`
}

// ChangedBlockRange asks for the list of the blocks that changed between two snapshots of a volume, or of the blocks that
// one snapshot holds. A PersistentVolumeClaim whose dataSourceRef names it is filled with that list.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=cbr;cbt
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved, experimental-only"
// +kubebuilder:printcolumn:name="From",type=string,JSONPath=`.spec.fromVolumeSnapshotName`
// +kubebuilder:printcolumn:name="To",type=string,JSONPath=`.spec.toVolumeSnapshotName`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress.done`
// +kubebuilder:printcolumn:name="Entries",type=integer,JSONPath=`.status.entryCount`
// +kubebuilder:printcolumn:name="Changed",type=string,JSONPath=`.status.changed`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Driver",type=string,JSONPath=`.status.driver`,priority=1
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.status.mode`,priority=1
// +kubebuilder:printcolumn:name="Format",type=string,JSONPath=`.spec.format`,priority=1
// +kubebuilder:printcolumn:name="ListSize",type=string,JSONPath=`.status.listSize`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`,priority=1
type ChangedBlockRange struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ChangedBlockRangeSpec `json:"spec"`
	// +optional
	Status ChangedBlockRangeStatus `json:"status,omitempty"`
}

// ChangedBlockRangeList is a list of ChangedBlockRanges.
// +kubebuilder:object:root=true
type ChangedBlockRangeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ChangedBlockRange `json:"items"`
}

// Merge returns mergeExtents or its default for the format.
func (s *ChangedBlockRangeSpec) Merge() bool {
	if s.MergeExtents != nil {
		return *s.MergeExtents
	}
	return s.Format == FormatBinary
}

// MayPopulate reports whether a claim may be populated from c now: the reconciler has resolved the snapshots of this very
// spec, and c cannot go away while the claim is being populated. The reconciler adds the finalizer before it reports
// SnapshotsResolved while a claim waits, so both are checked.
func (c *ChangedBlockRange) MayPopulate() bool {
	resolved := meta.FindStatusCondition(c.Status.Conditions, ConditionSnapshotsResolved)
	if resolved == nil || resolved.Status != metav1.ConditionTrue || resolved.ObservedGeneration != c.Generation {
		return false
	}
	for _, f := range c.Finalizers {
		if f == FinalizerPopulating {
			return true
		}
	}
	return false
}

// ListFingerprint tells lists apart that are made from different things: it changes with the spec, the driver and the
// snapshots' handles.
func (c *ChangedBlockRange) ListFingerprint() string {
	data, err := json.Marshal(struct {
		Spec     ChangedBlockRangeSpec
		Driver   string
		From, To string
	}{c.Spec, c.Status.Driver, c.Status.FromSnapshotHandle, c.Status.ToSnapshotHandle})
	if err != nil {
		panic(fmt.Sprintf("encode the spec of ChangedBlockRange %s/%s: %v", c.Namespace, c.Name, err)) // strings and numbers only
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
