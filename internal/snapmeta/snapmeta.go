// Package snapmeta reads the block metadata of a snapshot from a SnapshotMetadata service (KEP-3314) and is the only
// importer of its gRPC API. It delivers extents that are complete, in order and without duplicates, or an error that
// says why it cannot.
//
// The protocol has no count and no end marker, sidecars end every stream after some minutes, and drivers have ended
// streams early as if they were complete. So this package continues an interrupted stream at the end of the last extent
// that it accepted, checks every promise of the protocol on every message, and believes an end only when it was said
// twice at the same offset: by the end of one stream and by the empty answer of another that started there.
//
// # Several streams
//
// One call is slower than the service and this machine could be, so a long list is read by several calls at once, each from
// its own starting_offset. The part of the volume from there to where the next one starts is a unit. A request has no end
// offset: the reader of a unit stops when an extent ends beyond the next one's start, and its call is cancelled. Each unit has
// a reader of its own with all of the above: it resumes, asks twice before it believes an end, and checks every promise.
// The list is taken from the units in order. What later ones read meanwhile waits, packed, in a bounded memory; a reader
// that finds no room stops receiving, and flow control holds its call back. Each call has its own connection, because the
// calls of one connection share its window, and one that is held back would fill it.
//
// An extent belongs to the unit in which it starts, whole. The unit before and the unit after both answer for the bytes
// between the boundary and the end of the earlier one's last message; seam compares the two answers there, and the later
// one continues the list as a resumed call would. No matter whether a driver that is asked in the middle of an extent
// reports it whole or what is left of it, in one piece or in several, or repeats an extent that ends at the offset:
//
//   - the bytes that are listed are those that one stream lists, so that merged lists are equal byte by byte;
//   - the extents are those that one stream reports, one by one, if where the driver ends an extent does not depend on
//     where the call started: FIXED_LENGTH, and every VARIABLE_LENGTH driver that does not cut extents to fit its messages.
//     The others may cut differently after a boundary, as they may after an interruption of one stream.
//
// One stream's list is the one that counts. If the answers at a seam differ, if a service says that the list ends where a
// later unit has listed extents, if it refuses a later unit's first call, or if a later unit's reader gives up, then what
// the later ones have read is thrown away and the stream before the seam goes on by itself, in the call that it still has.
// If the list has come to a later unit's extents already, there is no stream before it, and that unit is the one that goes
// on, with the attempts that one stream would have left. Who goes on then has to come past every extent that others have
// listed: an end before that is asked for again and in the end refused. A broken promise and what else is final ends the
// list, whichever stream met it. Time decides how many streams there are and where they start, never what is listed.
//
// # Limits
//
// What it cannot notice: a server that skips ahead, loses the connection before it goes back, and then continues from
// where the client asks it to. Nobody who reads this protocol can.
package snapmeta

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// MaxMessageBytes is the largest message that is accepted. gRPC's own default of 4 MiB is too small for drivers that
// send many tuples a message (10,000 take up to 240 KB; nothing in the protocol stops a driver from sending 100 times as
// many); 64 MiB still fits the memory of a small pod.
const MaxMessageBytes = 64 << 20

// DefaultMaxResults is how many extents a message to ask for. A message of so many (15 KB) fits one frame of HTTP/2, so
// that it is parsed where it arrived. In CPU time an extent costs 3 ns more at 256 a message, which the hostpath
// driver sends by itself, 9 ns more at 128, and 2 ns more from 2,048 on, where messages have to be joined from frames.
const DefaultMaxResults = 1024

// Request names what to list.
type Request struct {
	// Namespace is the namespace of the target VolumeSnapshot.
	Namespace string
	// Target is the name of the target VolumeSnapshot.
	Target string
	// BaseHandle is the CSI handle of the base snapshot; empty asks for the allocated blocks of the target.
	BaseHandle string
	// MaxResults is the wished upper bound of extents a message; 0 leaves it to the driver.
	MaxResults int32
	// UseAllocated asks for the allocated blocks if the driver has no delta (and said so before it sent any of it).
	UseAllocated bool
}

// Endpoint is where a service listens and whom to trust there.
type Endpoint struct {
	// Address is host:port; an IPv6 host is in brackets.
	Address string
	// CA is a bundle of PEM certificates.
	CA []byte
	// ServerName replaces the address's host in the check of the server's certificate, if it is not empty.
	ServerName string
}

