package snapmeta

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// endsToBelieve is how often an end must be said at one offset: by the stream that got there, and by the empty answer of
// another that started there.
const endsToBelieve = 2

// maxTokenFailures bounds the refusals of the token in a row. A projected token is renewed long before it expires, so
// that more attempts than these would not meet a better one.
const maxTokenFailures = 5

// reader delivers the extents of one request from one offset on, over as many calls as that takes. It is not safe for
// concurrent use.
type reader struct {
	cfg    *Config
	timing Timing
	log    *slog.Logger
	// req is the request in force: cfg.Request, or without its base after a fallback.
	req     Request
	address string
	token   string
	conn    *grpc.ClientConn
	call    *call
	started time.Time
	check   checker
	batch   []blocklist.Extent

	// failures and tokenFailures count the failures since the last new extent.
	failures, tokenFailures int
	// exhausted is set when the reader gave up after failures that might have passed.
	exhausted bool
	// refused is set when the reader gave up because of what the service answered to a call: an error, or what does not fit earlier calls.
	refused bool
	// ends counts how often the server said that nothing follows check.end.
	ends      int
	suspected bool
	// listed is set when the current call has told a new extent.
	listed bool
	// beyond is the end of an extent that another call has listed; an end that is said before it is a lie.
	beyond int64
	// interrupted is set from a failure that cost a started list its stream, to the next call.
	interrupted bool
	// opening is how long the service took lately until a call's first message, in nanoseconds; the readers share it.
	opening *atomic.Int64
	// resumes counts the interruptions that were healed; the readers of one list share it.
	resumes *atomic.Int64
	// fallback is why the allocated blocks are listed although a delta was asked for; empty otherwise.
	fallback string
}

// stop ends the call and its connection. The reader can go on afterwards, where it was.
func (r *reader) stop() {
	r.closeCall()
	r.closeConn()
}

func (r *reader) closeCall() {
	if r.call != nil {
		r.call.close()
		r.call = nil
	}
}

func (r *reader) closeConn() {
	if r.conn != nil {
		// A connection's Close fails only if it is closed already.
		_ = r.conn.Close()
		r.conn = nil
	}
}

// next returns the next extents, valid until the next call; none at the proven end of the list. No error says that, because in
// errors there is what others said: a callback, a connection.
func (r *reader) next(ctx context.Context) ([]blocklist.Extent, error) {
	for {
		if r.call == nil {
			if r.complete() {
				return nil, nil
			}
			if err := r.open(ctx); err != nil {
				if err := r.failed(ctx, err); err != nil {
					return nil, err
				}
				continue
			}
		}
		m, err := r.call.next(r.batch)
		switch err {
		case nil:
			extents, err := r.accept(m)
			if err != nil {
				return nil, err
			}
			if len(extents) > 0 {
				return extents, nil
			}
		case io.EOF: //nolint:errorlint // the end of a call; an error that wraps it is a failure
			if err := r.ended(ctx); err != nil {
				return nil, err
			}
		default:
			if err := r.failed(ctx, r.redact(err)); err != nil {
				return nil, err
			}
		}
	}
}

// complete reports whether the list is: nothing can follow it, or the server said twice that nothing does.
func (r *reader) complete() bool { return r.check.full() || r.ends >= endsToBelieve }

// open starts a call where the list ends so far. The connection of a call that ended well is used again.
func (r *reader) open(ctx context.Context) error {
	// Also when opening fails, the violation and log texts must not count the last call's messages as this one's.
	r.check.beginCall()
	r.started = time.Now()
	if r.conn == nil {
		e, err := r.cfg.Endpoint()
		if err != nil {
			return err
		}
		r.address = e.Address
		if r.conn, err = dial(e, r.timing); err != nil {
			return err
		}
	}
	token, err := r.cfg.Token()
	if err != nil {
		return err
	}
	r.token = token
	c, err := openCall(ctx, r.conn, r.req, token, r.check.end, r.timing)
	if err != nil {
		return r.redact(err)
	}
	if r.interrupted {
		r.interrupted = false
		r.resumes.Add(1)
	}
	r.call, r.listed = c, false
	return nil
}

// accept checks a message and takes its extents as progress.
func (r *reader) accept(m message) ([]blocklist.Extent, error) {
	r.batch = m.extents
	extents, err := r.check.accept(m)
	if r.check.messages == 1 {
		r.opened()
	}
	if err != nil {
		var altered *changedError
		r.refused = errors.As(err, &altered)
		return nil, err
	}
	if len(extents) == 0 {
		return nil, nil
	}
	r.listed = true
	if r.ends > 0 {
		r.log.Warn("stream had ended early as if complete", "offset", extents[0].Offset)
		r.resumes.Add(1)
		r.ends = 0
	}
	r.call.progress()
	r.failures, r.tokenFailures, r.suspected = 0, 0, false
	if r.check.full() {
		// The end is still awaited, because a message after it would show that the order was broken, but not
		// for long.
		r.call.limit.Store(int64(r.timing.EndGrace))
	}
	return extents, nil
}

