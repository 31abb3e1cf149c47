package fakes

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

// Kind names a fault.
type Kind string

// Faults that a client can heal: the list is still to be had.
const (
	// Cut closes the connection.
	Cut Kind = "cut"
	// Reset closes the connection with a TCP RST.
	Reset Kind = "reset"
	// Hang sends nothing more, while the server lives and answers health checks.
	Hang Kind = "hang"
	// Freeze sends nothing more and answers no health check until the call is over: a dead process.
	Freeze Kind = "freeze"
	// EarlyEnd ends the stream as if it were complete.
	EarlyEnd Kind = "early-end"
	// Status ends the stream with the fault's code.
	Status Kind = "status"
	// Drip waits before every message from this one on.
	Drip Kind = "drip"
	// Empty sends a message without extents, then goes on.
	Empty Kind = "empty-message"
	// Chatter sends messages without extents from here on, the fault's delay apart, and nothing else.
	Chatter Kind = "chatter"
	// BeginsEarlier makes the first extent of a continued VARIABLE_LENGTH stream begin in what was sent before, where
	// the protocol allows it.
	BeginsEarlier Kind = "begins-earlier"
	// RotateCertificate replaces the certificate and cuts all connections; OnRotate may then tell the client.
	RotateCertificate Kind = "rotate"
)

// Faults that break a promise of the protocol.
const (
	Duplicate      Kind = "duplicate"       // the message is sent twice
	Reorder        Kind = "reorder"         // the message's first two extents change places
	Swap           Kind = "swap"            // the message and the next one change places
	Overlap        Kind = "overlap"         // the message's last extent begins inside the one before it
	Shift          Kind = "shift"           // all extents of the message move by the fault's amount
	ChangeType     Kind = "change-type"     // FIXED_LENGTH becomes VARIABLE_LENGTH or the reverse
	UnknownType    Kind = "unknown-type"    // the type is UNKNOWN
	ChangeCapacity Kind = "change-capacity" // the capacity grows by the fault's amount
	NoCapacity     Kind = "no-capacity"     // the capacity is 0
	ZeroSize       Kind = "zero-size"       // the message's last extent is empty
	NegativeSize   Kind = "negative-size"   // the message's last extent has a negative size
	NegativeOffset Kind = "negative-offset" // the message's first extent has a negative offset
	Overflow       Kind = "overflow"        // the message's last extent ends past the range of int64
	PastCapacity   Kind = "past-capacity"   // the message's last extent ends past the capacity
	OddSize        Kind = "odd-size"        // the message's last extent is one byte short, in a FIXED_LENGTH stream
	IgnoreOffset   Kind = "ignore-offset"   // the stream starts at offset 0 whatever was asked for
)

// Fault is what goes wrong with one message of a call.
type Fault struct {
	Kind Kind
	// After is the number of messages that are sent before it strikes.
	After int
	// Code is for Status.
	Code codes.Code
	// Text is the status' message; a default if empty.
	Text string
	// Delay is for Drip and Chatter, and for EarlyEnd: the wait before it.
	Delay time.Duration
	// Flush is for EarlyEnd: a message without extents comes before it.
	Flush bool
	// By is for Shift and ChangeCapacity, in bytes.
	By int64
	// OnRotate is called by RotateCertificate when the new certificate is in force.
	OnRotate func()
}

// String names the fault for test logs.
func (f Fault) String() string {
	s := fmt.Sprintf("%s@%d", f.Kind, f.After)
	if f.Kind == Status {
		s += "(" + f.Code.String() + ")"
	}
	return s
}

// violations are the kinds that no client may survive with a list.
var violations = map[Kind]bool{
	Duplicate: true, Reorder: true, Swap: true, Overlap: true, Shift: true, ChangeType: true, UnknownType: true,
	ChangeCapacity: true, NoCapacity: true, ZeroSize: true, NegativeSize: true, NegativeOffset: true, Overflow: true,
	PastCapacity: true, OddSize: true, IgnoreOffset: true,
}

// Violates reports whether the kind breaks a promise of the protocol.
func (k Kind) Violates() bool { return violations[k] }
