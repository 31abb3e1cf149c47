// Package populate turns a stream of extents into a committed list, in one pass and in constant memory: source → rounding
// and merging → encoder → sink → commit. It also holds the populator's options and their validation.
package populate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/claimsize"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/sink"
	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// Source delivers the extents of a list in ascending order, checked. *snapmeta.Stream is one.
type Source interface {
	// Next returns some extents, valid until the next call, or io.EOF itself at the proven end of the list.
	Next(ctx context.Context) ([]blocklist.Extent, error)
	// Info is complete as soon as Next returned extents or io.EOF.
	Info() snapmeta.Info
	// Capacity is Info's, or asked for if an empty list had none; 0 if nobody knows.
	Capacity(ctx context.Context) (int64, error)
	// Resumes counts the interruptions that were healed.
	Resumes() int
}

// ended reports whether an error of Source.Next is the end of the list. One that wraps io.EOF is a failure: somebody else met the
// end of something else.
func ended(err error) bool { return err == io.EOF } //nolint:errorlint // see above

// progressEvery is the least time between two log lines that tell the progress.
const progressEvery = 10 * time.Second

// pass is one run over a source.
type pass struct {
	src     Source
	out     sink.Sink
	opts    *Options
	log     *slog.Logger
	meter   meter
	enc     blocklist.Encoder
	merger  *merger
	header  blocklist.Header
	offset  int64
	entries int64
	told    time.Time
}

// run writes the list of src to out and commits it. On an error out is aborted; the result then tells what is known.
func run(ctx context.Context, src Source, out sink.Sink, opts *Options, log *slog.Logger) (outcome.Result, error) {
	p := &pass{src: src, out: out, opts: opts, log: log, told: time.Now()}
	p.meter = meter{w: out, limit: opts.MaxSizeBytes}
	trailer, err := p.copy(ctx)
	if err != nil {
		err = p.explain(ctx, err)
		if abortErr := out.Abort(); abortErr != nil {
			log.Error("could not clean the output", "error", abortErr.Error())
		}
	}
	info := src.Info()
	result := outcome.Result{
		Reason:              outcome.ReasonOf(err),
		Mode:                string(info.Mode),
		VolumeCapacityBytes: p.header.VolumeCapacityBytes,
		BlockMetadataType:   string(info.BlockMetadataType),
		BlockSize:           info.BlockSize,
		Resumes:             src.Resumes(),
	}
	if err != nil {
		return result, err
	}
	result.EntryCount = trailer.EntryCount
	result.ChangedBytes = trailer.ChangedBytes
	result.NumBytesWritten = trailer.ListBytes
	result.ListDigest = "sha256:" + hex.EncodeToString(trailer.ListSHA256[:])
	return result, nil
}

// copy moves all extents and commits.
func (p *pass) copy(ctx context.Context) (blocklist.Trailer, error) {
	for {
		extents, err := p.src.Next(ctx)
		if ended(err) {
			break
		}
		if err != nil {
			return blocklist.Trailer{}, err
		}
		if err := p.encode(ctx, extents); err != nil {
			return blocklist.Trailer{}, err
		}
		p.tell()
	}
	return p.finish(ctx)
}

// encode appends extents to the list, which it starts if these are the first.
func (p *pass) encode(ctx context.Context, extents []blocklist.Extent) error {
	if err := p.ensureEncoder(ctx); err != nil {
		return err
	}
	if len(extents) > 0 {
		p.offset = extents[len(extents)-1].End()
		p.entries += int64(len(extents))
	}
	if p.merger != nil {
		extents = p.merger.add(extents)
	}
	return p.enc.Encode(extents)
}

// ensureEncoder starts the list once the source's facts for its header are known.
func (p *pass) ensureEncoder(ctx context.Context) error {
	if p.enc != nil {
		return nil
	}
	info := p.src.Info()
	p.header = p.opts.header(info)
	if err := ensureCapacity(ctx, p.src, &p.header); err != nil {
		return err
	}
	if p.header.Merged {
		p.merger = &merger{granularity: p.header.GranularityBytes, capacity: p.header.VolumeCapacityBytes}
	}
	enc, err := blocklist.NewEncoder(&p.meter, p.opts.Format, p.header)
	if err != nil {
		return err
	}
	p.enc = enc
	p.log.Info("writing list", "mode", info.Mode, "type", info.BlockMetadataType, "capacityBytes", p.header.VolumeCapacityBytes, "format", p.opts.Format)
	return nil
}

