package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/populate"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

const defaultTermination = "/dev/termination-log"

// flags are the flags of the default command.
type flags struct {
	options          populate.Options
	format           string
	mergeGiven       bool
	termination      string
	terminationGiven bool
}

func (f *flags) register(s *pflag.FlagSet) {
	o, t := &f.options, &f.options.Timing
	s.SortFlags = false
	s.StringVar(&o.Namespace, "namespace", "", "namespace of the VolumeSnapshots (required)")
	s.StringVar(&o.Snapshot, "snapshot", "", "name of the target VolumeSnapshot (required)")
	s.StringVar(&o.SnapshotHandle, "snapshot-handle", "", "its CSI handle, recorded in the list's header")
	s.StringVar(&o.BaseSnapshot, "base-snapshot", "", "name of the base VolumeSnapshot, recorded only")
	s.StringVar(&o.BaseSnapshotHandle, "base-snapshot-handle", "", "CSI handle of the base; without it all allocated blocks are listed")
	s.StringVar(&o.Driver, "driver", "", "name of the CSI driver, recorded only")
	s.StringVar(&o.EndpointDir, "endpoint-dir", "", "folder with the files address (host:port) and ca.crt (PEM), read afresh for every attempt")
	s.StringVar(&o.Address, "address", "", "host:port of the SnapshotMetadata service, instead of --endpoint-dir")
	s.StringVar(&o.CAFile, "ca-file", "", "PEM bundle that its certificate is checked against, with --address")
	s.StringVar(&o.ServerName, "server-name", "", "name expected in its certificate (default: the address's host)")
	s.StringVar(&o.TokenFile, "token-file", "", "file with a service account token of the service's audience, read afresh for every call (required)")
	s.StringVar(&f.format, "format", string(blocklist.JSON), "JSON or Binary")
	s.StringVar(&o.Output, "output", "", "a folder, a block device (Binary only), or - for standard output (required)")
	s.Int64Var(&o.MaxSizeBytes, "max-size-bytes", 0, "largest list; a larger one fails (0: no bound)")
	s.Int64Var(&o.GranularityBytes, "granularity-bytes", 0, "power of two from 512; extents are rounded outwards to it and merged (0: as the driver sends them)")
	s.BoolVar(&o.MergeExtents, "merge-extents", false, "merge adjacent extents (default: true for Binary, false for JSON)")
	s.StringVar(&o.WhenDeltaUnavailable, "when-delta-unavailable", populate.Fail, "Fail, or UseAllocated to list all allocated blocks instead")
	s.Int64Var(&o.BaseRestoreSizeBytes, "base-restore-size-bytes", 0, "restore size of the base, recorded")
	s.Int64Var(&o.RestoreSizeBytes, "restore-size-bytes", 0, "restore size of the target, recorded; the capacity of a list whose stream had no message")
	s.Int64Var(&o.MaxResults, "max-results", snapmeta.DefaultMaxResults, "extents a message to ask for (0: the driver's choice)")
	s.IntVar(&o.Streams, "streams", snapmeta.DefaultStreams, "streams that may be read at once, from different offsets; 1: only one")
	s.DurationVar(&o.StreamsAfter, "streams-after", snapmeta.DefaultStreamsAfter, "how long a list must have been read by one stream before another is added; 0: begin with all")
	s.IntVar(&t.MaxAttempts, "max-attempts", snapmeta.DefaultMaxAttempts, "failures in a row, without progress between them, before giving up")
	s.DurationVar(&t.FirstBackoff, "backoff-min", snapmeta.DefaultFirstBackoff, "wait after the first failure; it doubles with each")
	s.DurationVar(&t.LongestBackoff, "backoff-max", snapmeta.DefaultLongestBackoff, "longest wait between attempts")
	s.DurationVar(&t.ConnectTimeout, "connect-timeout", snapmeta.DefaultConnectTimeout, "bound on connecting and the TLS handshake")
	s.DurationVar(&t.ProbeAfter, "probe-after", snapmeta.DefaultProbeAfter, "silence after which the service is asked for a sign of life")
	s.DurationVar(&t.ProbeTimeout, "probe-timeout", snapmeta.DefaultProbeTimeout, "bound on its answer")
	s.DurationVar(&t.StallTimeout, "stall-timeout", snapmeta.DefaultStallTimeout, "silence after which a stream of a living service is given up and continued by another")
	s.DurationVar(&t.EndGrace, "end-grace", snapmeta.DefaultEndGrace, "wait for the end of a stream that has reached the volume's end")
	s.DurationVar(&t.SuspectAfter, "suspect-after", snapmeta.DefaultSuspectAfter, "duration from which a call that ends without an extent is doubted once")
	s.StringVar(&o.ProgressAddress, "progress-address", "", "host:port or :port to answer GET /progress on, with JSON over plain HTTP; empty: none")
	s.StringVar(&f.termination, "termination-message", defaultTermination, "file for the result as JSON; empty: none")
}

// note takes down which flags were given.
func (f *flags) note(c *cobra.Command) {
	f.mergeGiven = c.Flags().Changed("merge-extents")
	f.terminationGiven = c.Flags().Changed("termination-message")
}

// resolve returns the options with their dependent defaults.
func (f *flags) resolve() *populate.Options {
	o := f.options
	o.Format = blocklist.Format(f.format)
	if !f.mergeGiven {
		o.MergeExtents = o.Format == blocklist.Binary
	}
	return &o
}

// terminationFlag finds --termination-message in a command line that did not parse.
func terminationFlag(args []string) (path string, given bool) {
	const name = "--termination-message"
	path = defaultTermination
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			path, given = value, true
		} else if arg == name && i+1 < len(args) {
			path, given = args[i+1], true
		}
	}
	return path, given
}
