package populate

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// Bounds on those who ask for the progress: the answer is one packet, so whoever takes longer does not want it.
const (
	progressTimeout     = 2 * time.Second
	progressConnections = 8
	progressHeaderBytes = 4 << 10
)

// progressServer says over HTTP how far a population is. It is for looking at only: nothing that happens to it has an
// influence on the population.
type progressServer struct {
	last atomic.Pointer[outcome.Progress]
	http http.Server
	done chan struct{}
}

// startProgress listens at address; an error to do so is logged, and then nobody is told the progress.
func startProgress(ctx context.Context, address string, log *slog.Logger) *progressServer {
	s := &progressServer{done: make(chan struct{})}
	s.tell(outcome.Progress{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+outcome.ProgressPath, s.answer)
	s.http = http.Server{
		Handler:        mux,
		ReadTimeout:    progressTimeout,
		WriteTimeout:   progressTimeout,
		MaxHeaderBytes: progressHeaderBytes,
		// What strangers send is not worth a line.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	s.http.SetKeepAlivesEnabled(false)
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		log.Warn("progress cannot be asked for", "error", err.Error())
		close(s.done)
		return s
	}
	log.Info("progress can be asked for", "address", listener.Addr().String())
	go func() {
		defer close(s.done)
		if err := s.http.Serve(&fewConnections{Listener: listener, slots: make(chan struct{}, progressConnections)}); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("progress cannot be asked for any more", "error", err.Error())
		}
	}()
	return s
}

func (s *progressServer) tell(p outcome.Progress) { s.last.Store(&p) }

func (s *progressServer) answer(w http.ResponseWriter, _ *http.Request) {
	data, err := s.last.Load().Marshal()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(data) // who went away does not hear it
}

// stop cuts everybody off.
func (s *progressServer) stop() {
	_ = s.http.Close() // the listener's; the process ends soon anyway
	<-s.done
}

// fewConnections is a listener that accepts another connection only when fewer than its slots are open.
type fewConnections struct {
	net.Listener
	slots chan struct{}
}

// Accept implements net.Listener.
func (l *fewConnections) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// A connection that has to wait here waits for progressTimeout at most, since every open one is closed by then.
	l.slots <- struct{}{}
	return &slotConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

type slotConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
