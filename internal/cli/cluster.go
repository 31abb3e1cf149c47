package cli

import (
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

// newClusterCommands returns the commands that talk to a cluster.
func newClusterCommands(s Streams) []*cobra.Command {
	return []*cobra.Command{newCreateCommand(s), newListCommand(s), newDescribeCommand(s), newPreviewCommand(s)}
}

// byteCount is a flag for a number of bytes: digits, or a Kubernetes quantity such as 64Ki.
type byteCount int64

// Set implements pflag.Value.
func (b *byteCount) Set(text string) error {
	n, err := parseBytes(text)
	if err != nil {
		return err
	}
	*b = byteCount(n)
	return nil
}

// String implements pflag.Value.
func (b *byteCount) String() string { return strconv.FormatInt(int64(*b), 10) }

// Type implements pflag.Value.
func (b *byteCount) Type() string { return "bytes" }

// pointer returns the number for an optional field: nil unless the flag was given.
func (b *byteCount) pointer(s *pflag.FlagSet, name string) *int64 {
	if !s.Changed(name) {
		return nil
	}
	n := int64(*b)
	return &n
}

// specFlags are the flags that become the spec of a ChangedBlockRange.
type specFlags struct {
	from, fromHandle, to string
	format, fallback     string
	granularity, maxSize byteCount
	merge                bool
}

// registerQuestion adds the flags that say what is listed.
func (f *specFlags) registerQuestion(s *pflag.FlagSet) {
	s.StringVar(&f.from, "from", "", "base VolumeSnapshot; without a base, the allocated blocks of the target")
	s.StringVar(&f.fromHandle, "from-handle", "", "base as the driver's snapshot handle or change ID, if its VolumeSnapshot is gone")
	s.StringVar(&f.to, "to", "", "target VolumeSnapshot")
	s.Var(&f.granularity, "granularity", "round extents outwards to this power of two from 512, such as 64Ki, and merge them")
	s.BoolVar(&f.merge, "merge", false, "merge adjacent extents (default: for Binary)")
	s.StringVar(&f.fallback, "when-delta-unavailable", "", "Fail (the default), or UseAllocated to list all allocated blocks instead")
}

// registerList adds the flags that say how the list is written.
func (f *specFlags) registerList(s *pflag.FlagSet) {
	s.StringVar(&f.format, "format", "", "JSON (the default) or Binary; a claim with --volume-mode Block needs Binary")
	s.Var(&f.maxSize, "max-size", "largest list, such as 100Mi; a larger one fails")
}

func (f *specFlags) spec(s *pflag.FlagSet) v1alpha1.ChangedBlockRangeSpec {
	spec := v1alpha1.ChangedBlockRangeSpec{
		FromVolumeSnapshotName: f.from,
		FromSnapshotHandle:     f.fromHandle,
		ToVolumeSnapshotName:   f.to,
		Format:                 v1alpha1.ListFormat(f.format),
		MaxSizeInBytes:         f.maxSize.pointer(s, "max-size"),
		GranularityBytes:       f.granularity.pointer(s, "granularity"),
		WhenDeltaUnavailable:   v1alpha1.DeltaFallback(f.fallback),
	}
	if s.Changed("merge") {
		spec.MergeExtents = &f.merge
	}
	return spec
}

// registerService adds the flags for the driver's metadata service.
func registerService(s *pflag.FlagSet, f *kubeaccess.ServiceFlags) {
	s.StringVar(&f.ServiceAccount, "service-account", "", "NAME or NAMESPACE/NAME whose token the metadata service is shown (default: your own if you are one, else \"default\")")
	s.StringVar(&f.TokenFile, "token-file", "", "file with a token for the service's audience, instead of one made for --service-account")
	s.StringVar(&f.Address, "address", "", "host:port at which the metadata service is reached instead, such as a forwarded port")
	s.StringVar(&f.ServerName, "server-name", "", "name expected in the service's certificate (default: the host of its own address)")
	s.StringVar(&f.CAFile, "ca-file", "", "PEM bundle for the service's certificate (default: the SnapshotMetadataService's)")
}

// completeRanges completes the first argument with the names of ChangedBlockRanges.
func completeRanges(flags *kubeaccess.Flags) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a, err := flags.Connect(c.ErrOrStderr())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ranges, err := a.Ranges(c.Context(), a.Namespace, nil, nil)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for i := range ranges {
			names = append(names, ranges[i].Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
