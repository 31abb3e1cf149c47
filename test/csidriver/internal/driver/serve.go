package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// stopGrace is how long requests may go on after the driver was asked to stop.
	stopGrace = 3 * time.Second
	// maxConcurrentStreams bounds the requests of one connection.
	maxConcurrentStreams = 256
)

// Serve answers on the listener until ctx ends. Requests that are running then may end within a few seconds; after that
// they are cancelled, with an error status for their clients. It closes the listener.
func (d *Driver) Serve(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer(
		grpc.MaxConcurrentStreams(maxConcurrentStreams),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(d.logUnary),
		grpc.ChainStreamInterceptor(d.logStream),
	)
	d.Register(s)
	return serveUntil(ctx, s, l, d.Close)
}

// ServeOther answers on the listener with other services, of which requests are short, until ctx ends.
func ServeOther(ctx context.Context, l net.Listener, register func(grpc.ServiceRegistrar)) error {
	s := grpc.NewServer()
	register(s)
	return serveUntil(ctx, s, l, func() {})
}

func serveUntil(ctx context.Context, s *grpc.Server, l net.Listener, cancelRequests func()) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(stopped)
	}()
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-stopped:
	case <-t.C:
		cancelRequests()
		s.Stop()
		<-stopped
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

func (d *Driver) logUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := handler(ctx, req)
	d.logCall(ctx, info.FullMethod, start, err)
	return resp, err
}

func (d *Driver) logStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	err := handler(srv, stream)
	d.logCall(stream.Context(), info.FullMethod, start, err)
	return err
}

// logCall never logs a request: it may hold secrets.
func (d *Driver) logCall(ctx context.Context, method string, start time.Time, err error) {
	level := slog.LevelDebug
	attrs := []slog.Attr{slog.String("method", method), slog.Duration("took", time.Since(start))}
	if err != nil {
		level = slog.LevelWarn
		if status.Code(err) == codes.Internal {
			level = slog.LevelError
		}
		attrs = append(attrs, slog.String("code", status.Code(err).String()), slog.String("error", err.Error()))
	}
	d.log.LogAttrs(ctx, level, "call ended", attrs...)
}
