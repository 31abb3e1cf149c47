package listops

import (
	"errors"
	"fmt"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// ErrOtherVolume is the error for lists that cannot be about the same volume.
var ErrOtherVolume = errors.New("lists of different volumes")

// ErrNoChain is the error for lists of which one does not begin where the one before it ends.
var ErrNoChain = errors.New("lists that do not follow each other")

// Named is a header with the name by which messages call its list.
type Named struct {
	Name string
	blocklist.Header
}

// SameVolume checks that all lists have the driver and the capacity of the first. A list does not name its volume, so this
// is what can be seen; a volume that was resized between the snapshots counts as another.
func SameVolume(lists []Named) error {
	for _, l := range lists[1:] {
		first := lists[0]
		if l.Driver != first.Driver {
			return fmt.Errorf("%w: %s is of driver %q, %s of %q", ErrOtherVolume, first.Name, first.Driver, l.Name, l.Driver)
		}
		if l.VolumeCapacityBytes != first.VolumeCapacityBytes {
			return fmt.Errorf("%w: %s is of a volume of %d bytes, %s of one of %d", ErrOtherVolume, first.Name, first.VolumeCapacityBytes, l.Name, l.VolumeCapacityBytes)
		}
	}
	return nil
}

// Chained checks that every list but the first has the target of the list before it as its base, by their handles, and lists what
// has changed since then. Allocated blocks in its place lack those that were freed, of which the lists before would keep what they held.
func Chained(lists []Named) error {
	for i, l := range lists[1:] {
		previous := lists[i]
		if l.BaseSnapshotHandle == "" || l.BaseSnapshotHandle != previous.TargetSnapshotHandle {
			return fmt.Errorf("%w: %s ends at snapshot %s, %s begins at %s", ErrNoChain, previous.Name,
				snapshot(previous.TargetSnapshot, previous.TargetSnapshotHandle), l.Name, snapshot(l.BaseSnapshot, l.BaseSnapshotHandle))
		}
		if l.Mode == blocklist.Allocated {
			return fmt.Errorf("%w: %s lists allocated blocks, so blocks that were freed since its base are not in it; a chain may begin with it, without %s and those before",
				ErrNoChain, l.Name, previous.Name)
		}
	}
	return nil
}

func snapshot(name, handle string) string {
	switch {
	case handle == "" && name == "":
		return "none"
	case handle == "":
		return fmt.Sprintf("%q (without a handle)", name)
	}
	return fmt.Sprintf("%q (handle %s)", name, handle)
}

// UnionHeader returns the header of the union of lists: from the first one's base to the last one's target, if they are Chained. A
// union with a list of allocated blocks in it, which in a chain is the first one, holds all blocks that the last target has allocated,
// and perhaps some that it has no more.
func UnionHeader(lists []Named) blocklist.Header {
	last := lists[len(lists)-1]
	h := Combined(lists[0].Header)
	h.TargetSnapshot, h.TargetSnapshotHandle, h.TargetRestoreSizeBytes = last.TargetSnapshot, last.TargetSnapshotHandle, last.TargetRestoreSizeBytes
	h.Namespace = last.Namespace
	for _, l := range lists {
		if l.Mode == blocklist.Allocated {
			h.Mode = blocklist.Allocated
		}
		h.GranularityBytes = min(h.GranularityBytes, l.GranularityBytes)
		h.VolumeCapacityBytes = max(h.VolumeCapacityBytes, l.VolumeCapacityBytes)
	}
	return h
}

// Combined returns h for a list that a set operation computed: its extents are merged, and their lengths vary.
func Combined(h blocklist.Header) blocklist.Header {
	h.Merged = true
	h.BlockMetadataType = blocklist.VariableLength
	return h
}
