// Package sidecar starts upstream's snapshot-metadata sidecar as it runs in a cluster: in front of a CSI driver on a Unix
// socket, with a Kubernetes API server that it asks who a client is and what it may do.
package sidecar

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cbt-populator/cbt-populator/test/apiserver"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// Sidecar is a running sidecar with the driver and the API server behind it.
type Sidecar struct {
	// Address is host:port, CA a PEM bundle.
	Address string
	CA      []byte
	// Token is a service account's that may ask for Snapshot in Namespace; Base is a CSI handle.
	Token                     string
	Namespace, Snapshot, Base string
	// Process is the sidecar itself, Driver the CSI driver.
	Process, Driver *measure.Process

	api *apiserver.Server
}

// Start starts everything. bench is this program, whose command serve is the driver; binary the sidecar's; dir a folder for
// sockets and certificates.
func Start(ctx context.Context, bench, binary, dir string, cfg server.Config) (*Sidecar, error) {
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("the sidecar is not built: run `bin/cluster build`: %w", err)
	}
	s := &Sidecar{Namespace: namespace, Snapshot: snapshot, Base: "handle-1"}
	if err := s.start(ctx, bench, binary, dir, cfg); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Stop stops what was started.
func (s *Sidecar) Stop() error {
	var errs []error
	for _, p := range []*measure.Process{s.Process, s.Driver} {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	if s.api != nil {
		errs = append(errs, s.api.Stop())
	}
	return errors.Join(errs...)
}

func (s *Sidecar) start(ctx context.Context, bench, binary, dir string, cfg server.Config) error {
	var err error
	if s.api, err = apiserver.New(); err != nil {
		return err
	}
	socket := filepath.Join(dir, "csi.sock")
	config, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encode the driver's configuration: %w", err)
	}
	if s.Driver, err = measure.Start(exec.CommandContext(ctx, bench, "serve", "--config="+string(config), "--csi-socket="+socket)); err != nil {
		return err
	}
	if err := s.Driver.Await(ctx, func() error { _, err := os.Stat(socket); return err }); err != nil {
		return err
	}
	port, health, err := freePorts()
	if err != nil {
		return err
	}
	s.Address = "127.0.0.1:" + port
	certificate, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if s.CA, err = writeCertificate(certificate, key); err != nil {
		return err
	}
	if s.Token, err = s.install(ctx); err != nil {
		return err
	}
	s.Process, err = measure.Start(exec.CommandContext(ctx, binary, "--csi-address="+socket, "--kubeconfig="+s.api.Kubeconfig,
		"--tls-cert="+certificate, "--tls-key="+key, "--port="+port, "--http-endpoint=127.0.0.1:"+health))
	if err != nil {
		return err
	}
	return s.Process.Await(ctx, func() error { return healthy(ctx, "http://127.0.0.1:"+health+"/health") })
}

func healthy(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// freePorts returns two ports that nobody listens on. The sidecar cannot choose for itself.
func freePorts() (a, b string, err error) {
	var ports [2]string
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }()
		if _, ports[i], err = net.SplitHostPort(l.Addr().String()); err != nil {
			return "", "", fmt.Errorf("find a free port: %w", err)
		}
	}
	return ports[0], ports[1], nil
}

// writeCertificate writes a server's certificate and key as PEM files and returns the CA.
func writeCertificate(certificate, key string) ([]byte, error) {
	made, err := fakes.NewCertificate("127.0.0.1")
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(made.Leaf.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode the sidecar's key: %w", err)
	}
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: made.Leaf.Certificate[0]},
		key:         {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, fmt.Errorf("write the sidecar's certificate: %w", err)
		}
	}
	return made.CA, nil
}
