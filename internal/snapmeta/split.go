package snapmeta

import (
	"context"
	"slices"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
)

const (
	// readAheadBytes bounds the memory for extents that were read before their turn. With two bytes an extent it keeps
	// two streams of 2 million extents a second apart for three seconds, and the sidecar's two requests to the API
	// server for each call far below the five a second that it allows itself.
	readAheadBytes = 12 << 20
	// minAlignment is the smallest power of two of which every offset that a unit starts at is a multiple, because some
	// drivers mishandle offsets that are off their grid.
	minAlignment = 1 << 20
	// lateAttempts is how often a stream that reads ahead may fail in a row. It is less patient than one that has to go
	// on: the list is not lost with it, but waits for it. Where the list has come to it, it gets the rest of the attempts.
	lateAttempts = 5
	// breather is how long no stream is added after one gave up.
	breather = 30 * time.Second
	// leastWork is what a stream must have left to read for another one to take a part of it.
	leastWork = 500 * time.Millisecond
	// openingsWorth is how many times longer than a call's first message takes its part of the list must take.
	openingsWorth = 3
	// fill is the part of the memory that units are laid out to take.
	fill = 0.9
	// guessedBytes is what an extent takes when packed, until there is a figure.
	guessedBytes = 2
)

// pace tells whether it is time for another stream.
type pace struct {
	// began is the time of the first call of Next, split that of the last split, and waiting that of the pending call.
	began, split, waiting time.Time
	// held is until when there is to be none.
	held time.Time
	// waited is how long extents were waited for since the last split.
	waited time.Duration
}

func (p *pace) beginWait() {
	p.waiting = time.Now()
	if p.began.IsZero() {
		p.began, p.split = p.waiting, p.waiting
	}
}

func (p *pace) endWait() { p.waited += time.Since(p.waiting) }

// due reports whether the list is long enough for another stream, the last split long enough ago, and the streams what is
// waited for. Splits follow one another no faster than calls are answered, which is what a sidecar that has used up its
// requests to the API server shows. No time is too short if after is 0.
func (p *pace) due(after, opening time.Duration) bool {
	now := time.Now()
	if after == 0 {
		return now.After(p.held)
	}
	since := now.Sub(p.split)
	return now.After(p.held) && now.Sub(p.began) >= after && since >= max(after/2, opening) && p.waited >= since/2
}

// hold keeps due from coming true for a while.
func (p *pace) hold(d time.Duration) { p.held = time.Now().Add(d) }

func (p *pace) restart() { p.split, p.waited = time.Now(), 0 }

// split adds a stream if that is worth it: it cuts the unit with the longest way to go ahead of its reader and has the
// further part read by another one. Nothing but the speed depends on whether and where it does.
func (s *Stream) split(ctx context.Context) {
	if s.cfg.Streams == 1 || s.alone || ctx.Err() != nil {
		return
	}
	check := &s.first.check
	// All units are held to the block size, so it has to be known.
	if check.capacity == 0 || check.blockSize == 0 && check.kind == api.BlockMetadataType_FIXED_LENGTH {
		return
	}
	for s.pace.due(s.cfg.StreamsAfter, time.Duration(s.opening.Load())) {
		at, boundary := s.boundary()
		if boundary == 0 {
			return
		}
		if !s.open(ctx, at, boundary) {
			return
		}
		s.pace.restart()
	}
}

// boundary returns which unit to split, and where; 0 if none.
func (s *Stream) boundary() (at int, boundary int64) {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	active, left, covered, entries := 0, int64(0), int64(0), int64(0)
	for i, u := range s.units {
		if u.unwelcome {
			return 0, 0
		}
		covered += u.position - u.start
		entries += u.entries
		if u.state == reading || u.state == passed {
			active++
		}
		if u.state != reading || u.seam != nil {
			continue
		}
		if l := s.limit(u) - u.position; l > left {
			at, left = i, l
		}
	}
	if active >= s.cfg.Streams || len(s.units) >= 2*s.cfg.Streams || left == 0 || covered == 0 {
		return 0, 0
	}
	u := s.units[at]
	// Nanoseconds a byte: of the whole list, unless it is known of this part.
	pace := float64(time.Since(s.pace.began)) / float64(s.units[0].start+covered)
	if u.position > u.listed && !u.listing.IsZero() {
		pace = float64(time.Since(u.listing)) / float64(u.position-u.listed)
	}
	if !s.worthwhile(float64(left) * pace) {
		return 0, 0
	}
	if u.position > u.start && u.entries > 0 {
		covered, entries = u.position-u.start, u.entries
	}
	width := left / int64(s.cfg.Streams-active+1)
	density := float64(entries) / float64(covered)
	if ahead := s.reach(at, density); ahead < float64(width) && !s.fits(density) {
		width = int64(ahead)
	}
	align := s.alignment(width)
	if left <= 2*align {
		return 0, 0
	}
	// A block that begins at a boundary begins where the driver lets blocks begin.
	boundary = (u.position+width)/align*align + s.first.check.phase
	if boundary <= u.position {
		boundary += align
	}
	if boundary > s.limit(u)-align {
		return 0, 0
	}
	return at, boundary
}

