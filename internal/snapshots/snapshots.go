// Package snapshots judges VolumeSnapshots: whether one can be used, which driver and handle it has, how large it is, and
// whether two of them are of one volume. The controller and the command line tool share it, so that both give the same
// answer in the same words. It reads nothing by itself.
package snapshots

import (
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// The vSphere driver computes deltas from a change ID instead of a snapshot handle, and leaves it as an annotation on the
// VolumeSnapshot.
const (
	DriverVSphere             = "csi.vsphere.vmware.com"
	AnnotationVSphereChangeID = "csi.vsphere.volume/change-id"
)

// Problem is a reason of v1alpha1 with a sentence that names the object and says what to do.
type Problem struct{ Reason, Message string }

// Error implements error.
func (p *Problem) Error() string { return p.Reason + ": " + p.Message }

// Problemf returns a Problem whose message is formatted.
func Problemf(reason, format string, args ...any) *Problem {
	return &Problem{reason, fmt.Sprintf(format, args...)}
}

// Snapshot is a VolumeSnapshot and the VolumeSnapshotContent that it names, as far as they exist.
type Snapshot struct {
	Name    string
	Object  *snapshotv1.VolumeSnapshot
	Content *snapshotv1.VolumeSnapshotContent
}

// check returns what keeps s from being used, nil if nothing does.
func (s *Snapshot) check() *Problem {
	if s.Object == nil {
		return Problemf(v1alpha1.ReasonSnapshotNotFound, "VolumeSnapshot %q does not exist in this namespace: create it, or name another one in a new ChangedBlockRange", s.Name)
	}
	if !s.Object.DeletionTimestamp.IsZero() {
		return Problemf(v1alpha1.ReasonSnapshotDeleting, "VolumeSnapshot %q is being deleted: name another one in a new ChangedBlockRange", s.Name)
	}
	status := s.Object.Status
	if status == nil || status.BoundVolumeSnapshotContentName == nil || status.ReadyToUse == nil || !*status.ReadyToUse {
		if status != nil && status.Error != nil && status.Error.Message != nil {
			return Problemf(v1alpha1.ReasonSnapshotNotReady, "VolumeSnapshot %q is not ready, the snapshot controller reports: %s", s.Name, *status.Error.Message)
		}
		return Problemf(v1alpha1.ReasonSnapshotNotReady, "VolumeSnapshot %q is not ready to use yet", s.Name)
	}
	return s.checkContent(*status.BoundVolumeSnapshotContentName)
}

// checkContent insists on a binding in both directions: the status of a VolumeSnapshot is written by the snapshot
// controller, but a right to write it must not become a right to read somebody else's snapshot.
func (s *Snapshot) checkContent(name string) *Problem {
	if s.Content == nil {
		return Problemf(v1alpha1.ReasonSnapshotNotFound, "VolumeSnapshotContent %q of VolumeSnapshot %q does not exist: name another VolumeSnapshot in a new ChangedBlockRange", name, s.Name)
	}
	ref := s.Content.Spec.VolumeSnapshotRef
	if ref.Namespace != s.Object.Namespace || ref.Name != s.Object.Name || (ref.UID != "" && ref.UID != s.Object.UID) {
		return Problemf(v1alpha1.ReasonSnapshotMisbound, "VolumeSnapshot %q names VolumeSnapshotContent %q, which belongs to another VolumeSnapshot: create the VolumeSnapshot anew", s.Name, name)
	}
	if ref.UID == "" || s.Handle() == "" {
		return Problemf(v1alpha1.ReasonSnapshotNotReady, "VolumeSnapshotContent %q of VolumeSnapshot %q is not bound to it yet or has no snapshot handle yet", name, s.Name)
	}
	return nil
}

// Check returns what keeps the allocated blocks of to, or the changes between from and to, from being listed; nil if nothing
// does. from is nil unless a base is named.
func Check(from, to *Snapshot) *Problem {
	if from == nil {
		return to.check()
	}
	if p := from.check(); p != nil {
		return p
	}
	if p := to.check(); p != nil {
		return p
	}
	return checkPair(from, to)
}

// checkPair compares two snapshots that passed check. Volumes can be compared only where both contents say which volume
// they were taken of; a content that was made by hand does not, and then the driver has to judge.
func checkPair(from, to *Snapshot) *Problem {
	a, b := from.Content.Spec, to.Content.Spec
	if a.Driver != b.Driver {
		return Problemf(v1alpha1.ReasonDriverMismatch, "VolumeSnapshot %q is of driver %s and %q of driver %s: name two snapshots of one volume in a new ChangedBlockRange",
			from.Name, a.Driver, to.Name, b.Driver)
	}
	if a.Source.VolumeHandle != nil && b.Source.VolumeHandle != nil && *a.Source.VolumeHandle != *b.Source.VolumeHandle {
		return Problemf(v1alpha1.ReasonVolumeMismatch, "VolumeSnapshots %q and %q were taken of different volumes: name two snapshots of one volume in a new ChangedBlockRange",
			from.Name, to.Name)
	}
	return nil
}

// Handle returns the CSI snapshot handle, empty while it is unknown.
func (s *Snapshot) Handle() string {
	if s.Content.Status == nil || s.Content.Status.SnapshotHandle == nil {
		return ""
	}
	return *s.Content.Status.SnapshotHandle
}

// ID returns what the driver takes as the base of a delta.
func (s *Snapshot) ID() string {
	if s.Content.Spec.Driver == DriverVSphere {
		if changeID := s.Object.Annotations[AnnotationVSphereChangeID]; changeID != "" {
			return changeID
		}
	}
	return s.Handle()
}

// RestoreSize prefers the content, which the driver's sidecar writes, to the VolumeSnapshot's copy. Zero means unknown. Either
// of them may be missing.
func (s *Snapshot) RestoreSize() *int64 {
	if size := contentRestoreSize(s.Content); size != nil {
		return size
	}
	if s.Object == nil || s.Object.Status == nil {
		return nil
	}
	if size := s.Object.Status.RestoreSize; size != nil && size.Value() > 0 {
		bytes := size.Value()
		return &bytes
	}
	return nil
}

func contentRestoreSize(content *snapshotv1.VolumeSnapshotContent) *int64 {
	if content == nil || content.Status == nil || content.Status.RestoreSize == nil || *content.Status.RestoreSize <= 0 {
		return nil
	}
	bytes := *content.Status.RestoreSize
	return &bytes
}
