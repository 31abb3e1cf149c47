package snapmeta

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Stream delivers the extents of one request. It is not safe for concurrent use.
type Stream struct {
	cfg    Config
	timing Timing
	log    *slog.Logger
	pool   *pool
	// units are in the order of the volume. The list is taken from the first one until that is drained; seam then leads
	// to the second, unless the list ends there.
	units   []*unit
	drained bool
	seam    *seam
	// first is the reader that asked first: what is decided for the whole list is decided by it.
	first   *reader
	resumes atomic.Int64
	// opening is how long calls take until their first message: what another stream costs.
	opening atomic.Int64
	// chunk is what was taken from pool, and rest the part of it that was not unpacked into batch yet.
	chunk, rest []byte
	batch       []blocklist.Extent
	// alone is set when streams contradicted each other: from then on one reads all that is left.
	alone bool
	pace  pace
	err   error
}

// New returns a Stream for cfg. It connects when Next is called first.
func New(cfg Config) (*Stream, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Stream{cfg: cfg, timing: cfg.Timing.withDefaults(), log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.cfg.Streams = max(cfg.Streams, 1)
	s.pool = newPool(readAheadBytes, s.cfg.Streams)
	s.first = &reader{cfg: &s.cfg, timing: s.timing, log: s.log, req: cfg.Request, resumes: &s.resumes, opening: &s.opening}
	s.units = []*unit{{reader: s.first}}
	return s, nil
}

// Info returns what is known of the list so far. All of it is known when Next first returned extents or io.EOF.
func (s *Stream) Info() Info {
	r := s.first
	info := Info{Mode: blocklist.Delta, BlockMetadataType: blocklist.UnknownLength}
	if r.req.BaseHandle == "" {
		info.Mode = blocklist.Allocated
	}
	if r.check.capacity > 0 {
		info.BlockMetadataType = blocklist.BlockMetadataType(r.check.kind.String())
		info.CapacityBytes = r.check.capacity
		info.BlockSize = r.check.blockSize
	}
	return info
}

// Capacity returns the volume's capacity in bytes: as the list told it, or, after an empty delta without any message, as a call for the
// allocated blocks tells it; 0 if that is empty, too. Next has to have returned extents or io.EOF; an error is an *outcome.Error.
func (s *Stream) Capacity(ctx context.Context) (int64, error) {
	info := s.Info()
	if info.CapacityBytes > 0 || info.Mode == blocklist.Allocated {
		return info.CapacityBytes, nil
	}
	r := &reader{cfg: &s.cfg, timing: s.timing, log: s.log, req: s.first.req, resumes: new(atomic.Int64)}
	r.req.BaseHandle = ""
	defer r.stop()
	if _, err := r.next(ctx); err != nil {
		return 0, r.explain(ctx, err)
	}
	return r.check.capacity, nil
}

// Resumes returns how often the list was continued by another call after it had been interrupted.
func (s *Stream) Resumes() int { return int(s.resumes.Load()) }

// Fallback returns in a sentence why the allocated blocks are listed although a delta was asked for, in the driver's words;
// empty as long as what was asked for is listed.
func (s *Stream) Fallback() string { return s.first.fallback }

// Next returns the next extents, in ascending order; they are valid until the next call. It returns io.EOF itself when the
// list is complete, and otherwise an *outcome.Error, which never has io.EOF in its chain. After an error it keeps returning it.
// What reads ahead between two calls ends with the ctx of the call that started it.
func (s *Stream) Next(ctx context.Context) ([]blocklist.Extent, error) {
	if s.err != nil {
		return nil, s.err
	}
	s.pace.beginWait()
	extents, err := s.next(ctx)
	s.pace.endWait()
	if err == nil {
		s.split(ctx)
		return extents, nil
	}
	s.err = err
	s.Close()
	return nil, err
}

// errClosed is what Next returns after Close.
var errClosed = errors.New("the stream is closed")

// Close ends all calls and their connections, and returns when nothing of them runs any more.
func (s *Stream) Close() {
	if s.err == nil {
		s.err = errClosed
	}
	s.discard(0)
}

// discard ends the units from the given one on.
func (s *Stream) discard(from int) {
	for _, u := range s.units[from:] {
		u.close()
		s.pool.give(u.chunks...)
		u.chunks = nil
	}
	s.units = s.units[:from]
}

// next returns the next extents of the list, or its end, or an *outcome.Error.
func (s *Stream) next(ctx context.Context) ([]blocklist.Extent, error) {
	for {
		if s.drained && len(s.units) == 1 {
			return nil, io.EOF
		}
		u := s.units[0]
		if s.drained {
			u = s.units[1]
		}
		extents, err := s.pull(ctx, u)
		switch {
		case err != nil && s.survives(u):
			s.pace.hold(breather)
			s.alone = s.alone || u.unwelcome
			s.goAlone(err)
		case err != nil:
			return nil, s.explain(ctx, u, err)
		case s.drained:
			if extents, err = s.join(u, extents); err != nil {
				s.alone = true
				s.goAlone(err)
			}
		case len(extents) == 0:
			s.drained, s.seam = true, u.seam
		}
		if len(extents) > 0 {
			return extents, nil
		}
	}
}

// survives reports whether the list goes on although u does not, because it is read ahead by a reader that was refused, or that gave
// up after failures that may pass: the stream before the seam has a call of its own, and if there is none before, u is read on with
// the patience of the list, unless that has come to its end too.
func (s *Stream) survives(u *unit) bool {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if s.pool.fatal != nil || u.state != failed {
		return false
	}
	if u.unwelcome {
		return s.drained
	}
	if !u.reader.exhausted {
		return false
	}
	return s.drained || u.ahead && !u.reader.tired(s.timing)
}

// pull returns the next extents of u; none if it is drained.
func (s *Stream) pull(ctx context.Context, u *unit) ([]blocklist.Extent, error) {
	if u.ahead {
		s.batch = s.unpack(u)
		if len(s.batch) > 0 {
			return s.batch, nil
		}
		return nil, s.pool.failure(u)
	}
	if u.seam != nil {
		s.pool.finish(u, passed, nil)
		return nil, nil
	}
	if err := s.pool.failure(u); err != nil {
		return nil, err
	}
	return s.pool.step(ctx, u)
}

// unpack returns the next extents that the goroutine of u has read, and waits for them.
func (s *Stream) unpack(u *unit) []blocklist.Extent {
	if len(s.rest) == 0 {
		s.dropChunk()
		if s.chunk = s.pool.get(u); s.chunk == nil {
			return nil
		}
		s.rest = s.chunk
	}
	extents, rest := unpack(s.batch[:0], s.rest)
	s.rest = rest
	return extents
}

func (s *Stream) dropChunk() {
	if s.chunk != nil {
		s.pool.give(s.chunk)
	}
	s.chunk, s.rest = nil, nil
}

// join continues the list of the first unit, which is drained, with extents of the second; none if that is drained too. It
// returns those that are new.
func (s *Stream) join(u *unit, extents []blocklist.Extent) ([]blocklist.Extent, error) {
	if s.seam == nil {
		// The first unit reported the end of the list. No later one may list anything.
		if len(extents) > 0 {
			return nil, &contradictionError{from: u.start, offset: extents[0].Offset, what: "an extent behind the end of the list"}
		}
		s.remove(1)
		return nil, nil
	}
	if len(extents) > 0 {
		extents, err := s.seam.join(extents)
		if len(extents) > 0 {
			s.remove(0)
			s.drained, s.seam = false, nil
		}
		return extents, err
	}
	end := u.reader.check.end
	if u.state == passed {
		// The first unit's last message reaches past all of this one.
		err := s.seam.confirm(min(end, s.seam.known))
		if err == nil {
			s.remove(1)
		}
		return nil, err
	}
	if end < s.seam.end {
		return nil, s.seam.contradiction(end, "the list ends too early")
	}
	if err := s.seam.confirm(s.seam.known); err != nil {
		return nil, err
	}
	if u.reader.check.fresh {
		u.reader.check.runStart, u.reader.check.fresh = s.seam.runStart, false
	}
	s.remove(0)
	s.seam = nil
	return nil, nil
}

// remove takes a drained unit off the list.
func (s *Stream) remove(i int) {
	s.units[i].close()
	s.units = slices.Delete(s.units, i, i+1)
	s.pool.rerank(s.units)
}

// goAlone lets the first unit, of which all has been taken, read all that is left, because of what a later one did or because its
// own reader gave up. One stream's list is the one that counts, so whether err is final shows there.
func (s *Stream) goAlone(err error) {
	s.log.Warn("going on with one stream", "error", err.Error())
	beyond := int64(0)
	for _, u := range s.units[1:] {
		u.close()
		if u.entries > 0 {
			beyond = max(beyond, u.position)
		}
	}
	s.discard(1)
	s.dropChunk()
	u := s.units[0]
	if u.ahead {
		// What read it may still be closing its call.
		<-u.done
	}
	u.reader.doubt(beyond)
	// The failures in a row count on, so that there are no more of them than one stream has.
	u.reader.timing, u.reader.exhausted = s.timing, false
	u.ahead, u.seam, u.limit, u.state, u.err = false, nil, 0, reading, nil
	s.drained, s.seam = false, nil
}
