package fakes

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// ReplayCapacity is the volume's capacity in every message of Messages.
const ReplayCapacity = 1 << 50

// Messages returns n extents of 4 KiB with random gaps between them, always the same, as serialized responses of
// perMessage extents.
func Messages(n, perMessage int) [][]byte {
	const block = 4096
	rng := rand.New(rand.NewPCG(1, 2))
	var messages [][]byte
	var offset uint64
	for sent := 0; sent < n; sent += perMessage {
		b := protowire.AppendTag(nil, 1, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(api.BlockMetadataType_FIXED_LENGTH))
		b = protowire.AppendTag(b, 2, protowire.VarintType)
		b = protowire.AppendVarint(b, ReplayCapacity)
		for range min(perMessage, n-sent) {
			offset += block * rng.Uint64N(100)
			body := protowire.AppendTag(nil, 1, protowire.VarintType)
			body = protowire.AppendVarint(body, offset)
			body = protowire.AppendTag(body, 2, protowire.VarintType)
			body = protowire.AppendVarint(body, block)
			b = protowire.AppendTag(b, 3, protowire.BytesType)
			b = protowire.AppendBytes(b, body)
			offset += block
		}
		messages = append(messages, b)
	}
	return messages
}

// Replay is a server that costs next to nothing: it sends the same serialized messages to whoever calls, and none to a
// call that does not start at offset 0. It is for measuring clients.
type Replay struct {
	Address string
	// CA is the PEM of the certificate authority.
	CA     []byte
	grpc   *grpc.Server
	served chan struct{}
}

// StartReplay starts a Replay on a port of 127.0.0.1.
func StartReplay(messages [][]byte) (*Replay, error) {
	cert, err := NewCertificate("127.0.0.1")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	r := &Replay{Address: l.Addr().String(), CA: cert.CA, served: make(chan struct{})}
	send := func(_ any, stream grpc.ServerStream) error { return replay(messages, stream) }
	r.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert.Leaf}})),
		grpc.ForceServerCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)}),
		grpc.MaxSendMsgSize(256<<20),
		grpc.UnknownServiceHandler(send))
	go func() {
		defer close(r.served)
		_ = r.grpc.Serve(l) // it ends by Stop
	}()
	return r, nil
}

// Stop ends the server and its connections at once.
func (r *Replay) Stop() {
	r.grpc.Stop()
	<-r.served
}

func replay(messages [][]byte, stream grpc.ServerStream) error {
	offset, err := startingOffset(stream)
	if err != nil || offset > 0 {
		return err
	}
	for _, m := range messages {
		if err := stream.SendMsg(mem.SliceBuffer(m)); err != nil {
			return err
		}
	}
	return nil
}

func startingOffset(stream grpc.ServerStream) (int64, error) {
	method, _ := grpc.MethodFromServerStream(stream)
	switch method {
	case api.SnapshotMetadata_GetMetadataAllocated_FullMethodName:
		var req api.GetMetadataAllocatedRequest
		err := stream.RecvMsg(&req)
		return req.StartingOffset, err
	case api.SnapshotMetadata_GetMetadataDelta_FullMethodName:
		var req api.GetMetadataDeltaRequest
		err := stream.RecvMsg(&req)
		return req.StartingOffset, err
	}
	return 0, status.Errorf(codes.Unimplemented, "%s is not served", method)
}

// rawCodec sends bytes as they are.
type rawCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(mem.SliceBuffer)
	if !ok {
		return nil, errors.New("a replay sends bytes only")
	}
	return mem.BufferSlice{b}, nil
}
