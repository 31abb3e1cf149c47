package driver

import (
	"context"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/socket"
)

// maxConcurrentStreams bounds the requests of one connection.
const maxConcurrentStreams = 256

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
	return socket.Serve(ctx, s, l, d.Close)
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
