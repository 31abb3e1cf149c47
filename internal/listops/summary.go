package listops

import (
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"strconv"
	"strings"
	"unicode"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Summary is what is known of a whole list without its extents. Sizes are bytes.
type Summary struct {
	Mode                   string `json:"mode"`
	Driver                 string `json:"driver,omitempty"`
	Namespace              string `json:"namespace"`
	BaseSnapshot           string `json:"baseSnapshot,omitempty"`
	BaseSnapshotHandle     string `json:"baseSnapshotHandle,omitempty"`
	TargetSnapshot         string `json:"targetSnapshot"`
	TargetSnapshotHandle   string `json:"targetSnapshotHandle,omitempty"`
	VolumeCapacityBytes    int64  `json:"volumeCapacityBytes"`
	BaseRestoreSizeBytes   int64  `json:"baseRestoreSizeBytes,omitempty"`
	TargetRestoreSizeBytes int64  `json:"targetRestoreSizeBytes,omitempty"`
	BlockMetadataType      string `json:"blockMetadataType"`
	GranularityBytes       int64  `json:"granularityBytes,omitempty"`
	Merged                 bool   `json:"merged"`
	EntryCount             int64  `json:"entryCount"`
	ChangedBytes           int64  `json:"changedBytes"`
	ListBytes              int64  `json:"listBytes"`
	ListDigest             string `json:"listDigest"`
}

// Summarize returns the summary of a list.
func Summarize(h blocklist.Header, t blocklist.Trailer) Summary {
	return Summary{
		Mode: string(h.Mode), Driver: h.Driver, Namespace: h.Namespace,
		BaseSnapshot: h.BaseSnapshot, BaseSnapshotHandle: h.BaseSnapshotHandle,
		TargetSnapshot: h.TargetSnapshot, TargetSnapshotHandle: h.TargetSnapshotHandle,
		VolumeCapacityBytes: h.VolumeCapacityBytes, BaseRestoreSizeBytes: h.BaseRestoreSizeBytes,
		TargetRestoreSizeBytes: h.TargetRestoreSizeBytes, BlockMetadataType: string(h.BlockMetadataType),
		GranularityBytes: h.GranularityBytes, Merged: h.Merged,
		EntryCount: t.EntryCount, ChangedBytes: t.ChangedBytes,
		ListBytes: t.ListBytes, ListDigest: "sha256:" + hex.EncodeToString(t.ListSHA256[:]),
	}
}

// Print writes the summary for people, a field a line.
func (s Summary) Print(w io.Writer) error {
	base := "none"
	if s.BaseSnapshotHandle != "" {
		base = named(s.BaseSnapshot, s.BaseSnapshotHandle)
	}
	_, err := fmt.Fprintf(w, `  mode         %s
  target       %s/%s
  base         %s
  driver       %s
  capacity     %d bytes
  type         %s, granularity %d, merged %t
  entries      %d
  changed      %d bytes (%.2f%% of the capacity)
  list         %d bytes, %s
`, s.Mode, Printable(s.Namespace), named(s.TargetSnapshot, s.TargetSnapshotHandle), base, Printable(s.Driver), s.VolumeCapacityBytes,
		s.BlockMetadataType, s.GranularityBytes, s.Merged, s.EntryCount, s.ChangedBytes,
		100*float64(s.ChangedBytes)/float64(s.VolumeCapacityBytes), s.ListBytes, s.ListDigest)
	return err
}

func named(name, handle string) string {
	name, handle = Printable(name), Printable(handle)
	switch {
	case handle == "":
		return name
	case name == "":
		return "handle " + handle
	}
	return name + " (handle " + handle + ")"
}

// Printable quotes a string of a list that would do more to a terminal than be seen.
func Printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// Sizes counts extents by their lengths.
type Sizes struct {
	Shortest, Longest int64
	// Runs is the number of extents if adjacent ones were merged.
	Runs int64
	// Entries and Bytes count the extents, and their bytes, whose length is at least 1<<i and less than 2<<i.
	Entries, Bytes [63]int64
}

// CountSizes walks over in.
func CountSizes(in Extents) (Sizes, error) {
	var s Sizes
	end := int64(-1)
	for batch, err := range in {
		if err != nil {
			return Sizes{}, err
		}
		for _, e := range batch {
			i := bits.Len64(uint64(e.Length)) - 1
			s.Entries[i]++
			s.Bytes[i] += e.Length
			if s.Shortest == 0 || e.Length < s.Shortest {
				s.Shortest = e.Length
			}
			s.Longest = max(s.Longest, e.Length)
			if e.Offset != end {
				s.Runs++
			}
			end = e.End()
		}
	}
	return s, nil
}