// worthwhile reports whether another call is worth its price where one stream takes so many nanoseconds to the end.
func (s *Stream) worthwhile(left float64) bool {
	price := openingsWorth * time.Duration(s.opening.Load())
	return s.cfg.StreamsAfter == 0 || left >= float64(max(s.cfg.StreamsAfter, leastWork, price))
}

// limit returns where u ends at the latest. The caller holds the pool's mu.
func (s *Stream) limit(u *unit) int64 {
	if u.limit > 0 {
		return u.limit
	}
	return s.first.check.capacity
}

// reach returns how many bytes ahead of the reader of the unit with index at another one may begin, so that what is read
// meanwhile finds room, if there are so many extents a byte. The caller holds the pool's mu.
//
// Among n streams that are equally fast, one is to come to its end whenever another n-th of a unit has been read, so that there is
// always one to begin and never much to wait for. When a unit of length w ends, those that follow it then have (n-1)/n, … 1/n of w
// in memory, which is (n-1)/2 of w together, and the last one has to go on for (n-1)/n of w until its turn. In the beginning all
// start at once, so the first unit is made shortest.
func (s *Stream) reach(at int, density float64) float64 {
	n := float64(s.cfg.Streams)
	w := 2 * fill * float64(s.pool.bytes) / (n - 1)
	return w / n * min(float64(at+1), n-1) / (s.packedSize() * density)
}

// fits reports whether all that may ever be read ahead finds room, if there are so many extents a byte: then equal parts, which all
// end at once, are read soonest. The caller holds the pool's mu.
func (s *Stream) fits(density float64) bool {
	n := float64(s.cfg.Streams)
	left := float64(s.first.check.capacity - s.units[0].position)
	return left*density*s.packedSize()*(n-1)/n <= fill*float64(s.pool.bytes)
}

// packedSize returns how many bytes of memory an extent takes. The caller holds the pool's mu.
func (s *Stream) packedSize() float64 {
	if s.pool.entries <= pieceExtents {
		return guessedBytes
	}
	return float64(s.pool.packed) / float64(s.pool.entries)
}

// alignment returns what a boundary is to be a multiple of, but for the phase of the blocks, for units of about that width.
func (s *Stream) alignment(width int64) int64 {
	align := int64(minAlignment)
	for align < width/256 {
		align *= 2
	}
	if block := s.first.check.blockSize; block > 0 {
		align = (align + block - 1) / block * block
	}
	return align
}

// open starts another reader at boundary, in the unit with index at, and reports whether it did: that unit's reader may have got
// there since the boundary was chosen.
func (s *Stream) open(ctx context.Context, at int, boundary int64) bool {
	check := s.first.check
	u := &unit{
		start: boundary, position: boundary, ahead: true, done: make(chan struct{}),
		reader: &reader{
			cfg: &s.cfg, timing: s.timing, log: s.log.With("streamStart", boundary), req: s.first.req, resumes: &s.resumes, opening: &s.opening,
			beyond: s.units[at].reader.beyond, // it lists what is left of what that one had to come past
			check: checker{
				kind: check.kind, capacity: check.capacity, blockSize: check.blockSize, phase: check.phase,
				start: boundary, runStart: boundary, end: boundary, fresh: true,
			},
		},
	}
	if !s.pool.cut(s.units[at], u) {
		return false
	}
	u.reader.timing.MaxAttempts = min(s.timing.MaxAttempts, lateAttempts)
	ctx, u.cancel = context.WithCancel(ctx)
	s.units = slices.Insert(s.units, at+1, u)
	s.pool.rerank(s.units)
	s.log.Info("reading ahead", "offset", boundary, "streams", len(s.units))
	go s.pool.produce(ctx, u)
	return true
}
