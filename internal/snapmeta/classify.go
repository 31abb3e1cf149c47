package snapmeta

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// failure is what follows from an error of a call.
type failure int

const (
	// failRetry: continue where the stream broke off.
	failRetry failure = iota
	// failToken: read the token again, then retry.
	failToken
	// failPastEnd: the server says that nothing can follow the offset.
	failPastEnd
	// failNoDelta: the driver has no changed block tracking.
	failNoDelta
	// failTerminal: another attempt would end the same way.
	failTerminal
)

// classify says what follows from err, an error of a call other than io.EOF, and, for a terminal one, the reason.
//
// A code that is not listed may be retried. That includes UNAVAILABLE, although the sidecar also answers so when the
// VolumeSnapshot is missing or not ready: nothing but the text tells that from a restart, and the bound on attempts ends it.
func classify(err error) (failure, outcome.Reason) {
	// FromError looks through wrapped errors; one that is no status came from our side of the connection.
	s, ok := status.FromError(err)
	if !ok || errors.Is(err, errSilent) {
		return failRetry, outcome.StreamFailed
	}
	switch s.Code() {
	case codes.InvalidArgument:
		return failTerminal, outcome.InvalidRequest
	case codes.NotFound:
		return failTerminal, outcome.SnapshotNotFound
	case codes.PermissionDenied:
		return failTerminal, outcome.PermissionDenied
	case codes.OutOfRange:
		return failPastEnd, outcome.InvalidRequest
	case codes.FailedPrecondition, codes.Unimplemented:
		return failNoDelta, outcome.DeltaUnavailable
	case codes.Unauthenticated:
		return failToken, outcome.Unauthenticated
	default:
		return failRetry, outcome.StreamFailed
	}
}

// driverWords returns the gRPC status in err on one line, without what our side of the connection put before it.
func driverWords(err error) string {
	var answer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answer) {
		return err.Error()
	}
	s := answer.GRPCStatus()
	words := strings.Join(strings.Fields(s.Message()), " ")
	if words == "" {
		return fmt.Sprintf("the driver answered %s", s.Code())
	}
	return fmt.Sprintf("the driver answered %s: %s", s.Code(), words)
}
