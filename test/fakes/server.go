// Package fakes has a SnapshotMetadata server for tests: real TLS, real gRPC, extents from memory, and scripted faults,
// from a reset connection to extents that lie past the volume.
package fakes

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Extent is a tuple of the protocol. Unlike the list's it may be wrong.
type Extent struct{ Offset, Size int64 }

// Volume is what the server knows.
type Volume struct {
	// Namespace, Target and Base are the only names that it answers to; a request for others is NOT_FOUND.
	Namespace, Target, Base string
	Capacity                int64
	// Fixed selects FIXED_LENGTH.
	Fixed bool
	// Delta and Allocated are in ascending order.
	Delta, Allocated []Extent
}

// Config says how a Server behaves when no fault strikes.
type Config struct {
	Volume Volume
	// Token is the only one that is accepted, unless Admit is set.
	Token string
	// Admit, if set, judges the token of every call: nil, or the status that refuses it.
	Admit func(ctx context.Context, token, namespace string) error
	// Style is how extents are listed.
	Style Style
	// AtOnce is how many calls are served at once; others are refused with AtOnceCode, RESOURCE_EXHAUSTED if 0. 0: any number.
	AtOnce     int
	AtOnceCode codes.Code
	// PerMessage is the number of extents a message, 256 if 0; a request may ask for less.
	PerMessage int
	// EmptyMessage sends one message without extents when there are none to send, as some drivers do; else the
	// stream ends without any.
	EmptyMessage bool
	// MessageDelay is waited before every message.
	MessageDelay time.Duration
	// TimeLimit ends every stream after that time, but not before its second message; 0 for never: with DEADLINE_EXCEEDED, or as if complete if
	// LimitLooksComplete is set.
	TimeLimit          time.Duration
	LimitLooksComplete bool
	// Names are the names and addresses in the certificate; "127.0.0.1" and "localhost" if empty.
	Names []string
	// Script holds the faults of the first calls, in order; calls after it have those of Always.
	Script []Call
	Always Call
}

// Call holds the faults of one call, which strike in the order of the messages.
type Call []Fault

// Server is a running server on a port of 127.0.0.1.
type Server struct {
	api.UnimplementedSnapshotMetadataServer
	healthpb.UnimplementedHealthServer

	address string
	grpc    *grpc.Server
	conns   *listener
	served  chan struct{}

	mu     sync.Mutex
	cfg    Config
	cert   *Certificate
	calls  []Received
	struck []Kind
	// active is the number of calls that are being served.
	active int
	// deafCalls counts the calls that reached Style.Deaf.
	deafCalls int
	frozen    bool
	shutdown  chan struct{}
}

// Received is what a call asked for.
type Received struct {
	Delta          bool
	Base, Token    string
	StartingOffset int64
	MaxResults     int32
}

// Start starts a server.
func Start(cfg Config) (*Server, error) {
	if cfg.PerMessage == 0 {
		cfg.PerMessage = 256
	}
	if len(cfg.Names) == 0 {
		cfg.Names = []string{"127.0.0.1", "localhost"}
	}
	cert, err := NewCertificate(cfg.Names...)
	if err != nil {
		return nil, err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s := &Server{
		cfg: cfg, cert: cert, address: tcp.Addr().String(), conns: newListener(tcp),
		served: make(chan struct{}), shutdown: make(chan struct{}),
	}
	creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate})
	s.grpc = grpc.NewServer(
		grpc.Creds(meteredCreds{TransportCredentials: creds, conns: s.conns}),
		grpc.MaxSendMsgSize(256<<20))
	api.RegisterSnapshotMetadataServer(s.grpc, s)
	healthpb.RegisterHealthServer(s.grpc, s)
	go func() {
		defer close(s.served)
		_ = s.grpc.Serve(s.conns) // it ends by Stop
	}()
	return s, nil
}

// Stop ends the server and its connections at once.
func (s *Server) Stop() {
	close(s.shutdown)
	s.grpc.Stop()
	<-s.served
}

// Address returns host:port.
func (s *Server) Address() string { return s.address }

// CA returns the PEM of the certificate authority in force.
func (s *Server) CA() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert.CA
}

// Calls returns what was asked so far.
func (s *Server) Calls() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Received(nil), s.calls...)
}

// Struck returns the kinds of the faults that took place.
func (s *Server) Struck() []Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Kind(nil), s.struck...)
}

// SetToken changes the token that is accepted.
func (s *Server) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Token = token
}

// Script replaces the faults of the first calls.
func (s *Server) Script(script ...Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Script = script
}

// Rotate replaces the certificate and its authority by new ones and cuts all connections, as a restarted sidecar with a
// new secret does.
func (s *Server) Rotate() error {
	s.mu.Lock()
	names := s.cfg.Names
	s.mu.Unlock()
	cert, err := NewCertificate(names...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.cert = cert
	s.mu.Unlock()
	s.conns.closeAll()
	return nil
}

// WriteEndpoint writes the files of an endpoint directory for this server.
func (s *Server) WriteEndpoint(dir string) error {
	for name, content := range map[string][]byte{"address": []byte(s.address + "\n"), "ca.crt": s.CA()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("write endpoint: %w", err)
		}
	}
	return nil
}

func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &s.cert.Leaf, nil
}

// Check answers health checks, unless the server is frozen.
func (s *Server) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if frozen {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}
