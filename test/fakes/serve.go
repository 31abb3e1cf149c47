package fakes

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// errEarlyEnd ends a stream as if it were complete.
var errEarlyEnd = errors.New("early end")

// reply is one message before it takes the type of its RPC.
type reply struct {
	kind     api.BlockMetadataType
	capacity int64
	blocks   []*api.BlockMetadata
}

// GetMetadataDelta implements api.SnapshotMetadataServer.
func (s *Server) GetMetadataDelta(req *api.GetMetadataDeltaRequest, stream api.SnapshotMetadata_GetMetadataDeltaServer) error {
	got := Received{Delta: true, Base: req.GetBaseSnapshotId(), Token: req.GetSecurityToken(), StartingOffset: req.GetStartingOffset(), MaxResults: req.GetMaxResults()}
	return s.serve(stream.Context(), got, req.GetNamespace(), req.GetTargetSnapshotName(), func(r reply) (int, error) {
		m := &api.GetMetadataDeltaResponse{BlockMetadataType: r.kind, VolumeCapacityBytes: r.capacity, BlockMetadata: r.blocks}
		return proto.Size(m), stream.Send(m)
	})
}

// GetMetadataAllocated implements api.SnapshotMetadataServer.
func (s *Server) GetMetadataAllocated(req *api.GetMetadataAllocatedRequest, stream api.SnapshotMetadata_GetMetadataAllocatedServer) error {
	got := Received{Token: req.GetSecurityToken(), StartingOffset: req.GetStartingOffset(), MaxResults: req.GetMaxResults()}
	return s.serve(stream.Context(), got, req.GetNamespace(), req.GetSnapshotName(), func(r reply) (int, error) {
		m := &api.GetMetadataAllocatedResponse{BlockMetadataType: r.kind, VolumeCapacityBytes: r.capacity, BlockMetadata: r.blocks}
		return proto.Size(m), stream.Send(m)
	})
}

// session is one call being served.
type session struct {
	server *Server
	ctx    context.Context
	cfg    Config
	faults Call
	got    Received
	conn   *conn
	// transmit sends a message and returns its size in bytes.
	transmit func(reply) (int, error)
	sent     int
	// last is the message that was sent last.
	last  reply
	delay time.Duration
}

// serve takes down the call, checks it, and streams the extents with the call's faults.
func (s *Server) serve(ctx context.Context, got Received, namespace, target string, transmit func(reply) (int, error)) error {
	s.mu.Lock()
	cfg, n := s.cfg, len(s.calls)
	s.calls = append(s.calls, got)
	s.mu.Unlock()
	faults := cfg.Always
	if n < len(cfg.Script) {
		faults = cfg.Script[n]
	}
	if !s.enter(cfg.AtOnce) {
		return status.Error(cmp.Or(cfg.AtOnceCode, codes.ResourceExhausted), "too many calls at once")
	}
	defer s.leave()
	v := cfg.Volume
	if cfg.Admit != nil {
		if err := cfg.Admit(ctx, got.Token, namespace); err != nil {
			return err
		}
	} else if got.Token != cfg.Token {
		return status.Error(codes.Unauthenticated, "the token is not valid")
	}
	if namespace != v.Namespace || target != v.Target || got.Delta && got.Base != v.Base {
		return status.Error(codes.NotFound, "no such snapshot")
	}
	c := &session{server: s, ctx: ctx, cfg: cfg, faults: faults, got: got, transmit: transmit, delay: cfg.MessageDelay}
	if p, ok := peer.FromContext(ctx); ok {
		c.conn = s.conns.conn(p.Addr.String())
	}
	begin := time.Now()
	return c.end(c.run(v, func() context.CancelFunc {
		if cfg.TimeLimit == 0 {
			return func() {}
		}
		limited, cancel := context.WithDeadline(ctx, begin.Add(cfg.TimeLimit))
		c.ctx = limited
		return cancel
	}))
}

// enter counts a call, unless there are too many.
func (s *Server) enter(bound int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bound > 0 && s.active >= bound {
		return false
	}
	s.active++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
}

// end turns what ended the session into the call's status.
func (c *session) end(err error) error {
	switch {
	case errors.Is(err, errEarlyEnd):
		return nil
	case errors.Is(err, context.DeadlineExceeded) && c.cfg.LimitLooksComplete:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the stream took too long")
	}
	return err
}

// run sends the messages. limit puts the time limit in force: after the first message, so that a busy machine does not turn
// it into a server that says again and again that there is nothing.
func (c *session) run(v Volume, limit func() context.CancelFunc) error {
	// A status before the first message comes before the check of the offset too, so that it can meet any call.
	if err := c.strike(&reply{}, true); err != nil {
		return err
	}
	if c.got.StartingOffset >= v.Capacity {
		return status.Error(codes.OutOfRange, "starting_offset exceeds the volume's size")
	}
	messages := c.messages(v)
	c.swap(messages)
	for i := range messages {
		if err := c.wait(); err != nil {
			return err
		}
		if i == 1 {
			defer limit()()
		}
		if i > 0 {
			if err := c.strike(&messages[i], false); err != nil {
				return err
			}
		}
		c.spoil(&messages[i])
		if err := c.send(messages[i]); err != nil {
			return err
		}
		c.sent++
		if c.takes(Duplicate, c.sent-1) {
			if err := c.send(messages[i]); err != nil {
				return err
			}
		}
	}
	return c.strike(&reply{}, false)
}

// prefixBytes is the length of what gRPC puts before a message.
const prefixBytes = 5

func (c *session) send(r reply) error {
	c.last = r
	n, err := c.transmit(r)
	if err == nil {
		c.conn.queued.Add(int64(prefixBytes + n))
	}
	return err
}

