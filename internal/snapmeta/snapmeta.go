// Package snapmeta reads the block metadata of a snapshot from a SnapshotMetadata service (KEP-3314) and is the only
// importer of its gRPC API. It delivers extents that are complete, in order and without duplicates, or an error that
// says why it cannot.
//
// The protocol has no count and no end marker, sidecars end every stream after some minutes, and drivers have ended
// streams early as if they were complete. So this package continues an interrupted stream at the end of the last extent
// that it accepted, checks every promise of the protocol on every message, and believes an end only when it was said
// twice at the same offset: by the end of one stream and by the empty answer of another that started there.
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
	// SuspectAfter is how long a call may take that ends as if complete but without any message, before its word is
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

// Config is all that a Stream needs.
type Config struct {
	Request Request
	// Endpoint is asked before every attempt, because addresses and certificates rotate.
	Endpoint func() (Endpoint, error)
	// Token is asked before every RPC, because the kubelet rotates tokens.
	Token func() (string, error)
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
