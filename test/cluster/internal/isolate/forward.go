package isolate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
)

// Forward passes connections to address on the host on to the same address
// inside, until ctx ends. It returns once it listens.
func (n *Namespace) Forward(ctx context.Context, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("forward %s: %w (does another program use this port?)", address, err)
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		for {
			outside, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go n.pass(ctx, outside, address)
		}
	}()
	return nil
}

// pass copies both ways and hands on the end of each direction alone, which
// streams such as `kubectl exec` rely on.
func (n *Namespace) pass(ctx context.Context, outside net.Conn, address string) {
	inside, err := n.Dial(ctx, "tcp", address)
	if err != nil {
		// The client sees its connection end, as it would from a dead server.
		_ = outside.Close()
		return
	}
	done := make(chan struct{}, 2)
	half := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if tcp, ok := to.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		done <- struct{}{}
	}
	go half(inside, outside)
	go half(outside, inside)
	<-done
	<-done
	_, _ = inside.Close(), outside.Close()
}
