package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cbt-populator/cbt-populator/internal/copier"
	"github.com/cbt-populator/cbt-populator/internal/human"
)

// applyOptions are the flags of apply.
type applyOptions struct {
	copier.Options
	shard  string
	quiet  bool
	output string
}

func newApplyCommand(s Streams) *cobra.Command {
	var o applyOptions
	c := &cobra.Command{
		Use:   "apply --list FILE|DEVICE --source FILE|DEVICE --target FILE|DEVICE",
		Short: "Copy exactly the listed extents from one volume or image to another",
		Long: `Copies exactly the extents of a list from a volume or image to another. What is not listed is neither read nor
written. Nothing is written before the whole list was verified and everything that looks wrong was refused: a list of
another volume, a target that is too small, is mounted, is held by another program, or is the source.

A target that does not exist becomes a sparse file of the volume's size, which holds the listed data and nothing else: the
backup of an increment. To restore it, apply it with the same list to the volume. Zeros become holes, on devices too.

A journal beside the target (or --journal) remembers how far the copy came; the same command continues from there after
it was interrupted, killed or failed. It first reads the target up to there: if that is not what was copied, because the
target was emptied or written over meanwhile, the copy begins again. So it does without a journal, and whenever the journal
is about something else. The result is the same. Name one journal for a target, not one for each list.`,
		Example: `  # back up an increment into a sparse image
  kubectl cbr apply --list /lists/changed-blocks.cbl --source /dev/snapshot --target /backup/tuesday.img --verify

  # restore it onto a volume that holds Monday
  kubectl cbr apply --list /backup/tuesday.cbl --source /backup/tuesday.img --target /dev/volume

  # one of four pods that share a list
  kubectl cbr apply --list /lists/changed-blocks.cbl --source /dev/snapshot --target /backup/tuesday.img --shard "$JOB_COMPLETION_INDEX/4"`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return applyList(c.Context(), s, o) },
	}
	f := c.Flags()
	f.StringVar(&o.List, "list", "", "file or Block volume that holds the list (required)")
	f.StringVar(&o.Source, "source", "", "device or image to read from (required)")
	f.StringVar(&o.Target, "target", "", "device or image to write to; a new image is made (required)")
	f.IntVar(&o.Workers, "workers", copier.DefaultWorkers, "extents that are copied at the same time")
	f.StringVar(&o.shard, "shard", "", "copy only part I, from 0 on, of N parts of about equal size: I/N")
	f.StringVar(&o.Journal, "journal", "", "remember in this file how far the copy came (default TARGET.journal for an image, none for a device)")
	f.BoolVar(&o.Verify, "verify", false, "read both sides again after the copy, and compare")
	f.BoolVar(&o.Buffered, "buffered", false, "use the page cache for devices, too")
	f.BoolVar(&o.Force, "force", false, "allow a source or an image of another size than the list's volume, and a source that is mounted for writing")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	for _, required := range []string{"list", "source", "target"} {
		_ = c.MarkFlagRequired(required) // fails only for a flag that does not exist
	}
	objectFlag(c, &o.output)
	return c
}

// check reports bad flags, and parses the shard. What else a copy is refused for depends on what the flags name.
func (o *applyOptions) check() (err error) {
	for _, f := range []struct{ name, value string }{{"list", o.List}, {"source", o.Source}, {"target", o.Target}} {
		if f.value == "" {
			return usagef("--%s is empty: name a file or a device", f.name)
		}
	}
	if o.Workers < 1 || o.Workers > copier.MaxWorkers {
		return usagef("--workers is %d: it is from 1 to %d", o.Workers, copier.MaxWorkers)
	}
	if o.shard != "" {
		if o.Shard, err = copier.ParseShard(o.shard); err != nil {
			return usagef("--%v", err)
		}
	}
	return nil
}

func applyList(ctx context.Context, s Streams, o applyOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	o.Notice = func(text string) { _, _ = fmt.Fprintln(s.Err, text) }
	if !o.quiet {
		o.Progress = showProgress(s.Err)
	}
	result, err := copier.Run(ctx, o.Options)
	if err != nil {
		return err
	}
	return printObject(s.Out, o.output, result, func(w io.Writer) error { return printCopied(w, result) })
}

// printCopied says what a copy did.
func printCopied(w io.Writer, r copier.Result) error {
	text := fmt.Sprintf("read %s of %s (%.2f %%), wrote %s", human.Bytes(r.ReadBytes), human.Bytes(r.CapacityBytes),
		100*float64(r.ReadBytes)/float64(r.CapacityBytes), human.Bytes(r.WrittenBytes))
	if r.ZeroBytes > 0 {
		text += fmt.Sprintf(", made holes of %s of zeros", human.Bytes(r.ZeroBytes))
	}
	if r.ResumedBytes > 0 {
		text += fmt.Sprintf("; an earlier run had copied %s", human.Bytes(r.ResumedBytes))
	}
	if r.Verified {
		text += "; verified"
	}
	_, err := fmt.Fprintf(w, "copied %d extents: %s\n", r.Extents, text)
	return err
}

// showProgress returns what shows a copy's progress on w: a bar on a terminal, a line for every tenth elsewhere.
func showProgress(w io.Writer) func(copier.Progress) {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return progressBar(w)
	}
	const steps = 10
	phase, shown := copier.Phase(""), int64(0)
	return func(p copier.Progress) {
		if p.Phase != phase {
			phase, shown = p.Phase, 0
		}
		step := int64(float64(p.DoneBytes) / float64(p.TotalBytes) * steps)
		if step > shown {
			shown = step
			_, _ = fmt.Fprintf(w, "%s: %s of %s (%d %%)\n", p.Phase, human.Bytes(p.DoneBytes), human.Bytes(p.TotalBytes), 100*step/steps)
		}
	}
}

func progressBar(w io.Writer) func(copier.Progress) {
	var bar *progressbar.ProgressBar
	phase := copier.Phase("")
	return func(p copier.Progress) {
		if p.Phase != phase {
			phase = p.Phase
			bar = progressbar.NewOptions64(p.TotalBytes, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(string(phase)),
				progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionShowCount(),
				progressbar.OptionOnCompletion(func() { _, _ = fmt.Fprintln(w) }))
		}
		_ = bar.Set64(p.DoneBytes) // whoever cannot see the bar misses nothing else
	}
}
