package snapmeta

import (
	"errors"
	"log/slog"
	"math"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for name, c := range map[string]struct {
		p              pace
		after, opening time.Duration
		want           bool
	}{
		"at once":                      {pace{began: ago(0), split: ago(0)}, 0, 0, true},
		"too early":                    {pace{began: ago(time.Hour), split: ago(time.Hour), waited: time.Hour}, 2 * time.Hour, 0, false},
		"time for a second":            {pace{began: ago(time.Hour), split: ago(time.Hour), waited: time.Hour}, time.Minute, 0, true},
		"too early for a third":        {pace{began: ago(time.Hour), split: ago(time.Minute), waited: time.Minute}, 30 * time.Minute, 0, false},
		"time for a third":             {pace{began: ago(time.Hour), split: ago(20 * time.Minute), waited: time.Hour}, 30 * time.Minute, 0, true},
		"the volume is what is slow":   {pace{began: ago(time.Hour), split: ago(time.Hour), waited: 20 * time.Minute}, time.Minute, 0, false},
		"calls are answered at once":   {pace{began: ago(time.Hour), split: ago(time.Minute), waited: time.Hour}, time.Second, time.Second, true},
		"calls are answered slowly":    {pace{began: ago(time.Hour), split: ago(time.Minute), waited: time.Hour}, time.Second, 2 * time.Minute, false},
		"one gave up a short time ago": {pace{began: ago(time.Hour), split: ago(time.Hour), waited: time.Hour, held: ago(-time.Hour)}, 0, 0, false},
	} {
		if got := c.p.due(c.after, c.opening); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestGoAlone: who goes on with the list has the patience of the list, whatever it had while it read ahead.
func TestGoAlone(t *testing.T) {
	for _, state := range []unitState{passed, ended, failed} {
		s := &Stream{timing: Timing{}.withDefaults(), log: slog.New(slog.DiscardHandler), pool: newPool(readAheadBytes, 4), drained: true}
		u := &unit{ahead: true, done: make(chan struct{}), state: state, err: errors.New("gave up"), limit: 1, reader: &reader{exhausted: true, failures: 3}}
		close(u.done)
		u.reader.timing.MaxAttempts = 1
		s.units = []*unit{u}
		s.goAlone(errors.New("refused"))
		if r := u.reader; r.timing != s.timing || r.exhausted || r.failures != 3 || u.ahead || u.state != reading || u.err != nil || u.limit != 0 || s.drained {
			t.Errorf("state %d: %+v, %+v", state, u, r)
		}
	}
}

// TestBoundary looks at where units are split.
func TestBoundary(t *testing.T) {
	const tib, gib = 1 << 40, 1 << 30
	for name, c := range map[string]struct {
		after           time.Duration
		capacity, block int64
		phase           int64
		position, limit int64
		entries         int64
		low, high       int64
	}{
		"sparse: an even share":       {0, tib, 0, 0, 1 << 20, 0, 1, tib / 5, tib / 3},
		"dense: what there is memory": {0, tib, 4096, 0, gib, 0, gib / 8192, gib + 4*gib, gib + 16*gib},
		"all fits: an even share":     {0, 1 << 36, 4096, 0, gib / 4, 0, gib / 4 / (16 << 10), gib/4 + 15*gib, gib/4 + 16*gib},
		"up to the next unit":         {0, tib, 0, 0, gib, 9 * gib, 1, 2 * gib, 5 * gib},
		"nothing read":                {0, tib, 0, 0, 0, 0, 0, 0, 0},
		"next to nothing left":        {0, tib, 4096, 0, tib - 2<<20, 0, 1000, 0, 0},
		"not worth a call":            {time.Hour, tib, 4096, 0, tib / 2, 0, 1000, 0, 0},
		"not worth so slow a call":    {time.Second, tib, 4096, 0, tib / 2, 0, 1000, 0, 0},
		"blocks larger than units":    {0, 64 << 20, 5 << 20, 0, 5 << 20, 0, 1, 10 << 20, 25 << 20},
		"blocks off the grid":         {0, tib, 4096, 512, gib + 512, 0, 1000, gib, tib / 2},
		"a volume without end":        {0, math.MaxInt64, 4096, 4095, gib, 0, 1000, gib, math.MaxInt64 / 2},
	} {
		s := &Stream{cfg: Config{Streams: 4, StreamsAfter: c.after}, pool: newPool(readAheadBytes, 4)}
		s.first = &reader{check: checker{capacity: c.capacity, blockSize: c.block, phase: c.phase, end: c.position}}
		s.units = []*unit{{reader: s.first, position: c.position, limit: c.limit, entries: c.entries}}
		s.pace.began = time.Now().Add(-time.Minute)
		if name == "not worth so slow a call" {
			s.opening.Store(int64(time.Minute))
		}
		at, got := s.boundary()
		if at != 0 || got < c.low || got > c.high || c.low == 0 && got != 0 {
			t.Errorf("%s: %d, want from %d to %d", name, got, c.low, c.high)
		}
		if got > 0 && (got <= c.position || (got-c.phase)%(1<<20) != 0 || c.block > 0 && (got-c.phase)%c.block != 0) {
			t.Errorf("%s: %d is not on the grid", name, got)
		}
	}
}

// TestNoSplitOfWhatIsLeft: how long a call took until its first message says nothing about how long what it lists will take. Where calls
// are answered slowly, the last part of a list would be split again and again otherwise, and each time the next call be waited for.
func TestNoSplitOfWhatIsLeft(t *testing.T) {
	const hundredth, message = 10 << 30, 1 << 28
	const start, capacity = 99 * hundredth, 100 * hundredth
	now := time.Now()
	for name, u := range map[string]*unit{
		"after its first message":  {position: start + message, entries: 1024, listing: now, listed: start + message},
		"after a second of it":     {position: start + 10*message, entries: 10240, listing: now.Add(-time.Second), listed: start + message},
		"before its first message": {position: start},
	} {
		u.start = start
		before := &unit{start: start - hundredth, position: start, limit: start, entries: 1 << 20, state: passed}
		s := &Stream{cfg: Config{Streams: 4, StreamsAfter: 10 * time.Second}, pool: newPool(readAheadBytes, 4)}
		s.first = &reader{check: checker{capacity: capacity, blockSize: 4096}}
		s.units = []*unit{before, u}
		s.pace.began = now.Add(-2 * time.Minute)
		if _, boundary := s.boundary(); boundary != 0 {
			t.Errorf("%s, the last hundredth is split at %d", name, boundary)
		}
	}
}

// TestSplitOfAUnitThatGoesOn: between the choice of a boundary and the split the unit's reader goes on. Where it has got there, no
// other may begin: what was read past the boundary is not at hand for the seam.
func TestSplitOfAUnitThatGoesOn(t *testing.T) {
	const boundary = 8 << 20
	for name, c := range map[string]struct {
		now  unit
		want int
	}{
		"still before":        {unit{position: boundary - 1}, 2},
		"there":               {unit{position: boundary}, 1},
		"past it":             {unit{position: boundary + 1}, 1},
		"the list has ended":  {unit{position: 1, state: ended}, 1},
		"it has failed":       {unit{position: 1, state: failed}, 1},
		"it has come to next": {unit{position: 1, state: passed}, 1},
		"about to say so":     {unit{position: 1, seam: &seam{}}, 1},
	} {
		s := &Stream{
			cfg:    Config{Streams: 2, Endpoint: func() (Endpoint, error) { return Endpoint{}, errors.New("away") }},
			timing: Timing{MaxAttempts: 1}.withDefaults(), log: slog.New(slog.DiscardHandler), pool: newPool(readAheadBytes, 2),
			first: &reader{check: checker{capacity: 1 << 30}, beyond: 50 << 20},
		}
		u := &c.now
		u.reader, u.limit = s.first, 1<<30
		s.units = []*unit{u}
		s.open(t.Context(), 0, boundary)
		s.pool.mu.Lock()
		limit := u.limit
		s.pool.mu.Unlock()
		if n := len(s.units); n != c.want || (limit == boundary) != (n == 2) {
			t.Errorf("%s: %d units, the first up to %d; want %d", name, n, limit, c.want)
		}
		// Whoever lists the rest has to come past what another call has listed.
		if last := s.units[len(s.units)-1].reader; last.beyond != 50<<20 {
			t.Errorf("%s: the last reader may end before %d", name, last.beyond)
		}
		s.Close()
	}
}

// TestReach plays streams that are equally fast and a list without end, whose first unit is taken as it is read: hardly ever may
// one of them find no room, in the beginning or later.
func TestReach(t *testing.T) {
	const ticks, extentEvery = 2000, 8192
	const step = chunkBytes / guessedBytes * extentEvery // what is read of the volume in a tick
	for _, n := range []int{2, 3, 4, 8} {
		s := &Stream{cfg: Config{Streams: n}, pool: newPool(readAheadBytes, n)}
		units := []*unit{{}}
		ended := func(u *unit) bool { return u.limit > 0 && u.position >= u.limit }
		reads := 0
		for range ticks {
			for len(units) < n {
				at := len(units) - 1
				u := units[at]
				u.limit = u.position + int64(s.reach(at, 1.0/extentEvery))
				units = append(units, &unit{start: u.limit, position: u.limit})
			}
			for i, u := range units {
				u.rank = i
				if ended(u) || i > 0 && !s.pool.room(u) {
					continue
				}
				if i > 0 {
					u.chunks = append(u.chunks, s.pool.take())
				}
				u.position += step
				reads++
			}
			for ended(units[0]) {
				units = units[1:]
				s.pool.give(units[0].chunks...)
				units[0].chunks = nil
			}
		}
		if busy := float64(reads) / float64(n*ticks); busy < 0.97 {
			t.Errorf("%d streams were reading for %.0f%% of the time", n, 100*busy)
		}
	}
}
