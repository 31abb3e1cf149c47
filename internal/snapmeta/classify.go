package snapmeta

import (
	"errors"
	"fmt"
	"regexp"
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
//
// Drivers that ask another service wrap its answer in INTERNAL, with the code in the text (vsphere-csi-driver). That one has no delta
// is taken from there, because what follows is safe: all allocated blocks, or a refusal that is tried again now and then. That nothing
// follows an offset is not: the list might end too early.
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
	case codes.Internal, codes.Unknown:
		if wrapped.MatchString(s.Message()) {
			return failNoDelta, outcome.DeltaUnavailable
		}
		return failRetry, outcome.StreamFailed
	default:
		return failRetry, outcome.StreamFailed
	}
}

// wrapped is what a gRPC error of that code is in words.
var wrapped = regexp.MustCompile(`rpc error: code = (FailedPrecondition|Unimplemented) `)

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
