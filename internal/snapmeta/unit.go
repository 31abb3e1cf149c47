package snapmeta

import (
	"context"
	"sync"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// lateShare is the part of the memory, 1 in so many, that the last unit leaves to those before it: what fill leaves.
const lateShare = 10

// chunkBytes is the unit in which memory for packed extents is taken; the longest piece fits.
const chunkBytes = 64 << 10

// unitState says how far a unit's reader is.
type unitState int

const (
	// reading: more extents may come.
	reading unitState = iota
	// passed: the reader has gone beyond the unit's limit.
	passed
	// ended: the service said, provably, that the list ends.
	ended
	// failed: the reader has given up, for the reason in err.
	failed
)

// unit is a part of the volume, read by one reader. The first one is read by the consumer itself, each further one by a
// goroutine, ahead of its turn.
type unit struct {
	reader *reader
	start  int64
	// ahead says that a goroutine reads; cancel ends it, and done is closed when it has ended. Both may be nil.
	ahead  bool
	cancel context.CancelFunc
	done   chan struct{}
	// seam leads to the next unit; it is there once an extent ended beyond the limit. The call is left open until the next unit has
	// confirmed it: if that contradicts, the list goes on with this very call, as if there had never been another.
	seam *seam

	// What follows is guarded by the pool's mu.

	state unitState
	err   error
	// unwelcome says that the service refused the unit before it had listed anything in it. Nobody but us chose to ask there, beside
	// another call, so that says nothing about the list.
	unwelcome bool
	// limit is where the next unit starts; 0 for the last one.
	limit int64
	// position is where the extent ends that was read last, and entries the number of those that were read.
	position, entries int64
	// listing is when the first extents came, and listed the end of the last of these: what the call took before says nothing about
	// how fast it is.
	listing time.Time
	listed  int64
	// rank is the number of units before this one.
	rank   int
	chunks [][]byte
}

// pool is the memory of all units of one list, and what their goroutines wait for.
type pool struct {
	mu sync.Mutex
	// changed is signalled when extents, room, an end or a rank came up.
	changed *sync.Cond
	// bytes bounds the memory in use, but for what the first unit needs to go on; ranks is the largest number of units.
	bytes int64
	ranks int
	used  int64
	free  [][]byte
	// packed and entries are about all extents so far: what one takes.
	packed, entries int64
	// fatal is the first unit whose goroutine met what ends the whole list, whoever's turn it is.
	fatal *unit
}

func newPool(bytes int64, ranks int) *pool {
	p := &pool{bytes: bytes, ranks: ranks}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// step reads on; no extents are the end of the list. It takes note of the position, and of the seam if the limit was passed.
func (p *pool) step(ctx context.Context, u *unit) ([]blocklist.Extent, error) {
	runStart, end := u.reader.check.runStart, u.reader.check.end
	extents, err := u.reader.next(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil:
		u.state, u.err = failed, err
		p.changed.Broadcast()
		u.unwelcome = u.ahead && u.entries == 0 && u.reader.refused
		if p.fatal == nil && !u.reader.exhausted && !u.unwelcome && ctx.Err() == nil {
			p.fatal = u
		}
		return nil, err
	case len(extents) == 0:
		u.state = ended
		p.changed.Broadcast()
		return nil, nil
	}
	u.position = u.reader.check.end
	if u.entries == 0 {
		u.listing, u.listed = time.Now(), u.position
	}
	u.entries += int64(len(extents))
	// A message that ends at the limit is not enough: what the next unit's call answers could not be compared with anything.
	if u.limit > 0 && u.position > u.limit {
		u.seam = newSeam(u.reader.check.kind, u.limit, runStart, end, extents)
	}
	return extents, nil
}

// cut ends u where next starts, unless u's reader has got there already: a seam is made of the message that reached it, which
// nobody has kept then.
func (p *pool) cut(u, next *unit) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.state != reading || u.seam != nil || u.position >= next.start {
		return false
	}
	next.limit, u.limit = u.limit, next.start
	return true
}

// close ends what reads u.
func (u *unit) close() {
	if u.cancel != nil {
		u.cancel()
		<-u.done
	}
	u.reader.stop()
}

// finish says how u ended.
func (p *pool) finish(u *unit, state unitState, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.state, u.err = state, err
	p.changed.Broadcast()
}

// produce reads u into its chunks until it is read or ctx ends. It is the body of the unit's goroutine.
func (p *pool) produce(ctx context.Context, u *unit) {
	defer close(u.done)
	// Who waits for room has to learn that ctx has ended.
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changed.Broadcast()
	})()
	scratch := make([]byte, 0, maxPieceBytes)
	for u.seam == nil {
		extents, err := p.step(ctx, u)
		if err != nil || len(extents) == 0 {
			u.reader.stop()
			return
		}
		for len(extents) > 0 {
			n := min(len(extents), pieceExtents)
			scratch = pack(scratch[:0], extents[:n])
			if err := p.put(ctx, u, scratch, n); err != nil {
				p.finish(u, failed, err)
				return
			}
			extents = extents[n:]
		}
	}
	p.finish(u, passed, nil)
}

// put appends a piece to u, waiting for room if necessary.
func (p *pool) put(ctx context.Context, u *unit, piece []byte, entries int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(u.chunks)
	if n == 0 || len(u.chunks[n-1])+len(piece) > chunkBytes {
		for !p.room(u) && ctx.Err() == nil {
			p.changed.Wait()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		u.chunks = append(u.chunks, p.take())
		n = len(u.chunks)
	}
	u.chunks[n-1] = append(u.chunks[n-1], piece...)
	p.packed += int64(len(piece))
	p.entries += int64(entries)
	p.changed.Broadcast()
	return nil
}

// room reports whether u may take another chunk. The later its turn the smaller the part of the memory up to which it
// may fill it, so that a late unit leaves room to an early one; and the next in turn can always go on. Units that are as far
// apart as reach wants them never meet these bounds.
func (p *pool) room(u *unit) bool {
	if len(u.chunks) < 2 {
		return true
	}
	share := p.bytes
	if p.ranks > 1 && u.rank > 1 {
		share -= p.bytes / lateShare * int64(min(u.rank, p.ranks)-1) / int64(p.ranks-1)
	}
	return p.used+chunkBytes <= share
}

// take returns an empty chunk. The caller holds mu.
func (p *pool) take() []byte {
	p.used += chunkBytes
	if n := len(p.free); n > 0 {
		chunk := p.free[n-1]
		p.free = p.free[:n-1]
		return chunk
	}
	return make([]byte, 0, chunkBytes)
}

// give takes chunks back.
func (p *pool) give(chunks ...[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, chunk := range chunks {
		p.used -= chunkBytes
		p.free = append(p.free, chunk[:0])
	}
	p.changed.Broadcast()
}

// get waits for packed extents of u and returns a chunk of them, to be given back; nil if u is read, or if the whole list
// has failed.
func (p *pool) get(u *unit) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(u.chunks) == 0 && u.state == reading && p.fatal == nil {
		p.changed.Wait()
	}
	if len(u.chunks) == 0 || p.fatal != nil {
		return nil
	}
	chunk := u.chunks[0]
	u.chunks = u.chunks[1:]
	return chunk
}

// failure returns why the list cannot be had, if what was read of u has been taken.
func (p *pool) failure(u *unit) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fatal != nil {
		return p.fatal.err
	}
	return u.err
}

// rerank takes note of the order of the units.
func (p *pool) rerank(units []*unit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, u := range units {
		u.rank = i
	}
	p.changed.Broadcast()
}
