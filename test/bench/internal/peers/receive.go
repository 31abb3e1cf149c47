package peers

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that rawCodec falls back to
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

func dial(t Target) (*grpc.ClientConn, error) {
	roots, err := t.roots()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(t.Address, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "")))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", t.Address, err)
	}
	return conn, nil
}

func (t Target) request() *api.GetMetadataDeltaRequest {
	return &api.GetMetadataDeltaRequest{
		SecurityToken: t.Token, Namespace: t.Namespace, BaseSnapshotId: t.Base, TargetSnapshotName: t.Snapshot,
	}
}

// rawCodec hands over messages as they came.
type rawCodec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	message, ok := v.(*mem.BufferSlice)
	if !ok {
		return fmt.Errorf("receive into %T, want a buffer", v)
	}
	data.Ref()
	*message = data
	return nil
}

// receiveRaw receives messages and looks at none: what gRPC and TLS cost, the floor of every client.
func receiveRaw(ctx context.Context, t Target, _ io.Writer, visit Visit) (received int64, err error) {
	conn, err := dial(t)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, api.SnapshotMetadata_GetMetadataDelta_FullMethodName,
		grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2("proto")}))
	if err != nil {
		return 0, fmt.Errorf("open stream: %w", err)
	}
	if err := errors.Join(stream.SendMsg(t.request()), stream.CloseSend()); err != nil {
		return 0, fmt.Errorf("send request: %w", err)
	}
	for {
		var message mem.BufferSlice
		if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
			return received, nil
		} else if err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
		received += int64(message.Len())
		if visit != nil {
			var response api.GetMetadataDeltaResponse
			if err := proto.Unmarshal(message.Materialize(), &response); err != nil {
				return 0, fmt.Errorf("parse: %w", err)
			}
			if err := visitAll(response.GetBlockMetadata(), visit); err != nil {
				return 0, err
			}
		}
		message.Free()
	}
}

// receiveProtobuf receives with the generated code and discards the extents.
func receiveProtobuf(ctx context.Context, t Target, _ io.Writer, visit Visit) (received int64, err error) {
	conn, err := dial(t)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stream, err := api.NewSnapshotMetadataClient(conn).GetMetadataDelta(ctx, t.request())
	if err != nil {
		return 0, fmt.Errorf("open stream: %w", err)
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return received, nil
		} else if err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
		received += int64(len(response.GetBlockMetadata()))
		if visit != nil {
			if err := visitAll(response.GetBlockMetadata(), visit); err != nil {
				return 0, err
			}
		}
	}
}

func visitAll(list []*api.BlockMetadata, visit Visit) error {
	for _, e := range list {
		if err := visit(e.GetByteOffset(), e.GetSizeBytes()); err != nil {
			return err
		}
	}
	return nil
}