// takes reports whether the call has a fault of that kind for message n, and takes it down.
func (c *session) takes(kind Kind, n int) bool {
	for _, f := range c.faults {
		if f.Kind == kind && f.After == n {
			c.note(kind)
			return true
		}
	}
	return false
}

func (c *session) note(kind Kind) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.struck = append(c.server.struck, kind)
}

// wait waits between messages.
func (c *session) wait() error {
	if c.delay == 0 {
		return context.Cause(c.ctx)
	}
	timer := time.NewTimer(c.delay)
	defer timer.Stop()
	select {
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-timer.C:
		return nil
	}
}

// strike lets the faults take place that end or delay the stream before the next message. Before the first message it is
// called with begin set.
func (c *session) strike(next *reply, begin bool) error {
	for _, f := range c.faults {
		if f.After != c.sent || begin != (c.sent == 0) {
			continue
		}
		if err := c.strikeOne(f, next); err != nil {
			return err
		}
	}
	return nil
}

func (c *session) strikeOne(f Fault, next *reply) error {
	switch f.Kind {
	case Drip:
		c.note(f.Kind)
		c.delay = f.Delay
		return nil
	case Empty:
		if len(next.blocks) == 0 {
			return nil
		}
		c.note(f.Kind)
		return c.send(reply{kind: next.kind, capacity: next.capacity})
	case Chatter:
		c.note(f.Kind)
		return c.chatter(f.Delay)
	case Cut, Reset:
		c.note(f.Kind)
		c.conn.settle(c.ctx)
		c.conn.cut(f.Kind == Reset)
		return status.Error(codes.Unavailable, "cut")
	case RotateCertificate:
		c.note(f.Kind)
		return c.rotate(f)
	case Hang, Freeze:
		c.note(f.Kind)
		return c.hang(f.Kind == Freeze)
	case EarlyEnd:
		c.note(f.Kind)
		return c.endEarly(f)
	case Status:
		c.note(f.Kind)
		text := f.Text
		if text == "" {
			text = "scripted"
		}
		return status.Error(f.Code, text)
	default: // the others do not end the stream
		return nil
	}
}

// chatter sends messages without extents, like the last one otherwise, until the call is over.
func (c *session) chatter(delay time.Duration) error {
	c.delay = delay
	for {
		if err := c.send(reply{kind: c.last.kind, capacity: c.last.capacity}); err != nil {
			return err
		}
		if err := c.wait(); err != nil {
			return err
		}
	}
}

func (c *session) rotate(f Fault) error {
	c.conn.settle(c.ctx)
	if err := c.server.Rotate(); err != nil {
		return err
	}
	if f.OnRotate != nil {
		f.OnRotate()
	}
	return status.Error(codes.Unavailable, "rotated")
}

// hang waits until the client has given up.
func (c *session) hang(freeze bool) error {
	if freeze {
		c.server.setFrozen(true)
		defer c.server.setFrozen(false)
	}
	select {
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-c.server.shutdown:
		return status.Error(codes.Unavailable, "stopped")
	}
}

func (s *Server) setFrozen(frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
}

// swap lets two messages change places.
func (c *session) swap(messages []reply) {
	for _, f := range c.faults {
		if f.Kind == Swap && f.After+1 < len(messages) {
			c.note(f.Kind)
			messages[f.After], messages[f.After+1] = messages[f.After+1], messages[f.After]
		}
	}
}

// spoil lets the faults take place that break a promise in the next message.
func (c *session) spoil(r *reply) {
	for _, f := range c.faults {
		if f.After == c.sent && spoilOne(f, r) {
			c.note(f.Kind)
		}
	}
}

// spoilOne breaks a promise in r, or returns false if the fault does not apply to it.
func spoilOne(f Fault, r *reply) bool {
	switch f.Kind {
	case UnknownType:
		r.kind = api.BlockMetadataType_UNKNOWN
		return true
	case ChangeType:
		r.kind = 3 - r.kind // the two types are 1 and 2
		return true
	case ChangeCapacity:
		r.capacity += f.By
		return true
	case NoCapacity:
		r.capacity = 0
		return true
	default: // the others need an extent
	}
	n := len(r.blocks)
	if n == 0 {
		return false
	}
	first, last := r.blocks[0], r.blocks[n-1]
	switch f.Kind {
	case Shift:
		for _, b := range r.blocks {
			b.ByteOffset += f.By
		}
	case ZeroSize:
		last.SizeBytes = 0
	case NegativeSize:
		last.SizeBytes = -last.SizeBytes
	case NegativeOffset:
		first.ByteOffset = -first.ByteOffset - 1
	case Overflow:
		last.ByteOffset = math.MaxInt64 - last.SizeBytes + 1
	case PastCapacity:
		last.ByteOffset = r.capacity - last.SizeBytes + 1
	case OddSize:
		if r.kind != api.BlockMetadataType_FIXED_LENGTH || last.ByteOffset+last.SizeBytes == r.capacity {
			return false
		}
		last.SizeBytes--
	case Reorder, Overlap:
		return spoilOrder(f.Kind, r)
	default:
		return false
	}
	return true
}

func spoilOrder(kind Kind, r *reply) bool {
	n := len(r.blocks)
	if n < 2 {
		return false
	}
	if kind == Reorder {
		r.blocks[0], r.blocks[1] = r.blocks[1], r.blocks[0]
		return true
	}
	before, last := r.blocks[n-2], r.blocks[n-1]
	last.ByteOffset = before.ByteOffset + before.SizeBytes - 1
	return true
}
