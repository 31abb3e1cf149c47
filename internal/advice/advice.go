// Package advice says what the reasons in the conditions of a ChangedBlockRange mean and what to do about them. It is the
// text of the tables in docs/changedblockrange.md, which a test compares.
package advice

import (
	"strings"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Advice is a row of a table. Its sentences are Markdown.
type Advice struct {
	Reason string
	// Meaning says what has happened, Do what to do about it; empty if nothing is to be done.
	Meaning, Do string
}

// resolving are the reasons of the condition SnapshotsResolved.
var resolving = []Advice{
	{v1alpha1.ReasonResolved, "everything was found", ""},
	{v1alpha1.ReasonSnapshotNotFound, "a VolumeSnapshot, or its VolumeSnapshotContent, does not exist", "create it, or name another one in a new ChangedBlockRange; a base may also be given as `fromSnapshotHandle`"},
	{v1alpha1.ReasonSnapshotNotReady, "a VolumeSnapshot is not ready or not bound yet; the message has the error that the snapshot controller reports", "wait, or repair what the error says"},
	{v1alpha1.ReasonSnapshotDeleting, "a VolumeSnapshot is being deleted", "name another one in a new ChangedBlockRange"},
	{v1alpha1.ReasonSnapshotMisbound, "a VolumeSnapshot names a content that belongs to another VolumeSnapshot", "create the VolumeSnapshot anew"},
	{v1alpha1.ReasonDriverMismatch, "the snapshots are of two drivers", "name two snapshots of one volume in a new ChangedBlockRange"},
	{v1alpha1.ReasonVolumeMismatch, "the snapshots are of two volumes", "the same"},
	{v1alpha1.ReasonMetadataServiceNotFound, "no SnapshotMetadataService has the driver's name", "the cluster's administrator deploys the driver's snapshot metadata sidecar, if the driver has one"},
}

// populating are the reasons of the condition Ready while nothing has failed.
var populating = []Advice{
	{v1alpha1.ReasonWaitingForClaim, "no claim refers to it, or the claim was not started", "create a claim; a storage class that waits for the first consumer needs a pod that uses the claim"},
	{v1alpha1.ReasonPopulating, "a claim is being populated", "wait"},
	{v1alpha1.ReasonPopulated, "the list was written", "mount the claim"},
	{v1alpha1.ReasonBoundToOtherVolume, "a claim is bound to a volume that was not filled for it: one of its storage class that was `Available`, one that it names, or a restored one", "delete or reserve `Available` volumes of that class, then delete the claim and create it again, without `volumeName`"},
}

// terminal are the reasons of Ready that another attempt would not change.
var terminal = []Advice{
	{v1alpha1.ReasonListTooLarge, "the list would exceed `maxSizeInBytes`", "a new ChangedBlockRange with a larger `maxSizeInBytes`, a coarser `granularityBytes`, or `format: Binary`"},
	{v1alpha1.ReasonVolumeFull, "the claim's volume is too small for the list", "a new, larger claim; the message says what was needed so far"},
	{v1alpha1.ReasonDeltaUnavailable, "the driver does not track changes for this volume, or not yet", "switch changed block tracking on in the storage system, or use `whenDeltaUnavailable: UseAllocated`"},
	{v1alpha1.ReasonInvalidRequest, "the driver refused the snapshots: other volume, other driver, bad handle", "check `fromSnapshotHandle` and the snapshots"},
	{v1alpha1.ReasonSnapshotNotFound, "the driver does not know a snapshot although Kubernetes does", "check it in the storage system; take a full backup instead"},
	{v1alpha1.ReasonPermissionDenied, "the populator may not get VolumeSnapshots in this namespace", "the administrator grants it: `config/rbac/worker.yaml`"},
	{v1alpha1.ReasonProtocolViolation, "the driver broke a promise of the protocol, so its answer cannot be trusted", "report it to the driver's authors, with the message; take a full backup instead"},
	{v1alpha1.ReasonInvalidArguments, "the populator refused what it was told to do; the message says why", "a claim with `volumeMode: Block` needs `format: Binary`: a new ChangedBlockRange with it, or another claim with `volumeMode: Filesystem`. If the driver sends no capacity, report it to the driver's authors; anything else to this project"},
}

// retried are the reasons of Ready after which the population is tried again.
var retried = []Advice{
	{v1alpha1.ReasonStreamFailed, "the metadata service could not be reached, or its stream kept breaking", "look at the driver's pods and at network policies"},
	{v1alpha1.ReasonUnauthenticated, "the metadata service refused the token", "compare its audience with that of the SnapshotMetadataService"},
	{v1alpha1.ReasonOutputFailed, "the volume could not be written", "look at the storage system and at the node"},
	{v1alpha1.ReasonCancelled, "the populator was asked to stop", "nothing"},
	{v1alpha1.ReasonInternalError, "a defect of the populator", "report it to this project, with the pod's log"},
	{v1alpha1.ReasonOutOfMemory, "it exceeded its memory limit", "raise the limit"},
	{v1alpha1.ReasonEvicted, "its pod was removed from the node", "nothing, or look at the node"},
	{v1alpha1.ReasonUnschedulable, "no node takes its pod, which makes way for other claims that wait", "the message has the scheduler's reason"},
	{v1alpha1.ReasonImageUnavailable, "its image cannot be pulled", "check the image's name and the pull secrets of the controller's configuration"},
	{v1alpha1.ReasonNotStarted, "its container could not be started", "the message has the node's reason"},
	{v1alpha1.ReasonDied, "it ended without a word", "look at the pod's log in the populator namespace"},
}

// For returns the advice for a reason of the condition Ready, which repeats those of SnapshotsResolved before the first
// population. resolved says whether SnapshotsResolved is True: a snapshot may be missing in Kubernetes or in the driver.
func For(reason string, resolved bool) (Advice, bool) {
	tables := [][]Advice{resolving, populating, terminal, retried}
	if resolved {
		tables = tables[1:]
	}
	for _, table := range tables {
		for i, a := range table {
			if a.Reason != reason {
				continue
			}
			if a.Do == "the same" {
				a.Do = table[i-1].Do
			}
			return a, true
		}
	}
	return Advice{}, false
}

// Plain returns Markdown as it reads in a terminal.
func Plain(markdown string) string { return strings.ReplaceAll(markdown, "`", "") }
