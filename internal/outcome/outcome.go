// Package outcome is the contract between the populator pod and the controller: how one pass over a stream of changed
// blocks ended, said as a process exit code and as the JSON document that the pod leaves in its termination message.
//
// The populator has no access to the Kubernetes API, so whatever the controller is to know travels through here. Both
// sides import this package and nothing of each other. It uses the standard library only.
package outcome

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
)

// Version is the version of the termination message that this package writes. A reader refuses any other.
const Version = 1

// MaxMessageBytes bounds the termination message. The kubelet cuts a container's message at 4,096 bytes
// (https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/), and a cut JSON document
// cannot be read.
const MaxMessageBytes = 4096

// MaxFallbackBytes bounds Result.Fallback. In JSON it may take six times that, which leaves room for everything else.
const MaxFallbackBytes = 400

// Reason says in one PascalCase word how a pass ended. The controller uses it unchanged as the reason of conditions and
// events.
type Reason string

// The reasons, with the class of each in the table below.
const (
	// Populated: the list is complete and committed.
	Populated Reason = "Populated"

	// InvalidArguments: the populator's flags contradict each other or name things that do not exist.
	InvalidArguments Reason = "InvalidArguments"
	// InvalidRequest: the driver refused the snapshots (gRPC INVALID_ARGUMENT): other driver, other volume, bad handle.
	InvalidRequest Reason = "InvalidRequest"
	// SnapshotNotFound: the driver or the sidecar does not know a snapshot (gRPC NOT_FOUND).
	SnapshotNotFound Reason = "SnapshotNotFound"
	// DeltaUnavailable: changed block tracking is off or unsupported (gRPC FAILED_PRECONDITION, UNIMPLEMENTED).
	DeltaUnavailable Reason = "DeltaUnavailable"
	// PermissionDenied: the pod's service account may not get volumesnapshots in the namespace.
	PermissionDenied Reason = "PermissionDenied"
	// ListTooLarge: the list would exceed the ChangedBlockRange's maxSizeInBytes.
	ListTooLarge Reason = "ListTooLarge"
	// VolumeFull: the volume is too small for the list.
	VolumeFull Reason = "VolumeFull"
	// ProtocolViolation: the stream broke a promise of the SnapshotMetadata protocol; its content cannot be trusted.
	ProtocolViolation Reason = "ProtocolViolation"

	// Unauthenticated: the token was refused, also after it was read again.
	Unauthenticated Reason = "Unauthenticated"
	// StreamFailed: the stream kept failing without progress until the bound on attempts was reached.
	StreamFailed Reason = "StreamFailed"
	// OutputFailed: the volume could not be written (EIO, read-only, not mounted).
	OutputFailed Reason = "OutputFailed"
	// Cancelled: the process was asked to stop.
	Cancelled Reason = "Cancelled"
	// InternalError: a defect of the populator itself.
	InternalError Reason = "InternalError"
)

// Class says what follows from a Reason.
type Class string

const (
	// Success ends a population.
	Success Class = "Success"
	// Terminal means that another attempt would end the same way until something is changed.
	Terminal Class = "Terminal"
	// Retry means that another attempt may succeed.
	Retry Class = "Retry"
)

type verdict struct {
	class Class
	exit  int
}

// verdicts is the published table of exit codes (docs/populator.md): a code, once released, keeps its meaning.
var verdicts = map[Reason]verdict{
	Populated:         {Success, 0},
	InternalError:     {Retry, 1},
	InvalidArguments:  {Terminal, 2},
	InvalidRequest:    {Terminal, 10},
	SnapshotNotFound:  {Terminal, 11},
	DeltaUnavailable:  {Terminal, 12},
	PermissionDenied:  {Terminal, 13},
	ListTooLarge:      {Terminal, 14},
	VolumeFull:        {Terminal, 15},
	ProtocolViolation: {Terminal, 16},
	Unauthenticated:   {Retry, 20},
	StreamFailed:      {Retry, 21},
	OutputFailed:      {Retry, 22},
	Cancelled:         {Retry, 23},
}

// Class returns the class of r; an unknown reason may be retried, because nothing proves that it would fail again.
func (r Reason) Class() Class {
	if v, ok := verdicts[r]; ok {
		return v.class
	}
	return Retry
}

// ExitCode returns the populator's process exit code for r; 1 for an unknown reason.
func (r Reason) ExitCode() int {
	if v, ok := verdicts[r]; ok {
		return v.exit
	}
	return verdicts[InternalError].exit
}

