package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// sizeClass is a line of the histogram: the extents of at least FromBytes and less than twice that.
type sizeClass struct {
	FromBytes    int64 `json:"fromBytes"`
	EntryCount   int64 `json:"entryCount"`
	ChangedBytes int64 `json:"changedBytes"`
}

// information is what info prints of a list. Sizes are bytes.
type information struct {
	listops.Summary
	// Format is JSON or Binary, or Lister for the upstream lister's JSON.
	Format string `json:"format"`
	// ChangedShare is the part of the volume that is listed, from 0 to 1.
	ChangedShare  float64     `json:"changedShare"`
	RunCount      int64       `json:"runCount"`
	ShortestBytes int64       `json:"shortestBytes"`
	MeanBytes     int64       `json:"meanBytes"`
	LongestBytes  int64       `json:"longestBytes"`
	Histogram     []sizeClass `json:"histogram"`
}

func newInfoCommand(s Streams) *cobra.Command {
	var output string
	var foreign foreignFlags
	c := &cobra.Command{
		Use:   "info FILE|DEVICE|-",
		Short: "Print what a list is about: header, counts, share of the volume, histogram of the extents' sizes",
		Long: `Verifies a list and prints its header, its counts, its share of the volume and a histogram of the extents' sizes: how many
extents, and how many bytes in them, have at least a size and less than twice that. Runs are extents if adjacent ones are
counted as one.`,
		Example: `  kubectl cbr info changed-blocks.cbl
  kubectl cbr info changed-blocks.cbl -o json | jq .changedShare`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return info(c.Context(), s, output, foreign, args[0]) },
	}
	objectFlag(c, &output)
	foreign.register(c.Flags())
	return c
}

func info(ctx context.Context, s Streams, output string, foreign foreignFlags, path string) (err error) {
	in, err := openList(ctx, s, path, foreign)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	sizes, err := await(ctx, func() (listops.Sizes, error) { return listops.CountSizes(in.extents()) })
	if err != nil {
		return fmt.Errorf("read list %s: %w", in.name, err)
	}
	i := inform(in, sizes)
	return printObject(s.Out, output, i, func(w io.Writer) error { return i.print(w, in.name) })
}

func inform(in *input, sizes listops.Sizes) information {
	i := information{
		Summary: listops.Summarize(in.Header(), in.Trailer()), Format: string(in.Format()),
		RunCount: sizes.Runs, ShortestBytes: sizes.Shortest, LongestBytes: sizes.Longest, Histogram: []sizeClass{},
	}
	if in.foreign {
		// Size and digest are those of our copy.
		i.Format, i.ListBytes, i.ListDigest = "Lister", 0, ""
	}
	if !in.modeKnown {
		i.Mode = "unknown"
	}
	i.ChangedShare = float64(i.ChangedBytes) / float64(i.VolumeCapacityBytes)
	if i.EntryCount > 0 {
		i.MeanBytes = i.ChangedBytes / i.EntryCount
	}
	for n := range sizes.Entries {
		if sizes.Entries[n] > 0 {
			i.Histogram = append(i.Histogram, sizeClass{FromBytes: 1 << n, EntryCount: sizes.Entries[n], ChangedBytes: sizes.Bytes[n]})
		}
	}
	return i
}

// barWidth is the length of the longest bar of the histogram, in characters.
const barWidth = 30

func (i information) print(w io.Writer, name string) error {
	if _, err := fmt.Fprintf(w, "%s\n", name); err != nil {
		return err
	}
	if err := i.Summary.Print(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "  format       %s\n  runs         %d\n  extents      %s to %s, %s on average\n\n", i.Format, i.RunCount,
		human.Bytes(i.ShortestBytes), human.Bytes(i.LongestBytes), human.Bytes(i.MeanBytes))
	if err != nil || len(i.Histogram) == 0 {
		return err
	}
	most := int64(0)
	for _, c := range i.Histogram {
		most = max(most, c.ChangedBytes)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "  FROM\tENTRIES\tBYTES\tSHARE OF BYTES\t") // Flush returns the first error
	for _, c := range i.Histogram {
		bar := strings.Repeat("#", max(1, int(float64(barWidth)*float64(c.ChangedBytes)/float64(most))))
		_, _ = fmt.Fprintf(t, "  %s\t%d\t%s\t%.1f%%\t  %s\n", human.Bytes(c.FromBytes), c.EntryCount,
			human.Bytes(c.ChangedBytes), 100*float64(c.ChangedBytes)/float64(i.ChangedBytes), bar)
	}
	return t.Flush()
}
