package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/internal/listops"
)

func newVerifyCommand(s Streams) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "verify FILE|DEVICE|-",
		Short: "Read a whole list and check everything about it; the exit code is 0 only if it is whole",
		Long: `Reads a whole list, checks everything about it (order and bounds of the extents, counts, checksums, digest, end) and prints
its summary. The exit code is 0 only if the list is whole.

The JSON of the upstream lister cannot be verified: it has no count and no checksum.`,
		Example: `  kubectl cbr verify /mnt/changes/changed-blocks.json && echo whole`,
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return verify(c.Context(), s, output, args[0]) },
	}
	objectFlag(c, &output)
	return c
}

func verify(ctx context.Context, s Streams, output, path string) (err error) {
	in, err := openList(ctx, s, path, foreignFlags{})
	if err != nil {
		return fmt.Errorf("this is not a whole list: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	if in.foreign {
		return fmt.Errorf("%s is the upstream lister's JSON, which has no count and no checksum: it may be whole, but nothing shows it", in.name)
	}
	summary := listops.Summarize(in.Header(), in.Trailer())
	return printObject(s.Out, output, summary, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s is whole\n", in.name)
		return errors.Join(err, summary.Print(w))
	})
}
