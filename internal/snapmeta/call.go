package snapmeta

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// call is one RPC: a stream of messages from a starting offset.
type call struct {
	stream grpc.ClientStream
	in     incoming
	ctx    context.Context
	cancel context.CancelCauseFunc
	// waitingSince is since when extents are waited for, in Unix nanoseconds; 0 while nothing is received, so that a slow
	// consumer is not taken for a silent server.
	waitingSince atomic.Int64
	// since is when the wait began; 0 if none goes on. Messages without new extents do not end it: a server could send them for
	// good.
	since int64
	// limit overrides the stall timeout if it is not 0 (nanoseconds).
	limit atomic.Int64
	done  chan struct{}
}

// errSilent is the cause of calls that were ended because nothing came from the server.
var errSilent = errors.New("no sign of life from the server")

// openCall starts the RPC for req at offset and the watch over it.
func openCall(ctx context.Context, conn *grpc.ClientConn, req Request, token string, offset int64, timing Timing) (*call, error) {
	callCtx, cancel := context.WithCancelCause(ctx)
	c := &call{ctx: callCtx, cancel: cancel, done: make(chan struct{})}
	var err error
	if req.BaseHandle == "" {
		err = c.openAllocated(conn, req, token, offset)
	} else {
		err = c.openDelta(conn, req, token, offset)
	}
	if err != nil {
		cancel(nil)
		return nil, err
	}
	go c.watch(conn, timing)
	return c, nil
}

func (c *call) openAllocated(conn *grpc.ClientConn, req Request, token string, offset int64) error {
	stream, err := api.NewSnapshotMetadataClient(conn).GetMetadataAllocated(c.ctx, &api.GetMetadataAllocatedRequest{
		SecurityToken:  token,
		Namespace:      req.Namespace,
		SnapshotName:   req.Target,
		StartingOffset: offset,
		MaxResults:     req.MaxResults,
	}, grpc.ForceCodecV2(newWireCodec()))
	if err != nil {
		return fmt.Errorf("call GetMetadataAllocated: %w", err)
	}
	c.stream = stream
	return nil
}

func (c *call) openDelta(conn *grpc.ClientConn, req Request, token string, offset int64) error {
	stream, err := api.NewSnapshotMetadataClient(conn).GetMetadataDelta(c.ctx, &api.GetMetadataDeltaRequest{
		SecurityToken:      token,
		Namespace:          req.Namespace,
		BaseSnapshotId:     req.BaseHandle,
		TargetSnapshotName: req.Target,
		StartingOffset:     offset,
		MaxResults:         req.MaxResults,
	}, grpc.ForceCodecV2(newWireCodec()))
	if err != nil {
		return fmt.Errorf("call GetMetadataDelta: %w", err)
	}
	c.stream = stream
	return nil
}

// next returns the next message, whose extents reuse the memory of reuse. It returns io.EOF at the end of the stream.
func (c *call) next(reuse []blocklist.Extent) (message, error) {
	if c.since == 0 {
		c.since = time.Now().UnixNano()
	}
	c.waitingSince.Store(c.since)
	c.in.reuse = reuse
	err := c.stream.RecvMsg(&c.in)
	c.waitingSince.Store(0)
	if err == nil {
		return c.in.message, nil
	}
	if c.ctx.Err() != nil {
		if cause := context.Cause(c.ctx); errors.Is(cause, errSilent) {
			return message{}, cause
		}
	}
	return message{}, err
}

// progress says that the last message had new extents.
func (c *call) progress() { c.since = 0 }

// close ends the RPC and waits for the watch over it.
func (c *call) close() {
	c.cancel(nil)
	<-c.done
}

// watch ends the call when its server is dead or the stream has been silent for too long.
//
// HTTP/2 pings are no means for that: the sidecar keeps gRPC's default policy, which closes the connection of a client
// that pings a silent stream more than once in five minutes, and a driver may well compute for minutes before it sends its
// first message. An ordinary RPC is not subject to that policy, so a silent server is asked for its health over the same
// connection. Any answer, even that it knows no such service, shows that connection, process and scheduler are alive.
func (c *call) watch(conn *grpc.ClientConn, timing Timing) {
	defer close(c.done)
	ticker := time.NewTicker(min(timing.ProbeAfter, timing.StallTimeout, timing.EndGrace) / 4)
	defer ticker.Stop()
	var lastSign time.Time
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		since := c.waitingSince.Load()
		if since == 0 {
			continue
		}
		waiting := time.Unix(0, since)
		limit := timing.StallTimeout
		if l := c.limit.Load(); l != 0 {
			limit = time.Duration(l)
		}
		if time.Since(waiting) >= limit {
			c.cancel(fmt.Errorf("%w: no extents came for %s", errSilent, limit))
			return
		}
		if lastSign.Before(waiting) {
			lastSign = waiting
		}
		if time.Since(lastSign) < timing.ProbeAfter {
			continue
		}
		if err := probe(c.ctx, conn, timing.ProbeTimeout); err != nil {
			c.cancel(fmt.Errorf("%w: the stream was silent for %s and a health check failed: %w", errSilent, timing.ProbeAfter, err))
			return
		}
		lastSign = time.Now()
	}
}

// probe asks the server at the other end of conn for a sign of life.
func probe(ctx context.Context, conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Unavailable {
		return fmt.Errorf("probe: %w", err)
	}
	// Any other answer is one, and Canceled means that the call itself has ended meanwhile.
	return nil
}
