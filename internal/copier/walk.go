//go:build linux

package copier

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// chunkBytes and jobPieces also say what a journal's digest is made of: whoever changes one changes journalFormat.
const (
	// chunkBytes is the longest piece that is read at once. Longer extents are cut at its multiples, so that no two
	// workers meet in one page of a long extent.
	chunkBytes = 1 << 20
	// jobPieces bounds how many small extents a worker takes at once.
	jobPieces = 256
	// jobsPerWorker bounds how far the fastest worker may be ahead of the slowest.
	jobsPerWorker = 8
	// checkpointBytes is how much is copied between two checkpoints: what a copy loses at most when it is killed, apart
	// from what is in flight.
	checkpointBytes = 128 << 20
)

// pageBytes is the unit of the page cache: two writers in one page must both go through it.
var pageBytes = int64(os.Getpagesize())

// job is a run of pieces that one worker does.
type job struct {
	pieces []blocklist.Extent
	bytes  int64
	done   bool
	digest uint64
}

func (j *job) end() int64 { return j.pieces[len(j.pieces)-1].End() }

// position is how far a walk came.
type position struct {
	mark int64 // what lies before it is done
	// digest is of what was done up to there: XXH64 of the digest up to a job and of the job's, again and again. Jobs are cut
	// in the same way by every walk that comes by their ends, so that it does not depend on where walks began and ended.
	digest uint64
}

// after returns the position behind a job that begins at p.
func (p position) after(j *job) position {
	both := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, p.digest), j.digest)
	return position{mark: j.end(), digest: xxhash.Sum64(both)}
}

// walk hands the extents of a list to workers, and keeps account of the offset before which everything is done.
type walk struct {
	phase   Phase
	workers int
	// skipped and total are bytes: what was done before, and what there is with it.
	skipped, total int64
	progress       func(Progress)
	// do handles one piece. The buffers are the worker's own; the digest is of what do has them sum up.
	do func(piece blocklist.Extent, b *buffers) error
	// checkpoint is called now and then, by one goroutine at a time, with a position before which everything is done; and
	// at the end, also after a failure.
	checkpoint func(position) error
	every      int64 // bytes between checkpoints; 0 for checkpointBytes

	at position

	mu    sync.Mutex
	queue []*job // in the order of the list, beginning with the first one that is not done
	done  int64
	since int64 // bytes since the last checkpoint
	free  chan *job
	due   chan struct{}

	unsaved error // why a checkpoint failed
}

// run returns after every goroutine that it started has ended.
func (w *walk) run(parent context.Context, extents listops.Extents) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	if w.every == 0 {
		w.every = checkpointBytes
	}
	w.free = make(chan *job, jobsPerWorker*w.workers)
	for range cap(w.free) {
		w.free <- &job{pieces: make([]blocklist.Extent, 0, jobPieces)}
	}
	w.due = make(chan struct{}, 1)
	jobs := make(chan *job)
	var workers, checkpointer sync.WaitGroup
	for range w.workers {
		workers.Go(func() {
			if err := w.work(ctx, jobs); err != nil {
				cancel(err)
			}
		})
	}
	checkpointer.Go(func() {
		for range w.due {
			if err := w.save(); err != nil {
				cancel(err)
			}
		}
	})
	if err := w.feed(ctx, extents, jobs); err != nil {
		cancel(err)
	}
	close(jobs)
	workers.Wait()
	close(w.due)
	checkpointer.Wait()
	err := context.Cause(ctx)
	// What is done is kept in any case.
	if saveErr := w.save(); err == nil {
		err = saveErr
	}
	return err
}

