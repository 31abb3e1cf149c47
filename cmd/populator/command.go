package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/version"
)

// newCommand returns the root command.
func newCommand(run func(*flags)) *cobra.Command {
	f := &flags{}
	c := &cobra.Command{
		Use:           "populator [flags]",
		Short:         "Write the list of a snapshot's changed or allocated blocks to a volume or to standard output",
		Long:          longHelp,
		Example:       exampleHelp,
		Version:       version.Get().String(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		Run:           func(c *cobra.Command, _ []string) { f.note(c); run(f) },
	}
	f.register(c.Flags())
	c.CompletionOptions.DisableDefaultCmd = true
	return c
}

var longHelp = `Populator reads the metadata of a snapshot from its CSI driver's SnapshotMetadata service and writes the list of the
blocks that changed since a base snapshot, or of all allocated blocks. The list is complete or it is not there: an
interrupted stream is continued where it broke off, every promise of the protocol is checked, and a file or device is
committed last.

Exit codes, with the reason in the termination message:
` + exitCodes()

const exampleHelp = `  # what changed since snap-1, into the folder /target
  populator --namespace=demo --snapshot=snap-2 --base-snapshot-handle=HANDLE \
    --address=service.ns.svc:6443 --ca-file=ca.crt --token-file=token --output=/target

  # all allocated blocks as Binary, in steps of 64 KiB, on standard output
  populator --namespace=demo --snapshot=snap-2 --address=service.ns.svc:6443 --ca-file=ca.crt --token-file=token \
    --format=Binary --granularity-bytes=65536 --output=- > list.cbl

  # is this list whole?
  populator verify /target/changed-blocks.json`

func exitCodes() string {
	reasons := outcome.Reasons()
	slices.SortFunc(reasons, func(a, b outcome.Reason) int { return a.ExitCode() - b.ExitCode() })
	var b strings.Builder // which never fails
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range reasons {
		_, _ = fmt.Fprintf(w, "  %d\t%s\t%s\n", r.ExitCode(), r, r.Class())
	}
	_ = w.Flush()
	return strings.TrimRight(b.String(), "\n")
}
