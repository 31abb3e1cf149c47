package controller

import (
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// The vSphere driver computes deltas from a change ID instead of a snapshot handle, and leaves it as an annotation on the
// VolumeSnapshot.
const (
	driverVSphere             = "csi.vsphere.vmware.com"
	annotationVSphereChangeID = "csi.vsphere.volume/change-id"
)

// resolution is what a population needs to know, or the reason why it cannot be known yet.
type resolution struct {
	// reason is ReasonResolved, or says what is missing.
	reason  string
	message string

	driver     string
	fromHandle string
	toHandle   string
	// fromRestoreSize and toRestoreSize are bytes; nil if unknown.
	fromRestoreSize *int64
	toRestoreSize   *int64
}

func (r resolution) ok() bool { return r.reason == v1alpha1.ReasonResolved }

// problem is a reason with a sentence that names the object and says what to do.
type problem struct{ reason, message string }

func problemf(reason, format string, args ...any) *problem {
	return &problem{reason, fmt.Sprintf(format, args...)}
}

// resolve finds driver and handles of the snapshots. Every problem is one that goes away only by a change to an object
// that is watched, so nothing has to be asked again.
func resolve(seen *observation) resolution {
	var r resolution
	if seen.to.content != nil {
		r.driver = seen.to.content.Spec.Driver
	}
	if p := firstProblem(seen); p != nil {
		r.reason, r.message = p.reason, p.message
		return r
	}
	r.reason = v1alpha1.ReasonResolved
	r.toHandle, r.toRestoreSize = seen.to.id(), seen.to.restoreSize()
	r.message = fmt.Sprintf("the allocated blocks of VolumeSnapshot %q can be listed by driver %s", seen.to.name, r.driver)
	switch {
	case seen.from != nil:
		r.fromHandle, r.fromRestoreSize = seen.from.id(), seen.from.restoreSize()
		r.message = fmt.Sprintf("the changes from VolumeSnapshot %q to %q can be listed by driver %s", seen.from.name, seen.to.name, r.driver)
	case seen.cbr.Spec.FromSnapshotHandle != "":
		r.fromHandle = seen.cbr.Spec.FromSnapshotHandle
		r.message = fmt.Sprintf("the changes from handle %q to VolumeSnapshot %q can be listed by driver %s", r.fromHandle, seen.to.name, r.driver)
	}
	return r
}

func firstProblem(seen *observation) *problem {
	if seen.from != nil {
		if p := seen.from.check(); p != nil {
			return p
		}
	}
	if p := seen.to.check(); p != nil {
		return p
	}
	if p := checkPair(seen.from, seen.to); p != nil {
		return p
	}
	driver := seen.to.content.Spec.Driver
	if !seen.services[driver] {
		return problemf(v1alpha1.ReasonMetadataServiceNotFound,
			"driver %s has no SnapshotMetadataService of its name: the driver's administrator must deploy the snapshot metadata sidecar", driver)
	}
	return nil
}

// check returns what keeps s from being used, nil if nothing does.
func (s *snapshot) check() *problem {
	if s.object == nil {
		return problemf(v1alpha1.ReasonSnapshotNotFound, "VolumeSnapshot %q does not exist in this namespace: create it, or name another one in a new ChangedBlockRange", s.name)
	}
	if !s.object.DeletionTimestamp.IsZero() {
		return problemf(v1alpha1.ReasonSnapshotDeleting, "VolumeSnapshot %q is being deleted: name another one in a new ChangedBlockRange", s.name)
	}
	status := s.object.Status
	if status == nil || status.BoundVolumeSnapshotContentName == nil || status.ReadyToUse == nil || !*status.ReadyToUse {
		if status != nil && status.Error != nil && status.Error.Message != nil {
			return problemf(v1alpha1.ReasonSnapshotNotReady, "VolumeSnapshot %q is not ready, the snapshot controller reports: %s", s.name, *status.Error.Message)
		}
		return problemf(v1alpha1.ReasonSnapshotNotReady, "VolumeSnapshot %q is not ready to use yet", s.name)
	}
	return s.checkContent(*status.BoundVolumeSnapshotContentName)
}

// checkContent insists on a binding in both directions: the status of a VolumeSnapshot is written by the snapshot
// controller, but a right to write it must not become a right to read somebody else's snapshot.
func (s *snapshot) checkContent(name string) *problem {
	if s.content == nil {
		return problemf(v1alpha1.ReasonSnapshotNotFound, "VolumeSnapshotContent %q of VolumeSnapshot %q does not exist: name another VolumeSnapshot in a new ChangedBlockRange", name, s.name)
	}
	ref := s.content.Spec.VolumeSnapshotRef
	if ref.Namespace != s.object.Namespace || ref.Name != s.object.Name || (ref.UID != "" && ref.UID != s.object.UID) {
		return problemf(v1alpha1.ReasonSnapshotMisbound, "VolumeSnapshot %q names VolumeSnapshotContent %q, which belongs to another VolumeSnapshot: create the VolumeSnapshot anew", s.name, name)
	}
	if ref.UID == "" || s.handle() == "" {
		return problemf(v1alpha1.ReasonSnapshotNotReady, "VolumeSnapshotContent %q of VolumeSnapshot %q is not bound to it yet or has no snapshot handle yet", name, s.name)
	}
	return nil
}

// checkPair compares two snapshots that passed check. Volumes can be compared only where both contents say which volume
// they were taken of; a content that was made by hand does not, and then the driver has to judge.
func checkPair(from, to *snapshot) *problem {
	if from == nil {
		return nil
	}
	a, b := from.content.Spec, to.content.Spec
	if a.Driver != b.Driver {
		return problemf(v1alpha1.ReasonDriverMismatch, "VolumeSnapshot %q is of driver %s and %q of driver %s: name two snapshots of one volume in a new ChangedBlockRange",
			from.name, a.Driver, to.name, b.Driver)
	}
	if a.Source.VolumeHandle != nil && b.Source.VolumeHandle != nil && *a.Source.VolumeHandle != *b.Source.VolumeHandle {
		return problemf(v1alpha1.ReasonVolumeMismatch, "VolumeSnapshots %q and %q were taken of different volumes: name two snapshots of one volume in a new ChangedBlockRange",
			from.name, to.name)
	}
	return nil
}

// handle returns the CSI snapshot handle, empty while it is unknown.
func (s *snapshot) handle() string {
	if s.content.Status == nil || s.content.Status.SnapshotHandle == nil {
		return ""
	}
	return *s.content.Status.SnapshotHandle
}

// id returns what the driver takes as the base of a delta.
func (s *snapshot) id() string {
	if s.content.Spec.Driver == driverVSphere {
		if changeID := s.object.Annotations[annotationVSphereChangeID]; changeID != "" {
			return changeID
		}
	}
	return s.handle()
}

// restoreSize prefers the content, which the driver's sidecar writes, to the VolumeSnapshot's copy. Zero means unknown.
func (s *snapshot) restoreSize() *int64 {
	if size := contentRestoreSize(s.content); size != nil {
		return size
	}
	if size := s.object.Status.RestoreSize; size != nil && size.Value() > 0 {
		bytes := size.Value()
		return &bytes
	}
	return nil
}

func contentRestoreSize(content *snapshotv1.VolumeSnapshotContent) *int64 {
	if content.Status == nil || content.Status.RestoreSize == nil || *content.Status.RestoreSize <= 0 {
		return nil
	}
	bytes := *content.Status.RestoreSize
	return &bytes
}
