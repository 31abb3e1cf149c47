package server

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// burn uses up CPU time. It is measured by the thread's clock, because on a busy machine a thread that only waits for a
// processor would otherwise pass for one that works.
func burn(cost time.Duration) error {
	if cost <= 0 {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin, err := threadTime()
	if err != nil {
		return err
	}
	for {
		now, err := threadTime()
		if err != nil || now-begin >= cost {
			return err
		}
	}
}

// pause waits in the kernel, which is exact to some 50 µs. The runtime's timers are exact to a millisecond only while anything
// else happens in the process, and so the less the more streams there are.
func pause(wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	left := unix.NsecToTimespec(int64(wait))
	for {
		switch err := unix.Nanosleep(&left, &left); {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("sleep: %w", err)
		}
	}
}

func threadTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("read the thread's CPU time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// slowListener accepts connections on which everything takes a while.
type slowListener struct {
	net.Listener
	oneWay time.Duration
}

// Accept implements net.Listener.
func (l *slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newSlowConn(c, l.oneWay), nil
}

// slowConn is a connection through a long cable: what is written arrives oneWay later, in both directions, and any amount
// is on its way at once. What bounds it is HTTP/2's flow control.
type slowConn struct {
	net.Conn
	in, out *cable
}

func newSlowConn(c net.Conn, oneWay time.Duration) *slowConn {
	s := &slowConn{Conn: c, in: newCable(oneWay), out: newCable(oneWay)}
	go s.receive()
	go s.transmit()
	return s
}

// Read implements net.Conn.
func (s *slowConn) Read(p []byte) (int, error) { return s.in.read(p) }

// Write implements net.Conn.
func (s *slowConn) Write(p []byte) (int, error) {
	if err := s.out.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements net.Conn. What was written and has not arrived is lost, as gRPC closes after the client has.
func (s *slowConn) Close() error {
	s.in.end(net.ErrClosed)
	s.out.end(net.ErrClosed)
	return s.Conn.Close()
}

func (s *slowConn) receive() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := s.Conn.Read(buffer)
		if n > 0 && s.in.write(buffer[:n]) != nil {
			return
		}
		if err != nil {
			s.in.end(err)
			return
		}
	}
}

func (s *slowConn) transmit() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := s.out.read(buffer)
		if err != nil {
			return
		}
		if _, err := s.Conn.Write(buffer[:n]); err != nil {
			s.out.end(err)
			return
		}
	}
}

// cable is one direction of a slowConn.
type cable struct {
	delay   time.Duration
	mu      sync.Mutex
	changed *sync.Cond
	queue   []parcel
	err     error
}

type parcel struct {
	data []byte
	due  time.Time
}

func newCable(delay time.Duration) *cable {
	c := &cable{delay: delay}
	c.changed = sync.NewCond(&c.mu)
	return c
}

func (c *cable) write(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.queue = append(c.queue, parcel{data: append([]byte(nil), p...), due: time.Now().Add(c.delay)})
	c.changed.Signal()
	return nil
}

// read returns what has arrived, after everything that was written before an end.
func (c *cable) read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.changed.Wait()
	}
	if wait := time.Until(c.queue[0].due); wait > 0 {
		// There is one reader, and writers only append.
		c.mu.Unlock()
		time.Sleep(wait)
		c.mu.Lock()
	}
	n := copy(p, c.queue[0].data)
	if c.queue[0].data = c.queue[0].data[n:]; len(c.queue[0].data) == 0 {
		c.queue = c.queue[1:]
	}
	return n, nil
}

func (c *cable) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.changed.Broadcast()
}
