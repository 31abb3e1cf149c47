package controller

import (
	"fmt"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
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

// resolve finds driver and handles of the snapshots. Every problem is one that goes away only by a change to an object
// that is watched, so nothing has to be asked again.
func resolve(seen *observation) resolution {
	var r resolution
	if seen.to.Content != nil {
		r.driver = seen.to.Content.Spec.Driver
	}
	if p := firstProblem(seen); p != nil {
		r.reason, r.message = p.Reason, p.Message
		return r
	}
	r.reason = v1alpha1.ReasonResolved
	r.toHandle, r.toRestoreSize = seen.to.ID(), seen.to.RestoreSize()
	r.message = fmt.Sprintf("the allocated blocks of VolumeSnapshot %q can be listed by driver %s", seen.to.Name, r.driver)
	switch {
	case seen.from != nil:
		r.fromHandle, r.fromRestoreSize = seen.from.ID(), seen.from.RestoreSize()
		r.message = fmt.Sprintf("the changes from VolumeSnapshot %q to %q can be listed by driver %s", seen.from.Name, seen.to.Name, r.driver)
	case seen.cbr.Spec.FromSnapshotHandle != "":
		r.fromHandle = seen.cbr.Spec.FromSnapshotHandle
		r.message = fmt.Sprintf("the changes from handle %q to VolumeSnapshot %q can be listed by driver %s", r.fromHandle, seen.to.Name, r.driver)
	}
	return r
}

func firstProblem(seen *observation) *snapshots.Problem {
	if p := snapshots.Check(seen.from, seen.to); p != nil {
		return p
	}
	driver := seen.to.Content.Spec.Driver
	if !seen.services[driver] {
		return snapshots.Problemf(v1alpha1.ReasonMetadataServiceNotFound,
			"driver %s has no SnapshotMetadataService of its name: the driver's administrator must deploy the snapshot metadata sidecar", driver)
	}
	return nil
}
