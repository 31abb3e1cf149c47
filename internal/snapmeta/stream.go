package snapmeta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// endsToBelieve is how often an end must be said at one offset: by the stream that got there, and by the empty answer of
// another that started there.
const endsToBelieve = 2

// maxTokenFailures bounds the refusals of the token in a row. A projected token is renewed long before it expires, so
// that more attempts than these would not meet a better one.
const maxTokenFailures = 5

// Stream delivers the extents of one request. It is not safe for concurrent use.
type Stream struct {
	cfg    Config
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
	// ends counts how often the server said that nothing follows check.end.
	ends      int
	suspected bool
	// interrupted is set from a failure that cost a started list its stream, to the next call.
	interrupted bool
	resumes     int
	// fallback is why the allocated blocks are listed although a delta was asked for; empty otherwise.
	fallback string
	err      error
}

// New returns a Stream for cfg. It connects when Next is called first.
func New(cfg Config) (*Stream, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Stream{cfg: cfg, timing: cfg.Timing.withDefaults(), log: log, req: cfg.Request}, nil
}

// Info returns what is known of the list so far. All of it is known when Next first returned extents or io.EOF.
func (s *Stream) Info() Info {
	info := Info{Mode: blocklist.Delta, BlockMetadataType: blocklist.UnknownLength}
	if s.req.BaseHandle == "" {
		info.Mode = blocklist.Allocated
	}
	if s.check.capacity > 0 {
		info.BlockMetadataType = blocklist.BlockMetadataType(s.check.kind.String())
		info.CapacityBytes = s.check.capacity
		info.BlockSize = s.check.blockSize
	}
	return info
}

// Resumes returns how often the list was continued by another call after it had been interrupted.
func (s *Stream) Resumes() int { return s.resumes }

// Fallback returns in a sentence why the allocated blocks are listed although a delta was asked for, in the driver's words;
// empty as long as what was asked for is listed.
func (s *Stream) Fallback() string { return s.fallback }

// Next returns the next extents, in ascending order; they are valid until the next call. It returns io.EOF when the list
// is complete, and otherwise an *outcome.Error. After an error it keeps returning it.
func (s *Stream) Next(ctx context.Context) ([]blocklist.Extent, error) {
	if s.err != nil {
		return nil, s.err
	}
	extents, err := s.next(ctx)
	if err == nil {
		return extents, nil
	}
	s.Close()
	if !errors.Is(err, io.EOF) {
		err = s.explain(ctx, err)
	}
	s.err = err
	return nil, err
}

// Close ends the stream and its connection.
func (s *Stream) Close() {
	s.closeCall()
	if s.conn != nil {
		// A connection's Close fails only if it is closed already.
		_ = s.conn.Close()
		s.conn = nil
	}
}

func (s *Stream) closeCall() {
	if s.call != nil {
		s.call.close()
		s.call = nil
	}
}

func (s *Stream) next(ctx context.Context) ([]blocklist.Extent, error) {
	for {
		if s.call == nil {
			if s.complete() {
				return nil, io.EOF
			}
			if err := s.open(ctx); err != nil {
				if err := s.failed(ctx, err); err != nil {
					return nil, err
				}
				continue
			}
		}
		m, err := s.call.next(s.batch)
		switch {
		case err == nil:
			extents, err := s.accept(m)
			if err != nil {
				return nil, err
			}
			if len(extents) > 0 {
				return extents, nil
			}
		case errors.Is(err, io.EOF):
			s.ended()
		default:
			if err := s.failed(ctx, s.redact(err)); err != nil {
				return nil, err
			}
		}
	}
}

// complete reports whether the list is: nothing can follow it, or the server said twice that nothing does.
func (s *Stream) complete() bool { return s.check.full() || s.ends >= endsToBelieve }

// open starts a call where the list ends so far. The connection of a call that ended well is used again.
func (s *Stream) open(ctx context.Context) error {
	// Also when opening fails, the violation and log texts must not count the last call's messages as this one's.
	s.check.beginCall()
	s.started = time.Now()
	if s.conn == nil {
		e, err := s.cfg.Endpoint()
		if err != nil {
			return err
		}
		s.address = e.Address
		if s.conn, err = dial(e, s.timing); err != nil {
			return err
		}
	}
	token, err := s.cfg.Token()
	if err != nil {
		return err
	}
	s.token = token
	c, err := openCall(ctx, s.conn, s.req, token, s.check.end, s.timing)
	if err != nil {
		return s.redact(err)
	}
	if s.interrupted {
		s.interrupted = false
		s.resumes++
	}
	s.call = c
	return nil
}

// accept checks a message and takes its extents as progress.
func (s *Stream) accept(m message) ([]blocklist.Extent, error) {
	s.batch = m.extents
	extents, err := s.check.accept(m)
	if err != nil || len(extents) == 0 {
		return nil, err
	}
	if s.ends > 0 {
		s.log.Warn("stream had ended early as if complete", "offset", extents[0].Offset)
		s.resumes++
		s.ends = 0
	}
	s.failures, s.tokenFailures, s.suspected = 0, 0, false
	if s.check.full() {
		// The end is still awaited, because a message after it would show that the order was broken, but not
		// for long.
		s.call.limit.Store(int64(s.timing.EndGrace))
	}
	return extents, nil
}