// Reasons lists every reason.
func Reasons() []Reason {
	all := make([]Reason, 0, len(verdicts))
	for r := range verdicts {
		all = append(all, r)
	}
	return all
}

// Error is an error with a Reason. Message is a sentence for people: which object, what is wrong, what to do.
type Error struct {
	Reason  Reason
	Message string
	// Err is the cause, if there is one; Error appends it to the message.
	Err error
}

// Errorf returns an *Error whose message is formatted; a %w verb keeps the cause for errors.Is and errors.As.
func Errorf(r Reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Reason: r, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason that err carries, Populated for nil, and InternalError for an error without one.
func ReasonOf(err error) Reason {
	if err == nil {
		return Populated
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return InternalError
}

// Result is the content of the termination message. Sizes and offsets are bytes.
type Result struct {
	Version int    `json:"version"`
	Reason  Reason `json:"reason"`
	// Message is a sentence for people. Empty on success.
	Message string `json:"message,omitempty"`

	// Mode is the effective mode, "Delta" or "Allocated": a fallback shows here.
	Mode string `json:"mode,omitempty"`
	// Fallback says in a sentence why the delta that was asked for is unavailable, if the allocated blocks were listed
	// instead. At most MaxFallbackBytes.
	Fallback            string `json:"fallback,omitempty"`
	VolumeCapacityBytes int64  `json:"volumeCapacityBytes,omitempty"`
	BlockMetadataType   string `json:"blockMetadataType,omitempty"`
	// BlockSize is the constant extent size of a FIXED_LENGTH stream, 0 for VARIABLE_LENGTH or an empty list.
	BlockSize int64 `json:"blockSize,omitempty"`
	// EntryCount is the number of extents in the list, after rounding and merging.
	EntryCount int64 `json:"entryCount"`
	// ChangedBytes is the sum of the extents' lengths.
	ChangedBytes int64 `json:"changedBytes"`
	// NumBytesWritten is the size of the list itself.
	NumBytesWritten int64 `json:"numBytesWritten"`
	// ListDigest is "sha256:" and the hex digest of the list's bytes.
	ListDigest string `json:"listDigest,omitempty"`
	// Resumes counts how often the stream was continued after an interruption.
	Resumes int `json:"resumes,omitempty"`
}

// Marshal renders r for the termination message. It cuts Fallback to its bound, and shortens Message as little as it takes to
// keep the document whole within MaxMessageBytes.
func (r Result) Marshal() ([]byte, error) {
	r.Version = Version
	if r.Fallback = strings.ToValidUTF8(r.Fallback, "\uFFFD"); len(r.Fallback) > MaxFallbackBytes {
		r.Fallback = strings.ToValidUTF8(r.Fallback[:MaxFallbackBytes-len(cutMark)], "") + cutMark
	}
	full := strings.ToValidUTF8(r.Message, "\uFFFD")
	render := func(keep int) ([]byte, error) {
		r.Message = full
		if keep < len(full) {
			r.Message = strings.ToValidUTF8(full[:keep], "") + cutMark
		}
		data, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encode result: %w", err)
		}
		return data, nil
	}
	data, err := render(len(full))
	if err != nil || len(data) <= MaxMessageBytes {
		return data, err
	}
	// A byte of the message takes one to six of JSON, so the longest prefix that fits is searched for.
	tooLong := sort.Search(min(len(full), MaxMessageBytes), func(keep int) bool {
		data, err := render(keep)
		return err != nil || len(data) > MaxMessageBytes
	})
	if tooLong == 0 {
		return nil, fmt.Errorf("encode result: without its message it exceeds the %d bytes of a termination message", MaxMessageBytes)
	}
	return render(tooLong - 1)
}

const cutMark = "…"

// Parse reads a termination message. It fails on anything that Marshal did not write, such as the last log lines that
// the kubelet puts there when a container died without a message.
func Parse(message string) (Result, error) {
	dec := json.NewDecoder(strings.NewReader(message))
	var r Result
	if err := dec.Decode(&r); err != nil {
		return Result{}, fmt.Errorf("parse termination message: %w", err)
	}
	if r.Version != Version {
		return Result{}, fmt.Errorf("parse termination message: version %d, want %d", r.Version, Version)
	}
	if r.Reason == "" {
		return Result{}, errors.New("parse termination message: it has no reason")
	}
	if dec.More() {
		return Result{}, errors.New("parse termination message: something follows the result")
	}
	return r, nil
}
