package v1alpha1

// The condition types of a ChangedBlockRange.
const (
	// ConditionSnapshotsResolved is True when both snapshots are ready, belong to one driver and one volume, and the
	// driver offers a snapshot metadata service. Claims are populated only while it is True.
	ConditionSnapshotsResolved = "SnapshotsResolved"

	// ConditionReady is True when the last population succeeded; the figures in the status describe its list.
	ConditionReady = "Ready"
)

// Reasons of SnapshotsResolved. When it is not True and nothing was populated yet, Ready carries the same reason.
const (
	// ReasonResolved: everything that a population needs was found.
	ReasonResolved = "Resolved"
	// ReasonSnapshotNotFound: a VolumeSnapshot, its VolumeSnapshotContent, or (as the result of a population) the
	// driver's snapshot does not exist.
	ReasonSnapshotNotFound = "SnapshotNotFound"
	// ReasonSnapshotNotReady: a VolumeSnapshot is not ready to use, or not bound to a content yet.
	ReasonSnapshotNotReady = "SnapshotNotReady"
	// ReasonSnapshotDeleting: a VolumeSnapshot is being deleted.
	ReasonSnapshotDeleting = "SnapshotDeleting"
	// ReasonSnapshotMisbound: a VolumeSnapshot names a content that does not name it back.
	ReasonSnapshotMisbound = "SnapshotMisbound"
	// ReasonDriverMismatch: the two snapshots were taken by different CSI drivers.
	ReasonDriverMismatch = "DriverMismatch"
	// ReasonVolumeMismatch: the two snapshots were taken of different volumes.
	ReasonVolumeMismatch = "VolumeMismatch"
	// ReasonMetadataServiceNotFound: the driver has no SnapshotMetadataService.
	ReasonMetadataServiceNotFound = "MetadataServiceNotFound"
)

// Reasons of Ready that are not results of a population.
const (
	// ReasonWaitingForClaim: everything is in place; no claim that refers to the ChangedBlockRange waits to be populated.
	ReasonWaitingForClaim = "WaitingForClaim"
	// ReasonPopulating: a claim is being populated.
	ReasonPopulating = "Populating"
	// ReasonBoundToOtherVolume: no claim waits to be populated, and one has a volume that was not filled for it. Also the reason of a
	// warning event on that claim.
	ReasonBoundToOtherVolume = "BoundToOtherVolume"
)

// Reasons of Ready that a populator reports as its result.
const (
	// ReasonPopulated: the list is complete. The only reason with which Ready is True.
	ReasonPopulated = "Populated"
	// ReasonInvalidArguments: the populator refused its own command line. The claim may be one with volumeMode Block, and the format JSON.
	ReasonInvalidArguments = "InvalidArguments"
	// ReasonInvalidRequest: the driver refused the snapshots.
	ReasonInvalidRequest = "InvalidRequest"
	// ReasonDeltaUnavailable: the driver does not track changed blocks for this volume.
	ReasonDeltaUnavailable = "DeltaUnavailable"
	// ReasonPermissionDenied: the populator may not get volumesnapshots in the namespace.
	ReasonPermissionDenied = "PermissionDenied"
	// ReasonListTooLarge: the list would exceed maxSizeInBytes.
	ReasonListTooLarge = "ListTooLarge"
	// ReasonVolumeFull: the claim's volume is too small for the list.
	ReasonVolumeFull = "VolumeFull"
	// ReasonProtocolViolation: the driver's stream broke a promise of the protocol.
	ReasonProtocolViolation = "ProtocolViolation"
	// ReasonUnauthenticated: the metadata service refused the populator's token.
	ReasonUnauthenticated = "Unauthenticated"
	// ReasonStreamFailed: the stream kept failing.
	ReasonStreamFailed = "StreamFailed"
	// ReasonOutputFailed: the claim's volume could not be written.
	ReasonOutputFailed = "OutputFailed"
	// ReasonCancelled: the populator was asked to stop.
	ReasonCancelled = "Cancelled"
	// ReasonInternalError: a defect of the populator.
	ReasonInternalError = "InternalError"
)

// ReasonUsedAllocated is the reason of a warning event on a ChangedBlockRange and on its claim: the driver had no delta, and
// the list holds the allocated blocks instead, as whenDeltaUnavailable: UseAllocated asks. Ready then is True with the reason
// Populated.
const ReasonUsedAllocated = "UsedAllocated"

// Reasons of Ready for a populator pod that left no result. All of them are retried.
const (
	// ReasonOutOfMemory: the pod exceeded its memory limit.
	ReasonOutOfMemory = "PopulatorOutOfMemory"
	// ReasonEvicted: the pod was evicted from its node, or the node went away.
	ReasonEvicted = "PopulatorEvicted"
	// ReasonImageUnavailable: the pod's image cannot be pulled.
	ReasonImageUnavailable = "PopulatorImageUnavailable"
	// ReasonUnschedulable: no node takes the pod.
	ReasonUnschedulable = "PopulatorUnschedulable"
	// ReasonNotStarted: the pod's container could not be started.
	ReasonNotStarted = "PopulatorNotStarted"
	// ReasonDied: the populator ended without leaving a result.
	ReasonDied = "PopulatorDied"
)