// ensureCapacity gives the header of an empty list the volume's capacity, if neither its stream nor a snapshot told.
func ensureCapacity(ctx context.Context, src Source, h *blocklist.Header) error {
	if h.VolumeCapacityBytes > 0 {
		return nil
	}
	var err error
	if h.VolumeCapacityBytes, err = src.Capacity(ctx); err != nil {
		return err
	}
	if h.VolumeCapacityBytes <= 0 {
		return outcome.Errorf(outcome.InvalidArguments, "the driver sent an empty list without the volume's capacity, has no allocated block that would tell it, and no snapshot has a restore size: ask the driver's authors for one of them; a populator that is run by hand takes --restore-size-bytes")
	}
	return nil
}

func (p *pass) finish(ctx context.Context) (blocklist.Trailer, error) {
	if err := p.ensureEncoder(ctx); err != nil {
		return blocklist.Trailer{}, err
	}
	if p.merger != nil {
		if err := p.enc.Encode(p.merger.flush()); err != nil {
			return blocklist.Trailer{}, err
		}
	}
	p.offset = p.header.VolumeCapacityBytes
	trailer, err := p.enc.Finish()
	if err != nil {
		return blocklist.Trailer{}, err
	}
	if err := p.out.Commit(ctx, sink.List{Bytes: trailer.ListBytes, SHA256: trailer.ListSHA256}); err != nil {
		p.meter.fail(err)
		return blocklist.Trailer{}, err
	}
	return trailer, nil
}

// tell reports the progress, and logs it now and then.
func (p *pass) tell() {
	progress := outcome.Progress{
		EntryCount: p.entries, OffsetBytes: p.offset, VolumeCapacityBytes: p.header.VolumeCapacityBytes,
		ListBytes: p.meter.bytes, Resumes: p.src.Resumes(),
	}
	if p.opts.report != nil {
		p.opts.report(progress)
	}
	now := time.Now()
	if now.Sub(p.told) < progressEvery {
		return
	}
	p.told = now
	p.log.Info("progress", "offset", progress.OffsetBytes, "capacityBytes", progress.VolumeCapacityBytes,
		"percent", progress.Percent(), "entries", progress.EntryCount, "listBytes", progress.ListBytes, "resumes", progress.Resumes)
}

// explain gives err its reason: what the sink said, the bound, or what the source said.
func (p *pass) explain(ctx context.Context, err error) error {
	var known *outcome.Error
	var full *sink.FullError
	switch {
	case errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return outcome.Errorf(outcome.Cancelled, "stopped before the list was committed: %w", context.Cause(ctx))
	case errors.Is(err, errTooLarge):
		return outcome.Errorf(outcome.ListTooLarge, "the list exceeds the limit of %d bytes%s; raise maxSizeInBytes, or set a larger granularityBytes or format Binary for a shorter list",
			p.opts.MaxSizeBytes, p.estimate(func(list int64) string { return fmt.Sprintf("; by its progress it takes about %d bytes", list) }))
	case errors.As(err, &full):
		return outcome.Errorf(outcome.VolumeFull, "%w%s; use a larger volume, or set a larger granularityBytes or format Binary for a shorter list",
			full, p.estimate(func(list int64) string {
				return fmt.Sprintf("; by its progress it takes about %d bytes, so a claim of %dMi would do", list, claimsize.For(list)>>20)
			}))
	case p.meter.err != nil:
		return outcome.Errorf(outcome.OutputFailed, "write the list to %s: %w", p.opts.Output, err)
	}
	return outcome.Errorf(outcome.InternalError, "encode the list: %w", err)
}

// estimate renders the size that the whole list will have, if enough of the volume was listed to say: the part that was
// listed is taken as typical.
func (p *pass) estimate(render func(list int64) string) string {
	capacity := p.header.VolumeCapacityBytes
	if p.offset <= 0 || p.offset < capacity/100 {
		return ""
	}
	return render(int64(float64(p.meter.wanted) / float64(p.offset) * float64(capacity)))
}

// errTooLarge says that the list exceeds the bound that the user set.
var errTooLarge = errors.New("the list exceeds its size limit")

// meter passes a list on to its sink, counts it, enforces the bound and remembers the sink's error, whatever the encoder
// makes of it.
type meter struct {
	w     io.Writer
	limit int64
	// bytes were written; wanted includes the write that failed.
	bytes, wanted int64
	err           error
}

func (m *meter) Write(p []byte) (int, error) {
	m.wanted = m.bytes + int64(len(p))
	if m.limit > 0 && m.wanted > m.limit {
		return 0, errTooLarge
	}
	n, err := m.w.Write(p)
	m.bytes += int64(n)
	if err != nil {
		m.fail(err)
	}
	return n, err
}

func (m *meter) fail(err error) { m.err = err }
