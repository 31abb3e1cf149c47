package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/convert"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// previewOptions are the flags of preview.
type previewOptions struct {
	cluster kubeaccess.Flags
	service kubeaccess.ServiceFlags
	spec    specFlags
	page    page
	format  string
}

func newPreviewCommand(s Streams) *cobra.Command {
	var o previewOptions
	c := &cobra.Command{
		Use:   "preview NAME | --to SNAPSHOT [--from SNAPSHOT | --from-handle HANDLE]",
		Short: "Print the list straight from the driver, without a claim",
		Long: `Preview asks the driver's snapshot metadata service for the list that a claim of a ChangedBlockRange would be populated
with, and prints it. It makes no object. The service is shown a token of a service account that you choose; it asks the
API server whether that account may get VolumeSnapshots in the namespace.

Without --offset, --limit and their like the output is the whole list; as json (cbl for format Binary) it has the same
bytes as the populated one. A page of it is no list: as json it has no trailer, and readers of lists refuse it. Pages come as
json, ndjson, tsv or table; what the other formats say is taken for a whole list. They are cut by the command, so a late one
costs as much as all before it.`,
		Example: `  # the changes of a ChangedBlockRange, as a list
  kubectl cbr preview monday-to-tuesday > changed-blocks.json

  # the first 256 of the changes between two snapshots, then the next 256
  kubectl cbr preview --from monday --to tuesday --limit 256
  kubectl cbr preview --from monday --to tuesday --limit 256 --offset 256

  # what is allocated in the second GiB, from outside the cluster
  kubectl -n csi port-forward service/snapshot-metadata 6443:6443 &
  kubectl cbr preview --to monday --offset-bytes 1Gi --limit-bytes 1Gi -o tsv --address 127.0.0.1:6443`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeRanges(&o.cluster),
		RunE: func(c *cobra.Command, args []string) error {
			return preview(c.Context(), s, &o, c.Flags(), args)
		},
	}
	o.spec.registerQuestion(c.Flags())
	o.page.register(c.Flags())
	c.Flags().StringVarP(&o.format, "output", "o", string(convert.JSON), "format: "+strings.Join(previewFormats(), ", "))
	completeValues(c, "output", previewFormats())
	registerService(c.Flags(), &o.service)
	o.cluster.Register(c.Flags())
	c.MarkFlagsMutuallyExclusive("from", "from-handle")
	return c
}

// previewFormats are those that can be written from a stream.
func previewFormats() []string {
	return slices.DeleteFunc(convert.Formats(), func(f string) bool { return !convert.Format(f).Streams() })
}

// pageFormats are those of which a part is not taken for the whole: our own commands take the lister's JSON for a list.
var pageFormats = []convert.Format{convert.JSON, convert.NDJSON, convert.TSV, convert.Table}

// questionFlags say what is listed; a NAME says it already.
var questionFlags = []string{"from", "from-handle", "to", "granularity", "merge", "when-delta-unavailable"}

func (o *previewOptions) check(s *pflag.FlagSet, args []string) (convert.Format, error) {
	format, err := convert.ParseFormat(o.format)
	switch {
	case err != nil:
		return "", usagef("--output: %v", err)
	case !format.Streams():
		return "", usagef("--output %s needs the whole list twice: save it with -o cbl, then use %s cat", format, pluginName)
	case !o.page.whole() && !slices.Contains(pageFormats, format):
		return "", usagef("--output %s is for whole lists: leave out --offset, --limit, --offset-bytes and --limit-bytes, or use another format", format)
	case len(args) == 0 && o.spec.to == "":
		return "", usagef("name a ChangedBlockRange, or the target snapshot with --to")
	}
	for _, name := range questionFlags {
		if len(args) > 0 && s.Changed(name) {
			return "", usagef("--%s and the ChangedBlockRange %s both say what to list: leave one out", name, args[0])
		}
	}
	return format, o.page.check()
}

func preview(ctx context.Context, s Streams, o *previewOptions, flags *pflag.FlagSet, args []string) error {
	format, err := o.check(flags, args)
	if err != nil {
		return err
	}
	access, err := o.cluster.Connect(s.Err)
	if err != nil {
		return err
	}
	spec := o.spec.spec(flags)
	var facts kubeaccess.Facts
	known := false
	if len(args) > 0 {
		cbr, err := access.ReadRange(ctx, args[0])
		if err != nil {
			return err
		}
		spec = cbr.Spec
		// What the controller found spares the right to read VolumeSnapshotContents.
		facts, known = kubeaccess.FactsOf(cbr)
	}
	if !known {
		if facts, err = access.Find(ctx, access.Namespace, &spec); err != nil {
			return err
		}
	}
	if len(args) == 0 && format == convert.CBL {
		// It decides over the default of --merge.
		spec.Format = v1alpha1.FormatBinary
	}
	list, err := openListing(ctx, access, o.service, &spec, facts, s.Err)
	if err != nil {
		return err
	}
	defer list.close()
	return o.print(ctx, s, format, list)
}

// print writes the list, or the page of it that was asked for.
func (o *previewOptions) print(ctx context.Context, s Streams, format convert.Format, list *listing) error {
	if why := list.stream.Fallback(); why != "" {
		_, _ = fmt.Fprintf(s.Err, "The delta is unavailable because %s; these are all allocated blocks instead, as --when-delta-unavailable asks.\n", why)
	}
	if o.page.whole() {
		return convert.Write(ctx, s.Out, format, convert.List{Header: list.header, Extents: func() listops.Extents { return list.extents }})
	}
	extents := o.page.of(list.extents)
	if format == convert.JSON {
		return o.page.writeJSON(s.Out, list.header, extents)
	}
	if err := convert.Write(ctx, s.Out, format, convert.List{Header: list.header, Extents: func() listops.Extents { return extents }}); err != nil {
		return err
	}
	if o.page.more {
		_, _ = fmt.Fprintf(s.Err, "More entries follow: --offset %d\n", o.page.next())
	}
	return nil
}
