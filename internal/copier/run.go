//go:build linux

package copier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// shardAlign is the unit in bytes at whose multiples shards begin and end. It is the largest page of a node (arm64 and ppc64le have
// such ones): a machine that writes a part of a page of a device writes all of it back, and what another one wrote to the rest is
// lost. Whoever changes it changes journalFormat, since a journal's shard would be another part of the list.
const shardAlign = 64 << 10

// Run copies. It fails with ErrRefused before anything was written; with ErrDiffers if Verify finds a difference; with
// context.Cause(ctx) if ctx ends, after the journal was brought up to date; or with what the system says. After a failure the
// same call continues where this one ended, if there is a journal, and begins again if there is none.
func Run(ctx context.Context, o Options) (result Result, err error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	list, err := blocklist.Open(o.List)
	if err != nil {
		return Result{}, refuse("%w", err)
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	c := &task{options: o, list: list, capacity: list.Header().VolumeCapacityBytes}
	if err := c.choose(); err != nil {
		return Result{}, refuse("read list %s again: %w", o.List, err)
	}
	c.result = Result{Extents: c.survey.extents, Bytes: c.survey.bytes, CapacityBytes: c.capacity}
	if err := c.open(); err != nil {
		return c.result, errors.Join(err, c.close())
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return c.run(ctx)
}

// check refuses options that contradict each other, and fills in defaults.
func (o *Options) check() error {
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.Workers < 1 || o.Workers > MaxWorkers {
		return refuse("%d workers: use 1 to %d", o.Workers, MaxWorkers)
	}
	if s := o.Shard; s != (Shard{}) && (s.Total < 1 || s.Index < 0 || s.Index >= s.Total) {
		return refuse("shard %s does not exist: parts count from 0", s)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	roles := []struct{ role, path string }{{"list", o.List}, {"source", o.Source}, {"target", o.Target}, {"journal", o.Journal}}
	for i, a := range roles[:3] {
		if a.path == "" {
			return refuse("no %s is named", a.role)
		}
		for _, b := range roles[i+1:] {
			if a.path == b.path {
				return refuse("%s is named as %s and as %s", a.path, a.role, b.role)
			}
		}
	}
	return nil
}

// survey is what a part of a list adds up to.
type survey struct {
	extents, bytes, end int64
}

func surveyOf(extents listops.Extents) (survey, error) {
	var s survey
	for batch, err := range extents {
		if err != nil {
			return survey{}, err
		}
		for _, e := range batch {
			s.bytes += e.Length
		}
		s.extents += int64(len(batch))
		s.end = batch[len(batch)-1].End()
	}
	return s, nil
}

// task is one run.
type task struct {
	options  Options
	list     *blocklist.File
	capacity int64
	part     listops.Range // what of the volume is this shard's
	survey   survey
	source   *volume
	target   *volume
	journal  *journal // nil for none
	from     position // how far an earlier run came
	result   Result
}

// choose finds out which part of the list is to be copied.
func (c *task) choose() error {
	c.part = listops.Everything()
	if s := c.options.Shard; !s.whole() {
		ranges, err := listops.Slices(listops.Of(c.list.From(0)), c.list.Trailer().ChangedBytes, s.Total, shardAlign)
		if err != nil {
			return err
		}
		c.part = ranges[s.Index]
	}
	var err error
	c.survey, err = surveyOf(c.extents(0))
	return err
}

// extents returns what is to be copied from the byte offset of the volume on.
func (c *task) extents(offset int64) listops.Extents {
	return c.within(listops.Range{From: max(c.part.From, offset), To: c.part.To})
}

func (c *task) within(r listops.Range) listops.Extents {
	return listops.Clip(listops.Of(c.list.From(r.From)), r)
}

// open checks everything, and only then creates or changes anything.
func (c *task) open() error {
	var err error
	if c.source, err = openSource(c.options); err != nil {
		return err
	}
	if err := c.checkSource(); err != nil {
		return err
	}
	if err := c.checkTarget(); err != nil {
		return err
	}
	path, err := c.journalPath()
	if err != nil {
		return err
	}
	if path != "" {
		if err := checkJournal(path); err != nil {
			return err
		}
	}
	if c.target, err = openTarget(c.options, c.capacity); err != nil {
		return err
	}
	return c.openJournal(path)
}

func (c *task) close() error {
	var errs []error
	for _, v := range []*volume{c.source, c.target} {
		if v != nil {
			errs = append(errs, v.close())
		}
	}
	return errors.Join(errs...)
}

// journalPath returns the name of the journal; empty for none.
func (c *task) journalPath() (string, error) {
	o := c.options
	if o.Journal != "" {
		return o.Journal, nil
	}
	info, err := os.Stat(o.Target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", refuse("target: %w", err)
	}
	if err == nil && isBlockDevice(info) {
		return "", nil
	}
	path := o.Target + ".journal"
	if s := o.Shard; !s.whole() {
		path = fmt.Sprintf("%s-%d-of-%d", path, s.Index, s.Total)
	}
	return path, nil
}

// openJournal finds out where to begin, and begins the journal: once the target is held, so that no other copy to it writes the same one.
func (c *task) openJournal(path string) error {
	if path == "" {
		return nil
	}
	digest := c.list.Trailer().ListSHA256
	entry := entry{
		Format: journalFormat, List: fmt.Sprintf("sha256:%x", digest), Shard: c.options.Shard.String(),
		Source: c.options.Source, SourceBytes: c.source.size, SourceVersion: c.source.version(),
		empty: c.target.fresh,
	}
	j, from, why, err := openJournal(path, entry)
	if err != nil {
		return err
	}
	if why != "" {
		c.beginAgain(why)
	}
	c.journal, c.from = j, from
	return nil
}

func (c *task) beginAgain(why string) { c.options.Notice("the copy begins again: " + why) }

// check reads from the target what an earlier run copied to it, and has the copy begin again unless all of it is there. Nothing
// else shows it: a file that is written over keeps its inode and its time of birth, and a device its number. If it is there, it does
// not matter whether it is the same file or device, which over NFS or after a device was attached anew nothing shows. Of a source that may
// be another one it reads the same, since half a copy of each would be a copy of none.
func (c *task) check(ctx context.Context) error {
	if c.from.mark == 0 {
		return nil
	}
	version := c.source.version() // before it is read: what changes meanwhile is the next check's
	same, err := c.holds(ctx, c.target)
	why := "the target no longer holds what an earlier run copied"
	if same && err == nil && (version == "" || version != c.journal.entry.SourceVersion) {
		same, err = c.holds(ctx, c.source)
		why = "the source no longer holds what an earlier run copied"
	}
	if err != nil {
		return c.explain(err)
	}
	if !same {
		c.beginAgain(why)
		c.from = position{}
	}
	c.journal.entry.SourceVersion = version
	return c.journal.save(c.from)
}

// holds reports whether v has what an earlier run copied.
func (c *task) holds(ctx context.Context, v *volume) (bool, error) {
	before := listops.Range{From: c.part.From, To: c.from.mark}
	copied, err := surveyOf(c.within(before))
	if err != nil {
		return false, fmt.Errorf("read list %s again: %w", c.options.List, err)
	}
	check := &check{volume: v}
	checked := &walk{
		phase: Checking, workers: c.options.Workers, total: copied.bytes,
		progress: c.options.Progress, do: check.read, checkpoint: func(position) error { return nil },
	}
	err = checked.run(ctx, c.within(before))
	return checked.at.digest == c.from.digest, err
}

func (c *task) run(ctx context.Context) (Result, error) {
	if err := c.check(ctx); err != nil {
		return c.result, err
	}
	left, err := surveyOf(c.extents(c.from.mark))
	if err != nil {
		return c.result, fmt.Errorf("read list %s again: %w", c.options.List, err)
	}
	c.result.ResumedBytes = c.survey.bytes - left.bytes
	copying := &copying{source: c.source, target: c.target, sparse: c.target.fresh, summed: c.journal != nil}
	copied := &walk{
		phase: Copying, workers: c.options.Workers, at: c.from, skipped: c.result.ResumedBytes, total: c.survey.bytes,
		progress: c.options.Progress, do: copying.copy,
		checkpoint: durably(c.target.Sync, c.journal.save), every: c.options.checkpointBytes,
	}
	err = copied.run(ctx, c.extents(c.from.mark))
	c.result.ReadBytes, c.result.WrittenBytes, c.result.ZeroBytes = copying.read.Load(), copying.written.Load(), copying.zeros.Load()
	if err != nil {
		return c.result, c.explain(err)
	}
	if c.options.Verify {
		if err := c.verify(ctx); err != nil {
			return c.result, err
		}
	}
	return c.result, c.journal.remove()
}

// durably returns a checkpoint: what lies before the position is made durable before the journal says that it is.
func durably(sync func() error, save func(position) error) func(position) error {
	return func(at position) error {
		if err := sync(); err != nil {
			return err
		}
		return save(at)
	}
}

func (c *task) verify(ctx context.Context) error {
	c.source.dropCache()
	c.target.dropCache()
	comparison := &comparison{source: c.source, target: c.target}
	compared := &walk{
		phase: Verifying, workers: c.options.Workers, total: c.survey.bytes,
		progress: c.options.Progress, do: comparison.compare, checkpoint: func(position) error { return nil },
	}
	if err := compared.run(ctx, c.extents(0)); err != nil {
		if errors.Is(err, ErrDiffers) {
			// To continue would be to trust what was just found to be wrong.
			err = errors.Join(err, c.journal.remove())
		}
		return err
	}
	c.result.Verified = true
	return nil
}

// explain says what to do after a copy that was not refused has failed.
func (c *task) explain(err error) error {
	what := "run the same command again: it copies from the beginning"
	if c.journal != nil {
		what = "run the same command again: it continues from " + c.journal.path
	}
	if _, statErr := os.Stat(c.options.Target); statErr != nil {
		return err
	}
	return fmt.Errorf("%w; the target is not complete: %s", err, what)
}
