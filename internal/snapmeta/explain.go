package snapmeta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// explain turns err, which u met, into an *outcome.Error. What ended the list in a unit whose turn had not come goes first.
func (s *Stream) explain(ctx context.Context, u *unit, err error) error {
	s.pool.mu.Lock()
	if s.pool.fatal != nil {
		u = s.pool.fatal
	}
	s.pool.mu.Unlock()
	return u.reader.explain(ctx, err)
}

// explain turns err into an *outcome.Error that names what was asked of whom.
func (r *reader) explain(ctx context.Context, err error) error {
	var violation *ViolationError
	var altered *changedError
	var known *outcome.Error
	reason := outcome.InternalError
	switch {
	case ctx.Err() != nil:
		reason = outcome.Cancelled
	case errors.As(err, &violation):
		reason = outcome.ProtocolViolation
	case errors.As(err, &altered):
		reason = outcome.StreamFailed
	case errors.As(err, &known):
		reason = known.Reason
	}
	if errors.Is(err, io.EOF) {
		err = foreign{err}
	}
	what := "changed"
	if r.req.BaseHandle == "" {
		what = "allocated"
	}
	return outcome.Errorf(reason, "list the %s blocks of snapshot %s/%s from %q: %w%s",
		what, r.req.Namespace, r.req.Target, r.address, err, hint(reason, err))
}

// foreign is an error that has io.EOF in its chain, as that of a callback whose request lost its connection. It hides that and
// nothing else: who reads a stream takes io.EOF for the end of the list.
type foreign struct{ error }

// Is implements what errors.Is asks for.
func (f foreign) Is(target error) bool { return target != io.EOF && errors.Is(f.error, target) }

// As implements what errors.As asks for.
func (f foreign) As(target any) bool { return errors.As(f.error, target) }

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
func (r *reader) redact(err error) error {
	if len(r.token) < minSecret || !strings.Contains(err.Error(), r.token) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), r.token, "[token]"))
	}
	return status.Error(st.Code(), strings.ReplaceAll(st.Message(), r.token, "[token]"))
}
