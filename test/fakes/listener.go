package fakes

import (
	"net"
	"sync"
)

// listener remembers its connections, so that a fault can end them below gRPC.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[string]*net.TCPConn // by the client's address
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, conns: map[string]*net.TCPConn{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		l.mu.Lock()
		l.conns[c.RemoteAddr().String()] = tcp
		l.mu.Unlock()
	}
	return c, nil
}

// cut closes the connection from client; with reset the client gets a TCP RST, which may discard what it has not read.
func (l *listener) cut(client string, reset bool) {
	l.mu.Lock()
	c := l.conns[client]
	delete(l.conns, client)
	l.mu.Unlock()
	if c == nil {
		return
	}
	if reset {
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}

func (l *listener) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for client, c := range l.conns {
		_ = c.Close()
		delete(l.conns, client)
	}
}
