package populate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/sink"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// The values of Options.WhenDeltaUnavailable.
const (
	Fail         = "Fail"
	UseAllocated = "UseAllocated"
)

// Stdout is the Options.Output that means standard output.
const Stdout = "-"

// Options are the populator's flags. Sizes are bytes.
type Options struct {
	Namespace, Snapshot, SnapshotHandle    string
	BaseSnapshot, BaseSnapshotHandle       string
	Driver                                 string
	EndpointDir                            string
	Address, CAFile                        string
	ServerName                             string
	TokenFile                              string
	Format                                 blocklist.Format
	Output                                 string
	MaxSizeBytes, GranularityBytes         int64
	MergeExtents                           bool
	WhenDeltaUnavailable                   string
	BaseRestoreSizeBytes, RestoreSizeBytes int64
	MaxResults                             int64
	// Streams is the largest number of streams that are read at once, and StreamsAfter the time before there is a second.
	Streams      int
	StreamsAfter time.Duration
	Timing       snapmeta.Timing
	// ProgressAddress is host:port to listen on for those who ask how far the population is; empty: nobody can.
	ProgressAddress string

	// report is told the progress after every message; nil: nobody listens.
	report func(outcome.Progress)
}

// maxStreams keeps a mistyped number from opening hundreds of connections.
const maxStreams = 16

// minGranularity is a sector, the smallest unit in which volumes change.
const minGranularity = 512

// Validate says in a sentence what is wrong with the options and what to do.
func (o *Options) Validate() error {
	for _, check := range []func() error{o.checkNames, o.checkEndpoint, o.checkFormat, o.checkNumbers} {
		if err := check(); err != nil {
			return &outcome.Error{Reason: outcome.InvalidArguments, Message: err.Error(), Err: err}
		}
	}
	return nil
}

func (o *Options) checkNames() error {
	switch {
	case o.Namespace == "":
		return errors.New("--namespace is missing: give the namespace of the VolumeSnapshot")
	case o.Snapshot == "":
		return errors.New("--snapshot is missing: give the name of the VolumeSnapshot to list")
	case o.BaseSnapshot != "" && o.BaseSnapshotHandle == "":
		return errors.New("--base-snapshot is set but --base-snapshot-handle is not: services know the base by its CSI handle only; give it too, or leave both out to list all allocated blocks")
	case o.WhenDeltaUnavailable != Fail && o.WhenDeltaUnavailable != UseAllocated:
		return fmt.Errorf("--when-delta-unavailable is %q: use %s or %s", o.WhenDeltaUnavailable, Fail, UseAllocated)
	}
	return nil
}

func (o *Options) checkEndpoint() error {
	switch {
	case o.EndpointDir != "" && (o.Address != "" || o.CAFile != ""):
		return errors.New("--endpoint-dir excludes --address and --ca-file: use one or the other")
	case o.EndpointDir == "" && o.Address == "" && o.CAFile == "":
		return errors.New("the service is missing: give --endpoint-dir, or --address and --ca-file")
	case o.EndpointDir == "" && o.Address == "":
		return errors.New("--address is missing: --ca-file needs it")
	case o.EndpointDir == "" && o.CAFile == "":
		return errors.New("--ca-file is missing: --address needs it")
	case o.TokenFile == "":
		return errors.New("--token-file is missing: give a file with a service account token of the service's audience")
	}
	if o.Address != "" {
		if err := snapmeta.CheckAddress(o.Address); err != nil {
			return fmt.Errorf("--address: %w", err)
		}
	}
	if o.ProgressAddress != "" {
		if _, _, err := net.SplitHostPort(o.ProgressAddress); err != nil {
			return fmt.Errorf("--progress-address: %w; give host:port or :port", err)
		}
	}
	for _, f := range []struct{ flag, path string }{
		{"--endpoint-dir", o.EndpointDir}, {"--ca-file", o.CAFile}, {"--token-file", o.TokenFile},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return fmt.Errorf("%s: %w; give an existing path", f.flag, err)
		}
	}
	return nil
}

func (o *Options) checkFormat() error {
	switch {
	case o.Format != blocklist.JSON && o.Format != blocklist.Binary:
		return fmt.Errorf("--format is %q: use %s or %s", o.Format, blocklist.JSON, blocklist.Binary)
	case o.Output == "":
		return errors.New("--output is missing: give a folder, a block device, or - for standard output")
	case o.Output == Stdout:
		return nil
	}
	info, err := os.Stat(o.Output)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
		// The volume does not answer. To open it fails as well, with a reason that is no fault of the command line.
		return nil
	case err != nil:
		return fmt.Errorf("--output: %w; give an existing folder, a block device, or - for standard output", err)
	}
	return o.checkOutput(info)
}

// checkOutput says what is wrong with an output that is there. Which claim a populator gets is up to others than who chose the format, so
// this speaks to both.
func (o *Options) checkOutput(info os.FileInfo) error {
	switch {
	case info.IsDir():
		return nil
	case !isBlockDevice(info):
		return fmt.Errorf("--output %s is neither a folder nor a block device: give one of these, or - for standard output", o.Output)
	case o.Format != blocklist.Binary:
		return fmt.Errorf("--output %s is a block device, which takes --format %s only: a claim with volumeMode Block needs a new ChangedBlockRange with format %[2]s, or make it one with volumeMode Filesystem", o.Output, blocklist.Binary)
	}
	return nil
}

