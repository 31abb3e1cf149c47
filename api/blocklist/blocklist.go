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
	"unicode/utf8"
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

// FileName returns the name that a list of format f has in the root of a Filesystem volume; empty for an unknown format.
func FileName(f Format) string {
	switch f {
	case JSON:
		return "changed-blocks.json"
	case Binary:
		return "changed-blocks.cbl"
	}
	return ""
}

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
	// FixedLength means that every extent that the driver sent has the same length.
	FixedLength BlockMetadataType = "FIXED_LENGTH"
	// VariableLength means that extents differ in length.
	VariableLength BlockMetadataType = "VARIABLE_LENGTH"
	// UnknownLength means that the driver sent no message, so that the type is not known. Only an empty list has it.
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
	// VolumeCapacityBytes is what the driver reported, or the larger one of the snapshots' restore sizes if it sent no
	// message.
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

// MaxStringBytes is the longest string that a header may hold, in bytes of UTF-8. CSI allows 128 for a handle; drivers'
// change IDs are longer.
const MaxStringBytes = 4096

// ErrHeader is the error that Header.Check wraps.
var ErrHeader = errors.New("bad header")

// Check reports whether a list may have the header h: known mode and type, a known capacity, no negative size, a
// granularity that is 0 or a power of two, and strings of valid UTF-8 of at most MaxStringBytes.
func (h Header) Check() error {
	switch {
	case h.Mode != Delta && h.Mode != Allocated:
		return fmt.Errorf("%w: mode %q is neither %s nor %s", ErrHeader, h.Mode, Delta, Allocated)
	case h.BlockMetadataType != FixedLength && h.BlockMetadataType != VariableLength && h.BlockMetadataType != UnknownLength:
		return fmt.Errorf("%w: block metadata type %q is unknown", ErrHeader, h.BlockMetadataType)
	case h.VolumeCapacityBytes <= 0:
		return fmt.Errorf("%w: volume capacity %d is not a known size", ErrHeader, h.VolumeCapacityBytes)
	case h.BaseRestoreSizeBytes < 0:
		return fmt.Errorf("%w: base restore size %d is negative", ErrHeader, h.BaseRestoreSizeBytes)
	case h.TargetRestoreSizeBytes < 0:
		return fmt.Errorf("%w: target restore size %d is negative", ErrHeader, h.TargetRestoreSizeBytes)
	case h.GranularityBytes < 0 || h.GranularityBytes&(h.GranularityBytes-1) != 0:
		return fmt.Errorf("%w: granularity %d is not a power of two", ErrHeader, h.GranularityBytes)
	}
	for _, s := range []string{h.Driver, h.Namespace, h.BaseSnapshot, h.BaseSnapshotHandle, h.TargetSnapshot, h.TargetSnapshotHandle} {
		if len(s) > MaxStringBytes {
			return fmt.Errorf("%w: a string of %d bytes exceeds %d", ErrHeader, len(s), MaxStringBytes)
		}
		if !utf8.ValidString(s) {
			return fmt.Errorf("%w: %q is not valid UTF-8", ErrHeader, s)
		}
	}
	return nil
}

// Trailer closes a list.
type Trailer struct {
	EntryCount int64
	// ChangedBytes is the sum of the extents' lengths.
	ChangedBytes int64
	// ListBytes is the length of the whole list in its encoding, trailer included.
	ListBytes int64
	// ListSHA256 is the digest of the whole list, as sha256sum prints it for the file. The encoder has it at no
	// extra cost: it goes on from the digest that the trailer carries.
	ListSHA256 [32]byte
}

// Encoder writes one list. It is not safe for concurrent use. After one of its methods failed, all return that error.
type Encoder interface {
	// Encode appends extents, which must continue the list in ascending order; it checks every one. It does not
	// keep the slice.
	Encode(extents []Extent) error
	// Finish writes the trailer. Without it the list is not complete, and readers refuse it. It does not close the
	// underlying writer.
	Finish() (Trailer, error)
}
