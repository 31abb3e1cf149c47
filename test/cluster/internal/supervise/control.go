package supervise

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Request asks for a component to be ended, and perhaps started again.
type Request struct {
	Name   string
	Signal syscall.Signal
	// Args replace the component's extra arguments if ReplaceArgs is set.
	ReplaceArgs bool
	Args        []string
}

// Serve answers the other commands on a unix socket until ctx ends.
func (s *Supervisor) Serve(ctx context.Context, socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	// Only root may end components.
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		reply(w, s.Status(r.Context(), os.Getpid()), nil)
	})
	mux.HandleFunc("GET /events", s.stream)
	mux.HandleFunc("POST /kill", func(w http.ResponseWriter, r *http.Request) {
		var q Request
		err := json.NewDecoder(r.Body).Decode(&q)
		if err == nil {
			err = s.Kill(q.Name, q.Signal)
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /restart", func(w http.ResponseWriter, r *http.Request) {
		var q Request
		err := json.NewDecoder(r.Body).Decode(&q)
		if err == nil {
			err = s.Restart(r.Context(), q.Name, q.Signal, q.ReplaceArgs, q.Args)
		}
		reply(w, struct{}{}, err)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	return nil
}

// reply writes a value, or an error as plain text. The one who asked has
// gone away if it cannot be written.
func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	_ = json.NewEncoder(w).Encode(v)
}

// stream writes every event so far and to come, one JSON object a line.
func (s *Supervisor) stream(w http.ResponseWriter, r *http.Request) {
	out := json.NewEncoder(w)
	for n := 0; ; {
		events, err := s.feed.after(r.Context(), n)
		if err != nil {
			return
		}
		for _, e := range events {
			if out.Encode(e) != nil || e.Kind != Line {
				return
			}
		}
		n += len(events)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
	}
}

// Client talks to a running supervisor.
type Client struct {
	http *http.Client
}

// Connect returns a client for the socket; whether anybody answers shows at the first request.
func Connect(socket string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	body, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return status, err
	}
	err = json.NewDecoder(body).Decode(&status)
	return status, errors.Join(err, body.Close())
}

// Follow calls each for every event until the start is over.
func (c *Client) Follow(ctx context.Context, each func(Event)) error {
	body, err := c.do(ctx, http.MethodGet, "/events", nil)
	if err != nil {
		return err
	}
	events := json.NewDecoder(body)
	for {
		var e Event
		if err := events.Decode(&e); err != nil {
			return errors.Join(fmt.Errorf("the supervisor went away during the start: %w", err), body.Close())
		}
		each(e)
		if e.Kind != Line {
			return body.Close()
		}
	}
}

// Kill returns once the component has ended.
func (c *Client) Kill(ctx context.Context, q Request) error { return c.order(ctx, "/kill", q) }

// Restart returns once the component works again.
func (c *Client) Restart(ctx context.Context, q Request) error { return c.order(ctx, "/restart", q) }

func (c *Client) order(ctx context.Context, path string, q Request) error {
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	body, err := c.do(ctx, http.MethodPost, path, data)
	if err != nil {
		return err
	}
	return body.Close()
}

func (c *Client) do(ctx context.Context, method, path string, data []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		err = errors.Join(err, resp.Body.Close())
		return nil, errors.Join(errors.New(string(bytes.TrimSpace(text))), err)
	}
	return resp.Body, nil
}
