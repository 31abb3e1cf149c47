package snapmeta

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

const (
	benchEntries    = 5_000_000
	benchPerMessage = 1024
)

// discard is a codec that takes messages for received without a look at them.
type discard struct{ encoding.CodecV2 }

func (discard) Unmarshal(mem.BufferSlice, any) error { return nil }

// BenchmarkReceive measures the ways to read a stream of 4 KiB extents: what gRPC and TLS take without a look at the
// messages, the generated code, and a Stream with all of its checks. The CPU time is that of this process.
func BenchmarkReceive(b *testing.B) {
	address, ca := fakes.StartReplayProcess(b, benchEntries, benchPerMessage)
	endpoint := Endpoint{Address: address, CA: ca}
	req := &api.GetMetadataDeltaRequest{}
	calls := func(b *testing.B, receive func(grpc.ServerStreamingClient[api.GetMetadataDeltaResponse]) error, opts ...grpc.CallOption) func() int {
		return func() int {
			conn, err := dial(endpoint, Timing{}.withDefaults())
			if err != nil {
				b.Fatal(err)
			}
			stream, err := api.NewSnapshotMetadataClient(conn).GetMetadataDelta(b.Context(), req, opts...)
			for err == nil {
				err = receive(stream)
			}
			if !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				b.Fatal(err)
			}
			return benchEntries
		}
	}
	b.Run("raw", func(b *testing.B) {
		measure(b, calls(b, func(stream grpc.ServerStreamingClient[api.GetMetadataDeltaResponse]) error {
			return stream.RecvMsg(nil)
		},
			grpc.ForceCodecV2(discard{encoding.GetCodecV2(grpcproto.Name)})))
	})
	b.Run("generated", func(b *testing.B) {
		measure(b, calls(b, func(stream grpc.ServerStreamingClient[api.GetMetadataDeltaResponse]) error {
			_, err := stream.Recv()
			return err
		}))
	})
	b.Run("Stream", func(b *testing.B) {
		measure(b, func() int { return readAll(b, endpoint) })
	})
}

func readAll(b *testing.B, endpoint Endpoint) int {
	s, err := New(Config{
		Request:  Request{Namespace: "demo", Target: "snap-2", BaseHandle: "handle-1"},
		Endpoint: func() (Endpoint, error) { return endpoint, nil },
		Token:    func() (string, error) { return "token", nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	n := 0
	for {
		extents, err := s.Next(context.Background())
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			b.Fatal(err)
		}
		n += len(extents)
	}
}

// measure reports what one entry costs.
func measure(b *testing.B, read func() int) {
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		if n := read(); n != benchEntries {
			b.Fatalf("%d entries, want %d", n, benchEntries)
		}
	}
	entries := float64(b.N) * benchEntries
	b.ReportMetric(float64(cpuTime(b)-before)/entries, "cpu-ns/entry")
	b.ReportMetric(float64(b.Elapsed())/entries, "ns/entry")
	b.ReportMetric(0, "ns/op")
}

// cpuTime returns the user and system time of this process so far.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkParse measures the parser alone, and the generated code.
func BenchmarkParse(b *testing.B) {
	messages := fakes.Messages(100*benchPerMessage, benchPerMessage)
	for name, parse := range map[string]func(raw []byte, reuse []blocklist.Extent) (message, error){
		"generated": func(raw []byte, _ []blocklist.Extent) (message, error) {
			var r api.GetMetadataDeltaResponse
			return message{}, proto.Unmarshal(raw, &r)
		},
		"wire": parseMessage,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var m message
			for b.Loop() {
				for _, raw := range messages {
					var err error
					if m, err = parse(raw, m.extents); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(len(messages)*benchPerMessage), "ns/entry")
			b.ReportMetric(0, "ns/op")
		})
	}
}