// opened takes note of how long the call's first message took. What calls have cost before fades slowly, so that one that was
// lucky does not make the next ones look cheap.
func (r *reader) opened() {
	if r.opening != nil {
		r.opening.Store(max(int64(time.Since(r.started)), r.opening.Load()*3/4))
	}
}

// ended takes note of a stream that ended as if complete.
func (r *reader) ended(ctx context.Context) error {
	r.closeCall()
	if !r.listed && !r.suspected && time.Since(r.started) > r.timing.SuspectAfter {
		r.log.Warn("stream ended without an extent after a long silence, asking again", "offset", r.check.end)
		r.suspected = true
		return nil
	}
	return r.endSaid(ctx)
}

// endSaid counts an end that the server said at check.end, unless another call has listed what follows.
func (r *reader) endSaid(ctx context.Context) error {
	r.ends++
	if r.ends < endsToBelieve || r.check.end >= r.beyond {
		return nil
	}
	r.ends = 0
	return r.retry(ctx, r.check.violation(r.check.end,
		"the list was said to end here, but a call that started further on listed an extent up to %d", r.beyond), outcome.ProtocolViolation)
}

// doubt takes back the end of the list that next reported, because another call has listed an extent that ends at beyond.
func (r *reader) doubt(beyond int64) { r.ends, r.suspected, r.beyond = 0, false, max(r.beyond, beyond) }

// failed decides what follows from err, the failure of a call: nil to go on with another one, after a wait.
func (r *reader) failed(ctx context.Context, err error) error {
	r.closeCall()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	kind, reason := classify(err)
	switch kind {
	case failTerminal:
		r.refused = true
		return outcome.Errorf(reason, "%w", err)
	case failNoDelta:
		if r.req.BaseHandle == "" || !r.req.UseAllocated || r.check.capacity > 0 {
			r.refused = true
			return outcome.Errorf(reason, "%w", err)
		}
		r.log.Warn("delta is unavailable, listing the allocated blocks instead", "error", err.Error())
		r.req.BaseHandle = ""
		// What was said about the end of the delta says nothing about the allocated blocks.
		r.ends, r.suspected = 0, false
		r.fallback = driverWords(err)
		return nil
	case failPastEnd:
		if r.check.end == 0 {
			return outcome.Errorf(reason, "the driver calls offset 0 out of range: %w", err)
		}
		if r.check.messages == 0 {
			return r.endSaid(ctx)
		}
		// After messages it is no answer to the offset that was asked for.
	case failToken:
		r.tokenFailures++
	case failRetry:
	}
	if r.check.full() {
		return nil
	}
	return r.retry(ctx, err, reason)
}

// retry waits before another attempt, or gives up.
func (r *reader) retry(ctx context.Context, err error, reason outcome.Reason) error {
	r.closeConn()
	r.interrupted = r.check.capacity > 0
	r.failures++
	if r.tired(r.timing) {
		if reason != outcome.Unauthenticated {
			reason = outcome.StreamFailed
		}
		r.exhausted = true
		return outcome.Errorf(reason, "gave up after %d attempts without progress at offset %d: %w", r.failures, r.check.end, err)
	}
	wait := backoffFor(r.failures, r.timing)
	r.log.Warn("stream failed, trying again", "offset", r.check.end, "capacity", r.check.capacity,
		"attempt", r.failures, "of", r.timing.MaxAttempts, "waitMillis", wait.Milliseconds(), "error", err.Error())
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// tired reports whether there were as many failures in a row as timing allows.
func (r *reader) tired(timing Timing) bool {
	return r.failures >= timing.MaxAttempts || r.tokenFailures >= maxTokenFailures
}

// backoffFor returns the wait after the n-th failure in a row, n from 1: doubling, with ±50 % jitter so that many
// populators do not return to a restarted service at one moment.
func backoffFor(n int, timing Timing) time.Duration {
	wait := timing.FirstBackoff
	for i := 1; i < n && wait < timing.LongestBackoff; i++ {
		wait *= 2
	}
	wait = min(wait, timing.LongestBackoff)
	return wait/2 + rand.N(wait) //nolint:gosec // spreads attempts, protects nothing
}
