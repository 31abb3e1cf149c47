// Package server streams a list of extents as fast as a client can take it, so that what is measured is the client: its
// messages are marshalled beforehand. It answers as the snapshot-metadata sidecar does, over TLS, and as the CSI driver
// behind a real sidecar. On request it costs as much as a slower server: CPU time per extent, a wait per message, a round
// trip on the network.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/extents"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

// Config says what is served and at what cost.
type Config struct {
	// Extents is the length of the list.
	Extents int64
	// PerMessage is the number of extents in a message.
	PerMessage int64
	// CostPerExtent is CPU time, WaitPerMessage is not.
	CostPerExtent, WaitPerMessage time.Duration
	// RoundTrip is the network's delay, there and back.
	RoundTrip time.Duration
}

// The names of the files that ServeTLS writes, which are those of the populator's --endpoint-dir.
const (
	AddressFile = "address"
	CAFile      = "ca.crt"
)

// ServeTLS serves the sidecar's API on a loopback port until ctx ends. It writes address and CA into dir once it listens.
func ServeTLS(ctx context.Context, cfg Config, dir string) error {
	certificate, err := fakes.NewCertificate("127.0.0.1")
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if cfg.RoundTrip > 0 {
		listener = &slowListener{Listener: listener, oneWay: cfg.RoundTrip / 2}
	}
	s := newLister(cfg)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&certificate.Leaf)), grpc.ForceServerCodecV2(newWireCodec()))
	api.RegisterSnapshotMetadataServer(server, sidecarService{lister: s})
	// The address is written last: it says that the rest is there.
	for _, f := range []struct{ name, data string }{{CAFile, string(certificate.CA)}, {AddressFile, listener.Addr().String()}} {
		if err := writeWhole(filepath.Join(dir, f.name), f.data); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	return serve(ctx, server, listener)
}

// ServeDriver serves the CSI driver's API on a Unix socket until ctx ends.
func ServeDriver(ctx context.Context, cfg Config, socket string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(newWireCodec()))
	csi.RegisterIdentityServer(server, identity{})
	csi.RegisterSnapshotMetadataServer(server, driverService{lister: newLister(cfg)})
	return serve(ctx, server, listener)
}

func serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}

func writeWhole(path, data string) error {
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, []byte(data), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// lister sends the list into streams.
type lister struct {
	cfg      Config
	list     *extents.List
	messages *messages
}

func newLister(cfg Config) *lister {
	list := extents.New(cfg.Extents)
	return &lister{cfg: cfg, list: list, messages: newMessages(list, cfg.PerMessage)}
}

// send streams the extents that end after offset, at most limit in a message; 0: as configured.
func (l *lister) send(stream grpc.ServerStream, offset int64, limit int32) error {
	if offset < 0 || offset >= l.list.Capacity() {
		return status.Errorf(codes.OutOfRange, "offset %d: the volume has %d bytes", offset, l.list.Capacity())
	}
	if limit == 0 {
		limit = int32(min(l.cfg.PerMessage, 1<<30))
	}
	for i := l.list.From(offset); i < l.list.Count(); {
		message, following := l.messages.next(i, int64(limit))
		if err := burn(time.Duration(following-i) * l.cfg.CostPerExtent); err != nil {
			return err
		}
		if err := pause(l.cfg.WaitPerMessage); err != nil {
			return err
		}
		if err := stream.SendMsg(message); err != nil {
			return err
		}
		i = following
	}
	return nil
}