// ended takes note of a stream that ended as if complete.
func (s *Stream) ended() {
	s.closeCall()
	if s.check.messages == 0 && !s.suspected && time.Since(s.started) > s.timing.SuspectAfter {
		s.log.Warn("stream ended without a message after a long silence, asking again", "offset", s.check.end)
		s.suspected = true
		return
	}
	s.ends++
}

// failed decides what follows from err, the failure of a call: nil to go on with another one, after a wait.
func (s *Stream) failed(ctx context.Context, err error) error {
	s.closeCall()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	kind, reason := classify(err)
	switch kind {
	case failTerminal:
		return outcome.Errorf(reason, "%w", err)
	case failNoDelta:
		if s.req.BaseHandle == "" || !s.req.UseAllocated || s.check.capacity > 0 {
			return outcome.Errorf(reason, "%w", err)
		}
		s.log.Warn("delta is unavailable, listing the allocated blocks instead", "error", err.Error())
		s.req.BaseHandle = ""
		s.fallback = driverWords(err)
		return nil
	case failPastEnd:
		if s.check.end == 0 {
			return outcome.Errorf(reason, "the driver calls offset 0 out of range: %w", err)
		}
		if s.check.messages == 0 {
			s.ends++
			return nil
		}
		// After messages it is no answer to the offset that was asked for.
	case failToken:
		s.tokenFailures++
	case failRetry:
	}
	if s.check.full() {
		return nil
	}
	return s.retry(ctx, err, reason)
}

// retry waits before another attempt, or gives up.
func (s *Stream) retry(ctx context.Context, err error, reason outcome.Reason) error {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
	s.interrupted = s.check.capacity > 0
	s.failures++
	if s.failures >= s.timing.MaxAttempts || s.tokenFailures >= maxTokenFailures {
		if reason != outcome.Unauthenticated {
			reason = outcome.StreamFailed
		}
		return outcome.Errorf(reason, "gave up after %d attempts without progress at offset %d: %w", s.failures, s.check.end, err)
	}
	wait := backoffFor(s.failures, s.timing)
	s.log.Warn("stream failed, trying again", "offset", s.check.end, "capacity", s.check.capacity,
		"attempt", s.failures, "of", s.timing.MaxAttempts, "waitMillis", wait.Milliseconds(), "error", err.Error())
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// backoffFor returns the wait after the n-th failure in a row, n from 1: doubling, with ±50 % jitter so that many
// populators do not return to a restarted service at one moment.
func backoffFor(n int, timing Timing) time.Duration {
	wait := timing.FirstBackoff
	for i := 1; i < n && wait < timing.LongestBackoff; i++ {
		wait *= 2
	}
	wait = min(wait, timing.LongestBackoff)
	return wait/2 + rand.N(wait)
}

// explain turns err into an *outcome.Error that names what was asked of whom.
func (s *Stream) explain(ctx context.Context, err error) error {
	var violation *ViolationError
	var resized *resizedError
	var known *outcome.Error
	reason := outcome.InternalError
	switch {
	case ctx.Err() != nil:
		reason = outcome.Cancelled
	case errors.As(err, &violation):
		reason = outcome.ProtocolViolation
	case errors.As(err, &resized):
		reason = outcome.StreamFailed
	case errors.As(err, &known):
		reason = known.Reason
	}
	what := "changed"
	if s.req.BaseHandle == "" {
		what = "allocated"
	}
	return outcome.Errorf(reason, "list the %s blocks of snapshot %s/%s from %q: %w%s",
		what, s.req.Namespace, s.req.Target, s.address, err, hint(reason, err))
}

// hint returns what to do about an error, to be appended to its text.
func hint(reason outcome.Reason, err error) string {
	text := err.Error()
	switch {
	case reason == outcome.StreamFailed && (strings.Contains(text, "x509:") || strings.Contains(text, "tls:")):
		return " (check the caCert and the address of the SnapshotMetadataService against the certificate that it serves)"
	case reason == outcome.DeltaUnavailable:
		return " (the driver cannot tell what changed: switch changed block tracking on, or ask for whenDeltaUnavailable: UseAllocated)"
	case reason == outcome.PermissionDenied:
		return " (the populator's service account needs the permission to get volumesnapshots in that namespace)"
	case reason == outcome.Unauthenticated:
		return " (the token's audience must be that of the SnapshotMetadataService)"
	}
	return ""
}

// minSecret is the length below which a token is too short to be searched for: it would match ordinary words.
const minSecret = 8

// redact removes the token from an error's text: it may go to logs, events and status, and a server may echo it.
func (s *Stream) redact(err error) error {
	if len(s.token) < minSecret || !strings.Contains(err.Error(), s.token) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), s.token, "[token]"))
	}
	return status.Error(st.Code(), strings.ReplaceAll(st.Message(), s.token, "[token]"))
}