// Timing holds the durations and bounds of a stream. The zero value of a field means its default.
type Timing struct {
	// MaxAttempts is the number of failures in a row, without one new extent between them, after which the stream
	// is given up.
	MaxAttempts int
	// FirstBackoff and LongestBackoff bound the wait before another attempt; it doubles from one to the other.
	FirstBackoff, LongestBackoff time.Duration
	// ConnectTimeout bounds connecting and the TLS handshake.
	ConnectTimeout time.Duration
	// ProbeAfter is how long a stream may be silent before the server is asked whether it is alive, and
	// ProbeTimeout how long its answer may take.
	ProbeAfter, ProbeTimeout time.Duration
	// StallTimeout is how long a stream may be silent although its server is alive.
	StallTimeout time.Duration
	// EndGrace is how long to wait for the end of a stream that has reached the volume's capacity.
	EndGrace time.Duration
	// SuspectAfter is how long a call may take that ends as if complete but without any new extent, before its word is
	// doubted: so look the calls that a driver gave up.
	SuspectAfter time.Duration
}

// The defaults of Timing. A dead peer is noticed after ProbeAfter + ProbeTimeout, 35 s. The default of StallTimeout
// exceeds the 10 minutes after which the sidecar itself ends a stream, because until then a driver may be computing.
const (
	DefaultMaxAttempts    = 10
	DefaultFirstBackoff   = 250 * time.Millisecond
	DefaultLongestBackoff = 30 * time.Second
	DefaultConnectTimeout = 20 * time.Second
	DefaultProbeAfter     = 20 * time.Second
	DefaultProbeTimeout   = 15 * time.Second
	DefaultStallTimeout   = 12 * time.Minute
	DefaultEndGrace       = 10 * time.Second
	DefaultSuspectAfter   = time.Minute
)

func (t Timing) withDefaults() Timing {
	if t.MaxAttempts <= 0 {
		t.MaxAttempts = DefaultMaxAttempts
	}
	for _, d := range []struct {
		field    *time.Duration
		fallback time.Duration
	}{
		{&t.FirstBackoff, DefaultFirstBackoff},
		{&t.LongestBackoff, DefaultLongestBackoff},
		{&t.ConnectTimeout, DefaultConnectTimeout},
		{&t.ProbeAfter, DefaultProbeAfter},
		{&t.ProbeTimeout, DefaultProbeTimeout},
		{&t.StallTimeout, DefaultStallTimeout},
		{&t.EndGrace, DefaultEndGrace},
		{&t.SuspectAfter, DefaultSuspectAfter},
	} {
		if *d.field <= 0 {
			*d.field = d.fallback
		}
	}
	t.LongestBackoff = max(t.LongestBackoff, t.FirstBackoff)
	return t
}

// Defaults for Config.Streams and Config.StreamsAfter, for who has no reason for others. Every call costs the sidecar two
// requests to the API server, of which it allows itself five a second for all its clients, so that a list that takes no
// longer than StreamsAfter is read by one stream.
const (
	DefaultStreams      = 4
	DefaultStreamsAfter = 1500 * time.Millisecond
)

// Config is all that a Stream needs.
type Config struct {
	Request Request
	// Endpoint is asked before every attempt, because addresses and certificates rotate.
	Endpoint func() (Endpoint, error)
	// Token is asked before every RPC, because the kubelet rotates tokens.
	Token func() (string, error)
	// Streams is the largest number of calls that read at once, each over its own connection; 1 if it is 0. Endpoint and
	// Token are then asked by several goroutines.
	Streams int
	// StreamsAfter is how long a list must have been read before a second stream is added. Further ones follow one by
	// one, after half of it each, where there is as much left to do. 0 adds all of them at the first message, and again
	// whenever one ends, however little is left.
	StreamsAfter time.Duration
	// Timing may be zero.
	Timing Timing
	// Log may be nil.
	Log *slog.Logger
}

// Validate says what is missing from c.
func (c Config) Validate() error {
	switch {
	case c.Request.Namespace == "":
		return errors.New("stream configuration: the namespace is missing")
	case c.Request.Target == "":
		return errors.New("stream configuration: the target snapshot is missing")
	case c.Request.MaxResults < 0:
		return fmt.Errorf("stream configuration: max results %d is negative", c.Request.MaxResults)
	case c.Streams < 0 || c.StreamsAfter < 0:
		return fmt.Errorf("stream configuration: %d streams after %s: neither can be negative", c.Streams, c.StreamsAfter)
	case c.Endpoint == nil:
		return errors.New("stream configuration: the endpoint is missing")
	case c.Token == nil:
		return errors.New("stream configuration: the token is missing")
	}
	return nil
}

// Info is what a stream says about all of its extents.
type Info struct {
	// Mode is what is listed: the request's wish, or Allocated after a fallback.
	Mode blocklist.Mode
	// BlockMetadataType is UnknownLength until the first message.
	BlockMetadataType blocklist.BlockMetadataType
	// CapacityBytes is the volume's capacity as the driver says it; 0 until the first message.
	CapacityBytes int64
	// BlockSize is the size of every extent of a FIXED_LENGTH stream, in bytes; 0 until the first extent.
	BlockSize int64
}
