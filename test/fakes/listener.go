package fakes

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// listener remembers its connections, so that a fault can end them below gRPC.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[string]*conn // by the client's address
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, conns: map[string]*conn{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		l.mu.Lock()
		l.conns[c.RemoteAddr().String()] = &conn{tcp: tcp}
		l.mu.Unlock()
	}
	return c, nil
}

func (l *listener) conn(client string) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conns[client]
}

func (l *listener) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.cut(false)
	}
}

// conn is one connection: the TCP connection, and what gRPC wrote into TLS.
type conn struct {
	tcp *net.TCPConn
	// queued counts the bytes of messages that were handed to gRPC, written those of DATA frames that gRPC passed on.
	queued, written atomic.Int64
}

// settle waits until every message that was handed to gRPC is on its way, because gRPC writes in the background and a cut
// shall come after exactly so many messages.
func (c *conn) settle(ctx context.Context) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for c.written.Load() < c.queued.Load() {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// cut ends the connection: in order after what was written, or with a TCP RST, which may discard what the client has not
// read.
func (c *conn) cut(reset bool) {
	if reset {
		_ = c.tcp.SetLinger(0)
		_ = c.tcp.Close()
		return
	}
	// Closing both directions would send a RST too if something of the client was not read yet.
	_ = c.tcp.CloseWrite()
}

// meteredCreds are TLS credentials whose connections count the DATA frames that gRPC writes.
type meteredCreds struct {
	credentials.TransportCredentials
	conns *listener
}

// ServerHandshake implements credentials.TransportCredentials.
func (m meteredCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := m.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	return &meteredConn{Conn: c, conn: m.conns.conn(raw.RemoteAddr().String())}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (m meteredCreds) Clone() credentials.TransportCredentials {
	return meteredCreds{TransportCredentials: m.TransportCredentials.Clone(), conns: m.conns}
}

// meteredConn follows the HTTP/2 frames (RFC 9113, section 4.1) that are written to it.
type meteredConn struct {
	net.Conn
	conn   *conn
	header []byte // of the frame whose header is incomplete
	left   int64  // of the current frame's payload
	data   bool   // whether it is a DATA frame
}

const frameHeaderBytes = 9

// Write implements net.Conn.
func (m *meteredConn) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	for rest := p[:n]; len(rest) > 0; {
		if m.left == 0 {
			take := min(len(rest), frameHeaderBytes-len(m.header))
			m.header, rest = append(m.header, rest[:take]...), rest[take:]
			if h := m.header; len(h) == frameHeaderBytes {
				m.left, m.data = int64(h[0])<<16|int64(h[1])<<8|int64(h[2]), h[3] == 0
				m.header = m.header[:0]
			}
			continue
		}
		take := min(int64(len(rest)), m.left)
		m.left -= take
		rest = rest[take:]
		if m.data {
			m.conn.written.Add(take)
		}
	}
	return n, err
}
