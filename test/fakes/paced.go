package fakes

import (
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Paced is a server of a given speed that answers any number of calls from any offset. Its volume has an extent of 4 KiB
// every PacedStride bytes. It is for measuring what several streams gain.
type Paced struct {
	Address string
	// CA is the PEM of the certificate authority.
	CA      []byte
	grpc    *grpc.Server
	served  chan struct{}
	extents int64
	// wait is slept before every message, and spin computed for every extent.
	wait, spin time.Duration
}

// PacedStride is the distance in bytes of one extent of a Paced to the next.
const PacedStride = 64 << 10

const (
	pacedBlock   = 4 << 10
	pacedMessage = 1024
)

// StartPaced starts a Paced with so many extents on a port of 127.0.0.1. It waits before every message and computes for
// every extent.
func StartPaced(extents int64, wait, spin time.Duration) (*Paced, error) {
	cert, err := NewCertificate("127.0.0.1")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	p := &Paced{Address: l.Addr().String(), CA: cert.CA, served: make(chan struct{}), extents: extents, wait: wait, spin: spin}
	p.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert.Leaf}})),
		grpc.ForceServerCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)}),
		grpc.UnknownServiceHandler(p.serve))
	go func() {
		defer close(p.served)
		_ = p.grpc.Serve(l) // it ends by Stop
	}()
	return p, nil
}

// Stop ends the server and its connections at once.
func (p *Paced) Stop() {
	p.grpc.Stop()
	<-p.served
}

func (p *Paced) serve(_ any, stream grpc.ServerStream) error {
	offset, err := startingOffset(stream)
	if err != nil {
		return err
	}
	next := offset / PacedStride
	if offset%PacedStride >= pacedBlock {
		next++
	}
	for next < p.extents {
		time.Sleep(p.wait)
		end := min(next+pacedMessage, p.extents)
		begin := time.Now()
		message := p.message(next, end)
		for time.Since(begin) < p.spin*time.Duration(end-next) { //nolint:revive // the work of a conversion
		}
		if err := stream.SendMsg(mem.SliceBuffer(message)); err != nil {
			return err
		}
		next = end
	}
	return nil
}

// message serializes the extents from one number up to another.
func (p *Paced) message(from, to int64) []byte {
	b := make([]byte, 0, 20*(to-from)+16)
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(api.BlockMetadataType_FIXED_LENGTH))
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(p.extents*PacedStride))
	var body [32]byte
	for i := from; i < to; i++ {
		e := protowire.AppendTag(body[:0], 1, protowire.VarintType)
		e = protowire.AppendVarint(e, uint64(i*PacedStride))
		e = protowire.AppendTag(e, 2, protowire.VarintType)
		e = protowire.AppendVarint(e, pacedBlock)
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendBytes(b, e)
	}
	return b
}
