package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/internal/convert"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// sliceOptions are the flags of slice.
type sliceOptions struct {
	list    listFlags
	foreign foreignFlags
	workers int
	worker  int
	dir     string
	align   byteCount
}

// maxWorkers bounds the number of files that one command writes.
const maxWorkers = 100_000

func newSliceCommand(s Streams) *cobra.Command {
	var o sliceOptions
	c := &cobra.Command{
		Use:   "slice FILE|DEVICE|- --workers N {--worker I | --dir FOLDER}",
		Short: "Divide a list among workers",
		Long: `Divides a list among workers, by changed bytes: prints the slice of one worker, or writes all slices into a new folder. A
worker's share ends at a multiple of --align, also inside an extent, so that the shares are equal even if the list is one
long extent, and no aligned block is in two of them. The slices depend on the list and the flags alone, so every worker of a
Job can compute its own.

With --dir, the folder must not exist. It appears with all slices in it, or not at all; they are named 0, 1, ... with the
format as extension.`,
		Example: `  # in a pod of an Indexed Job with four completions
  kubectl cbr slice /mnt/changes/changed-blocks.cbl --workers 4 --worker "$JOB_COMPLETION_INDEX" -o tsv

  # all four as files
  kubectl cbr slice changed-blocks.cbl --workers 4 --dir slices -o cbl`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return slice(c.Context(), s, o, args[0]) },
	}
	o.list.register(c)
	o.foreign.register(c.Flags())
	f := c.Flags()
	f.IntVar(&o.workers, "workers", 0, "number of slices (required)")
	f.IntVar(&o.worker, "worker", 0, "print the slice of this worker, from 0 on")
	f.StringVar(&o.dir, "dir", "", "write all slices into this new folder")
	o.align = 4096
	f.Var(&o.align, "align", "power of two at whose multiples slices begin and end")
	c.MarkFlagsMutuallyExclusive("worker", "dir")
	c.MarkFlagsOneRequired("worker", "dir")
	c.MarkFlagsMutuallyExclusive("out", "dir")
	return c
}

func slice(ctx context.Context, s Streams, o sliceOptions, path string) (err error) {
	if err := o.list.check(); err != nil {
		return err
	}
	align := int64(o.align)
	switch {
	case align == 0 || align&(align-1) != 0:
		return usagef("--align is %d: it is a power of two", align)
	case o.workers < 1 || o.workers > maxWorkers:
		return usagef("--workers is %d: it is from 1 to %d", o.workers, maxWorkers)
	case o.worker < 0 || o.worker >= o.workers:
		return usagef("--worker is %d: it is from 0 to %d with --workers %d", o.worker, o.workers-1, o.workers)
	}
	if err := o.list.checkModes(ctx, &s, o.foreign, path); err != nil {
		return err
	}
	in, err := openList(ctx, s, path, o.foreign)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	ranges, err := await(ctx, func() ([]listops.Range, error) {
		return listops.Slices(in.extents(), in.Trailer().ChangedBytes, o.workers, align)
	})
	if err != nil {
		return fmt.Errorf("read list %s: %w", in.name, err)
	}
	part := func(worker int) convert.List { return sliceOf(in, ranges, worker, align) }
	if o.dir == "" {
		return o.list.write(ctx, s, part(o.worker), in)
	}
	return writeSlices(ctx, s, o, in, part)
}

// sliceOf returns the slice of one worker as a list of its own.
func sliceOf(in *input, ranges []listops.Range, worker int, align int64) convert.List {
	h := in.Header()
	if h.GranularityBytes > align {
		h.GranularityBytes = 0
	}
	r := ranges[worker]
	return convert.List{
		Header:  listops.Part(listops.Clipped(h), fmt.Sprintf("slice %d of %d", worker, len(ranges))),
		Extents: func() listops.Extents { return listops.Clip(listops.Of(in.From(r.From)), r) },
	}
}

// writeSlices writes all slices into a folder beside the one asked for, which then gets its name.
func writeSlices(ctx context.Context, s Streams, o sliceOptions, in *input, part func(worker int) convert.List) (err error) {
	dir := filepath.Clean(o.dir)
	if _, err := os.Lstat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("write slices: %s is there already: name a new folder", dir), err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-")
	if err != nil {
		return fmt.Errorf("write slices: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if err := os.Chmod(temp, 0o755); err != nil {
		return fmt.Errorf("write slices: %w", err)
	}
	for worker := range o.workers {
		o.list.file = filepath.Join(temp, fmt.Sprintf("%d.%s", worker, o.list.format))
		if err := o.list.write(ctx, s, part(worker), in); err != nil {
			return err
		}
	}
	if err := os.Rename(temp, dir); err != nil {
		return fmt.Errorf("write slices: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}