func isBlockDevice(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

func (o *Options) checkNumbers() error {
	for _, n := range []struct {
		flag  string
		value int64
	}{
		{"--max-size-bytes", o.MaxSizeBytes},
		{"--granularity-bytes", o.GranularityBytes},
		{"--base-restore-size-bytes", o.BaseRestoreSizeBytes},
		{"--restore-size-bytes", o.RestoreSizeBytes},
		{"--max-results", o.MaxResults},
		{"--max-attempts", int64(o.Timing.MaxAttempts)},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s is %d: give 0 for the default, or a positive number", n.flag, n.value)
		}
	}
	if g := o.GranularityBytes; g != 0 && (g < minGranularity || g&(g-1) != 0) {
		return fmt.Errorf("--granularity-bytes is %d: give a power of two of at least %d, such as 65536", g, minGranularity)
	}
	if o.Streams < 1 || o.Streams > maxStreams {
		return fmt.Errorf("--streams is %d: give 1 to read one stream, or at most %d", o.Streams, maxStreams)
	}
	if o.StreamsAfter < 0 {
		return fmt.Errorf("--streams-after is %s: give 0 to begin with all streams, or a duration such as 1.5s", o.StreamsAfter)
	}
	if o.MaxResults > math.MaxInt32 {
		return fmt.Errorf("--max-results is %d: give at most %d", o.MaxResults, math.MaxInt32)
	}
	return nil
}

// header returns the header of the list of a stream of which info is known.
func (o *Options) header(info snapmeta.Info) blocklist.Header {
	capacity := info.CapacityBytes
	if capacity == 0 {
		// A stream without any message: the list is empty and the volume at least as large as its snapshot.
		capacity = max(o.RestoreSizeBytes, o.BaseRestoreSizeBytes)
	}
	return blocklist.Header{
		Mode:                   info.Mode,
		Driver:                 o.Driver,
		Namespace:              o.Namespace,
		BaseSnapshot:           o.BaseSnapshot,
		BaseSnapshotHandle:     o.BaseSnapshotHandle,
		TargetSnapshot:         o.Snapshot,
		TargetSnapshotHandle:   o.SnapshotHandle,
		VolumeCapacityBytes:    capacity,
		BaseRestoreSizeBytes:   o.BaseRestoreSizeBytes,
		TargetRestoreSizeBytes: o.RestoreSizeBytes,
		BlockMetadataType:      info.BlockMetadataType,
		GranularityBytes:       o.GranularityBytes,
		// Rounded extents overlap, so they are merged in any case.
		Merged: o.MergeExtents || o.GranularityBytes > 0,
	}
}

// Run validates the options, cleans the output and populates it. The result is filled in also when it returns an error,
// always an *outcome.Error. stdout is used if the output is Stdout.
func Run(ctx context.Context, o *Options, stdout io.Writer, log *slog.Logger) (outcome.Result, error) {
	if err := o.Validate(); err != nil {
		return outcome.Result{}, err
	}
	endpoint := snapmeta.EndpointDir(o.EndpointDir, o.ServerName)
	if o.EndpointDir == "" {
		endpoint = snapmeta.EndpointFlags(o.Address, o.CAFile, o.ServerName)
	}
	stream, err := snapmeta.New(snapmeta.Config{
		Request: snapmeta.Request{
			Namespace:    o.Namespace,
			Target:       o.Snapshot,
			BaseHandle:   o.BaseSnapshotHandle,
			MaxResults:   int32(o.MaxResults),
			UseAllocated: o.WhenDeltaUnavailable == UseAllocated,
		},
		Endpoint:     endpoint,
		Token:        snapmeta.TokenFile(o.TokenFile),
		Streams:      o.Streams,
		StreamsAfter: o.StreamsAfter,
		Timing:       o.Timing,
		Log:          log,
	})
	if err != nil {
		return outcome.Result{}, outcome.Errorf(outcome.InvalidArguments, "%w", err)
	}
	defer stream.Close()
	out, err := o.open(stdout)
	if err != nil {
		return outcome.Result{}, openError(o.Output, err)
	}
	listened := *o
	if o.ProgressAddress != "" {
		progress := startProgress(ctx, o.ProgressAddress, log)
		defer progress.stop()
		listened.report = progress.tell
	}
	result, err := run(ctx, stream, out, &listened, log)
	result.Fallback = stream.Fallback()
	return result, err
}

// open makes the output ready for a new list.
func (o *Options) open(stdout io.Writer) (sink.Sink, error) {
	if o.Output == Stdout {
		return sink.NewStream(stdout), nil
	}
	info, err := os.Stat(o.Output)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return sink.NewFile(o.Output, blocklist.FileName(o.Format))
	}
	return sink.NewDevice(o.Output, blocklist.DeviceRecord)
}

func openError(output string, err error) error {
	var full *sink.FullError
	if errors.As(err, &full) {
		return outcome.Errorf(outcome.VolumeFull, "%w; use a larger volume", err)
	}
	return outcome.Errorf(outcome.OutputFailed, "prepare the output %s: %w", output, err)
}