// feed makes jobs of the extents.
func (w *walk) feed(ctx context.Context, extents listops.Extents, jobs chan<- *job) error {
	var j *job
	hand := func() error {
		w.mu.Lock()
		w.queue = append(w.queue, j)
		w.mu.Unlock()
		select {
		case jobs <- j:
			j = nil
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	take := func(piece blocklist.Extent) error {
		if j == nil {
			select {
			case j = <-w.free:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			j.pieces, j.bytes, j.done = j.pieces[:0], 0, false
		}
		j.pieces, j.bytes = append(j.pieces, piece), j.bytes+piece.Length
		if len(j.pieces) == jobPieces || j.bytes >= chunkBytes {
			return hand()
		}
		return nil
	}
	cutter := cutter{emit: take}
	for batch, err := range extents {
		if err != nil {
			return fmt.Errorf("read list: %w", err)
		}
		for _, e := range batch {
			if err := cutter.add(e); err != nil {
				return err
			}
		}
	}
	if err := cutter.flush(); err != nil {
		return err
	}
	if j != nil {
		return hand()
	}
	return nil
}

// cutter joins adjacent extents and cuts long ones into pieces.
type cutter struct {
	emit   func(blocklist.Extent) error
	joined blocklist.Extent
}

func (c *cutter) add(e blocklist.Extent) error {
	if c.joined.Length > 0 && c.joined.End() != e.Offset {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.joined.Length == 0 {
		c.joined.Offset = e.Offset
	}
	c.joined.Length += e.Length
	for {
		n := chunkBytes - c.joined.Offset%chunkBytes
		if c.joined.Length < n {
			return nil
		}
		if err := c.emit(blocklist.Extent{Offset: c.joined.Offset, Length: n}); err != nil {
			return err
		}
		c.joined = blocklist.Extent{Offset: c.joined.Offset + n, Length: c.joined.Length - n}
	}
}

func (c *cutter) flush() error {
	if c.joined.Length == 0 {
		return nil
	}
	e := c.joined
	c.joined = blocklist.Extent{}
	return c.emit(e)
}

// work does jobs until there are no more.
func (w *walk) work(ctx context.Context, jobs <-chan *job) (err error) {
	b, err := newBuffers()
	if err != nil {
		return err
	}
	defer func() {
		if freeErr := b.free(); err == nil {
			err = freeErr
		}
	}()
	for j := range jobs {
		b.sum.Reset()
		for _, piece := range j.pieces {
			if ctx.Err() != nil {
				return nil // whoever ended ctx has said why
			}
			if err := w.do(piece, b); err != nil {
				return err
			}
		}
		j.digest = b.sum.Sum64()
		w.finish(j)
	}
	return nil
}

// finish takes account of a job that was done.
func (w *walk) finish(j *job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j.done = true
	w.done += j.bytes
	for len(w.queue) > 0 && w.queue[0].done {
		first := w.queue[0]
		w.queue = w.queue[1:]
		w.at = w.at.after(first)
		w.since += first.bytes
		w.free <- first // has room for every job that there is
	}
	if w.since >= w.every {
		w.since = 0
		select {
		case w.due <- struct{}{}:
		default: // the checkpoint that is due will see this position, too
		}
	}
	w.progress(Progress{Phase: w.phase, DoneBytes: w.skipped + w.done, TotalBytes: w.total})
}

// save reads the position before the checkpoint begins: what is done while it syncs is the next one's. After a checkpoint that
// failed there is no other: Linux reports that data could not be written to one sync, and the next one succeeds without it.
func (w *walk) save() error {
	if w.unsaved != nil {
		return w.unsaved
	}
	w.mu.Lock()
	at := w.at
	w.mu.Unlock()
	w.unsaved = w.checkpoint(at)
	return w.unsaved
}

// buffers are a worker's memory. Both are aligned to pages, as direct I/O needs it.
type buffers struct {
	memory        []byte
	first, second []byte
	sum           *xxhash.Digest // of the job
}

func newBuffers() (*buffers, error) {
	// A piece begins in its buffer as far behind a page's start as in its volume.
	each := chunkBytes + pageBytes
	memory, err := unix.Mmap(-1, 0, int(2*each), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes of buffers: %w", 2*each, err)
	}
	return &buffers{memory: memory, first: memory[:each], second: memory[each:], sum: xxhash.New()}, nil
}

func (b *buffers) free() error {
	if err := unix.Munmap(b.memory); err != nil {
		return fmt.Errorf("free buffers: %w", err)
	}
	return nil
}

// add has the job's digest cover a piece: where it lies, and its data.
func (b *buffers) add(piece blocklist.Extent, p []byte) {
	head := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(piece.Offset)), uint64(piece.Length))
	_, _ = b.sum.Write(head) // it never fails
	_, _ = b.sum.Write(p)
}

// place returns the part of buffer for a piece of a volume.
func place(buffer []byte, piece blocklist.Extent) []byte {
	start := piece.Offset % pageBytes
	return buffer[start : start+piece.Length]
}
