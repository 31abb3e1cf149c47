// Package blocklist owns the formats of a list of changed blocks: what an extent is, what a list promises, and how both
// are written as JSON and as Binary (.cbl). Backup tools import it to read lists.
//
// A list has a header, extents in ascending order and a trailer. The trailer carries the counts and a digest, so that a
// list that was cut anywhere or in which one bit changed is refused by the reader. Lists are deterministic: the same
// snapshots and the same options give the same bytes. The formats are specified in docs/format-json.md and
// docs/format-binary.md.
package blocklist

import (
	"errors"
	"fmt"
	"math"
)

// FormatVersion is the version of both formats that this package writes. A reader refuses a newer one.
const FormatVersion = 1

// Format names an encoding of a list.
type Format string

// The formats.
const (
	JSON   Format = "JSON"
	Binary Format = "Binary"
)

// Mode says what a list lists.
type Mode string

const (
	// Delta lists the blocks that differ between the base snapshot and the target snapshot.
	Delta Mode = "Delta"
	// Allocated lists the blocks of the target snapshot that hold data.
	Allocated Mode = "Allocated"
)

// BlockMetadataType is the SnapshotMetadata API's enumeration of the same name, by its API names.
type BlockMetadataType string

const (
	// FixedLength: every extent that the driver sent has the same length.
	FixedLength BlockMetadataType = "FIXED_LENGTH"
	// VariableLength: extents differ in length.
	VariableLength BlockMetadataType = "VARIABLE_LENGTH"
	// UnknownLength: the driver sent no message, so the type is not known. Only an empty list has it.
	UnknownLength BlockMetadataType = "UNKNOWN"
)

// Extent is a range of a volume, in bytes.
type Extent struct {
	Offset int64
	Length int64
}

// End returns the first byte after the extent. It does not overflow on an extent that passed Check.
func (e Extent) End() int64 { return e.Offset + e.Length }

// ErrExtent is the error that Check wraps.
var ErrExtent = errors.New("bad extent")

// Check reports whether e may follow a list that ends at prevEnd (0 for the first extent) on a volume of capacity bytes
// (0 if the capacity is unknown): not negative, not empty, no overflow, ascending, not overlapping, inside the volume.
func (e Extent) Check(prevEnd, capacity int64) error {
	switch {
	case e.Offset < 0:
		return fmt.Errorf("%w: offset %d is negative", ErrExtent, e.Offset)
	case e.Length <= 0:
		return fmt.Errorf("%w: length %d at offset %d is not positive", ErrExtent, e.Length, e.Offset)
	case e.Offset > math.MaxInt64-e.Length:
		return fmt.Errorf("%w: offset %d with length %d overflows", ErrExtent, e.Offset, e.Length)
	case e.Offset < prevEnd:
		return fmt.Errorf("%w: offset %d lies before %d, where the extent before it ends", ErrExtent, e.Offset, prevEnd)
	case capacity > 0 && e.End() > capacity:
		return fmt.Errorf("%w: offset %d with length %d ends past the volume's capacity %d", ErrExtent, e.Offset, e.Length, capacity)
	}
	return nil
}

// Header says what a list is about. It holds nothing that differs between two populations of the same request: no time,
// no pod, no attempt.
type Header struct {
	Mode   Mode
	Driver string
	// Namespace is the namespace of the VolumeSnapshots.
	Namespace string
	// BaseSnapshot is the name of the base VolumeSnapshot; empty if the base was given as a handle or there is none.
	BaseSnapshot string
	// BaseSnapshotHandle is the base's CSI handle or change ID; empty in Allocated mode without a base.
	BaseSnapshotHandle string
	TargetSnapshot     string
	// TargetSnapshotHandle is the base of the next increment.
	TargetSnapshotHandle string
	// VolumeCapacityBytes is what the driver reported, or the target's restore size if it sent no message.
	VolumeCapacityBytes int64
	// BaseRestoreSizeBytes and TargetRestoreSizeBytes are the snapshots' restore sizes, 0 if unknown. They differ
	// if the volume was resized between the snapshots.
	BaseRestoreSizeBytes   int64
	TargetRestoreSizeBytes int64
	BlockMetadataType      BlockMetadataType
	// GranularityBytes is the power of two to which extents were rounded outwards, 0 if they were not.
	GranularityBytes int64
	// Merged says that adjacent extents were merged.
	Merged bool
}

// Trailer closes a list.
type Trailer struct {
	EntryCount int64
	// ChangedBytes is the sum of the extents' lengths.
	ChangedBytes int64
}

// Encoder writes one list. Its methods must not be called after one of them failed.
type Encoder interface {
	// Encode appends extents, which must continue the list in ascending order; it checks every one. It does not
	// keep the slice.
	Encode(extents []Extent) error
	// Finish writes the trailer. Without it the list is not complete, and readers refuse it. It does not close the
	// underlying writer.
	Finish() (Trailer, error)
}
