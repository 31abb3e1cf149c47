package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/internal/convert"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// setOptions are the flags of diff and union.
type setOptions struct {
	list    listFlags
	foreign foreignFlags
	force   bool
}

func (o *setOptions) register(c *cobra.Command, force string) {
	o.list.register(c)
	o.foreign.register(c.Flags())
	c.Flags().BoolVar(&o.force, "force", false, force)
}

func newDiffCommand(s Streams) *cobra.Command {
	var o setOptions
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Print what list A has and list B has not",
		Long: `Prints the bytes that list A has and list B has not, in any format of cat, with adjacent extents merged. Both lists are
verified first. Lists of different volumes (driver and capacity must be the same) are refused before anything is written.

In json and cbl the target's name says that the list is a difference, and there is no target handle.`,
		Example: `  # which allocated blocks did not change?
  kubectl cbr diff allocated.cbl delta.cbl -o tsv

  # is everything that the first list has in the second, too? (prints nothing)
  kubectl cbr diff a.json b.json -o tsv`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error { return o.combine(c.Context(), s, args, o.difference) },
	}
	o.register(c, "accept lists that seem to be of different volumes")
	return c
}

// combine opens and verifies the lists at paths, and writes what of makes of them.
func (o setOptions) combine(ctx context.Context, s Streams, paths []string, of func(inputs []*input) (convert.List, error)) (err error) {
	if err := o.list.check(); err != nil {
		return err
	}
	if err := checkStdin(paths); err != nil {
		return err
	}
	if err := o.list.checkModes(ctx, &s, o.foreign, paths...); err != nil {
		return err
	}
	inputs, err := openLists(ctx, s, paths, o.foreign)
	defer func() { err = errors.Join(err, closeLists(inputs)) }()
	if err != nil {
		return err
	}
	list, err := of(inputs)
	if err != nil {
		return err
	}
	return o.list.write(ctx, s, list, inputs...)
}

func (o setOptions) difference(inputs []*input) (convert.List, error) {
	if err := listops.SameVolume(named(inputs)); err != nil && !o.force {
		return convert.List{}, fmt.Errorf("%w (--force computes it nevertheless)", err)
	}
	a, b := inputs[0], inputs[1]
	list := convert.List{
		Header:  listops.Part(listops.Combined(a.Header()), fmt.Sprintf("without what %s has", b.Header().TargetSnapshot)),
		Extents: func() listops.Extents { return listops.Difference(a.extents(), b.extents()) },
	}
	list.Header.GranularityBytes = min(list.Header.GranularityBytes, b.Header().GranularityBytes)
	return list, nil
}

func newUnionCommand(s Streams) *cobra.Command {
	var o setOptions
	c := &cobra.Command{
		Use:   "union A B...",
		Short: "Print what any of the lists has: an increment against an older base from the increments since then",
		Long: `Prints the bytes that any of the lists has, in any format of cat, with adjacent extents merged. The union of increments that
follow each other is the increment from the first one's base to the last one's target: give them in their order. If the
first one lists allocated blocks, the union lists all allocated blocks of the last target, and perhaps some that it has no
more.

All lists are verified first. Lists of different volumes (driver and capacity must be the same), and lists of which one
does not begin at the snapshot at which the one before it ends, are refused before anything is written. So is a list of
allocated blocks behind the first: it lacks what was freed since its base.`,
		Example: `  # from Monday to Thursday
  kubectl cbr union mon-tue.cbl tue-wed.cbl wed-thu.cbl -o cbl --out mon-thu.cbl`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error { return o.combine(c.Context(), s, args, o.union) },
	}
	o.register(c, "accept lists that do not follow each other or seem to be of different volumes; the union then has no target handle")
	return c
}

func (o setOptions) union(inputs []*input) (convert.List, error) {
	headers := named(inputs)
	unfit := listops.SameVolume(headers)
	if unfit == nil {
		unfit = listops.Chained(headers)
	}
	if unfit != nil && !o.force {
		return convert.List{}, fmt.Errorf("%w (give increments in their order; --force computes the union nevertheless)", unfit)
	}
	list := convert.List{Header: listops.UnionHeader(headers)}
	if unfit != nil {
		list.Header = listops.Part(list.Header, fmt.Sprintf("union of %d lists that do not follow each other", len(inputs)))
	}
	list.Extents = func() listops.Extents {
		all := make([]listops.Extents, 0, len(inputs))
		for _, in := range inputs {
			all = append(all, in.extents())
		}
		return listops.Union(all...)
	}
	return list, nil
}

// checkStdin refuses standard input as more than one list.
func checkStdin(paths []string) error {
	stdin := 0
	for _, path := range paths {
		if path == "-" {
			stdin++
		}
	}
	if stdin > 1 {
		return usagef("standard input can be one list only")
	}
	return nil
}

// openLists opens all lists. Those that are open when one fails are returned with the error.
func openLists(ctx context.Context, s Streams, paths []string, o foreignFlags) ([]*input, error) {
	var inputs []*input
	for _, path := range paths {
		in, err := openList(ctx, s, path, o)
		if err != nil {
			return inputs, err
		}
		inputs = append(inputs, in)
	}
	return inputs, nil
}

func closeLists(inputs []*input) error {
	var errs []error
	for _, in := range inputs {
		errs = append(errs, in.Close())
	}
	return errors.Join(errs...)
}

func named(inputs []*input) []listops.Named {
	var headers []listops.Named
	for _, in := range inputs {
		headers = append(headers, listops.Named{Name: in.name, Header: in.Header()})
	}
	return headers
}
