package snapmeta

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// The files of an endpoint directory.
const (
	AddressFile = "address"
	CAFile      = "ca.crt"
)

// windowBytes is how much a service may send before it is read, in every stream. With a size of its own choice, which grows, gRPC
// sends a ping with nearly every message to measure the connection; docs/architecture.md has the figures.
const windowBytes = 2 << 20

// EndpointDir returns a function for Config.Endpoint that reads the address and the CA from files in dir.
func EndpointDir(dir, serverName string) func() (Endpoint, error) {
	return func() (Endpoint, error) {
		address, err := os.ReadFile(filepath.Join(dir, AddressFile))
		if err != nil {
			return Endpoint{}, fmt.Errorf("read the service's address: %w", err)
		}
		return readEndpoint(strings.TrimSpace(string(address)), filepath.Join(dir, CAFile), serverName)
	}
}

// EndpointFlags returns a function for Config.Endpoint that reads the CA from a file; the address is fixed.
func EndpointFlags(address, caFile, serverName string) func() (Endpoint, error) {
	return func() (Endpoint, error) { return readEndpoint(address, caFile, serverName) }
}

func readEndpoint(address, caFile, serverName string) (Endpoint, error) {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return Endpoint{}, fmt.Errorf("read the service's CA: %w", err)
	}
	return Endpoint{Address: address, CA: ca, ServerName: serverName}, nil
}

// TokenFile returns a function for Config.Token that reads the token from a file.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		token := strings.TrimSpace(string(data))
		if token == "" {
			return "", fmt.Errorf("read the token: %s is empty", path)
		}
		return token, nil
	}
}

// CheckAddress reports whether address is host:port, as a SnapshotMetadataService has it.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		return fmt.Errorf("address %q is not host:port: %w", address, err)
	case host == "" || port == "":
		return fmt.Errorf("address %q is not host:port", address)
	}
	return nil
}

// dial returns a connection to e, which is made when it is first used. A connection belongs to one attempt, so its own
// reconnects and their backoff play no part.
func dial(e Endpoint, timing Timing) (*grpc.ClientConn, error) {
	if err := CheckAddress(e.Address); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.CA) {
		return nil, errors.New("the service's CA bundle holds no PEM certificate")
	}
	// Without an override, gRPC takes the name to verify from the address's host.
	creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: e.ServerName})
	conn, err := grpc.NewClient("passthrough:///"+e.Address,
		grpc.WithTransportCredentials(creds),
		// The token must not travel through whatever HTTPS_PROXY names; the service is in the cluster.
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: timing.ConnectTimeout}),
		// TLS has a buffer of its own. Without a second one behind it every byte is copied once less, which saves 5 % of
		// the CPU time of receiving, also when messages are small.
		grpc.WithReadBufferSize(0),
		grpc.WithStaticStreamWindowSize(windowBytes),
		grpc.WithStaticConnWindowSize(windowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", e.Address, err)
	}
	return conn, nil
}
