package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// summary is what verify prints of a whole list. Sizes are bytes.
type summary struct {
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

func newVerifyCommand(stdout io.Writer) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:           "verify FILE|DEVICE",
		Short:         "Read a whole list, check everything about it and print its summary; the exit code is 0 only if it is whole",
		Args:          cobra.ExactArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(_ *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return outcome.Errorf(outcome.InvalidArguments, "--output is %q: use text or json", output)
			}
			return verify(stdout, args[0], output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// notWholeError says why something is no whole list.
type notWholeError struct {
	path string
	err  error
}

func (e *notWholeError) Error() string {
	return fmt.Sprintf("%s is not a whole list: %v", e.path, e.err)
}
func (e *notWholeError) Unwrap() error { return e.err }

// verify prints the summary of the list at path, or says what is wrong with it.
func verify(stdout io.Writer, path, output string) (err error) {
	list, err := blocklist.Open(path)
	if err != nil {
		return &notWholeError{path: path, err: err}
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	s := summarize(list.Header(), list.Trailer())
	if output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	return s.print(stdout, path)
}

func summarize(h blocklist.Header, t blocklist.Trailer) summary {
	return summary{
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

func (s summary) print(w io.Writer, path string) error {
	base := "none"
	if s.BaseSnapshotHandle != "" {
		base = named(s.BaseSnapshot, s.BaseSnapshotHandle)
	}
	_, err := fmt.Fprintf(w, `%s is whole
  mode         %s
  target       %s/%s
  base         %s
  driver       %s
  capacity     %d bytes
  type         %s, granularity %d, merged %t
  entries      %d
  changed      %d bytes (%.2f%% of the capacity)
  list         %d bytes, %s
`, path, s.Mode, s.Namespace, named(s.TargetSnapshot, s.TargetSnapshotHandle), base, s.Driver, s.VolumeCapacityBytes,
		s.BlockMetadataType, s.GranularityBytes, s.Merged, s.EntryCount, s.ChangedBytes,
		100*float64(s.ChangedBytes)/float64(s.VolumeCapacityBytes), s.ListBytes, s.ListDigest)
	return err
}

func named(name, handle string) string {
	switch {
	case handle == "":
		return name
	case name == "":
		return "handle " + handle
	}
	return name + " (handle " + handle + ")"
}
