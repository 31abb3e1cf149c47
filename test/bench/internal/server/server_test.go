package server

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/extents"
)

const count = 3000

// start runs a server until the test ends, and waits for the file that it makes when it listens.
func start(t *testing.T, ready string, serve func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-ticker.C {
		if _, err := os.Stat(ready); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server did not make %s", ready)
		}
	}
}

func dialTLS(t *testing.T, cfg Config) *grpc.ClientConn {
	t.Helper()
	dir := t.TempDir()
	start(t, filepath.Join(dir, AddressFile), func(ctx context.Context) error { return ServeTLS(ctx, cfg, dir) })
	creds, err := credentials.NewClientTLSFromFile(filepath.Join(dir, CAFile), "")
	if err != nil {
		t.Fatal(err)
	}
	address, err := os.ReadFile(filepath.Join(dir, AddressFile))
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, string(address), creds)
}

func dial(t *testing.T, address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// TestOffsetsAndLimits asks for the list from anywhere with any message size.
func TestOffsetsAndLimits(t *testing.T) {
	const perMessage = 100
	list := extents.New(count)
	client := api.NewSnapshotMetadataClient(dialTLS(t, Config{Extents: count, PerMessage: perMessage}))
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		offset, limit := rng.Int64N(list.Capacity()), rng.Int32N(2*perMessage)
		stream, err := client.GetMetadataDelta(t.Context(), &api.GetMetadataDeltaRequest{StartingOffset: offset, MaxResults: limit})
		if err != nil {
			t.Fatal(err)
		}
		next := list.From(offset)
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := len(m.BlockMetadata); n == 0 || n > perMessage || limit > 0 && n > int(limit) {
				t.Fatalf("seed %d: %d extents in a message, limit %d", seed, n, limit)
			}
			if m.VolumeCapacityBytes != list.Capacity() || m.BlockMetadataType != api.BlockMetadataType_FIXED_LENGTH {
				t.Fatalf("seed %d: capacity %d, type %s", seed, m.VolumeCapacityBytes, m.BlockMetadataType)
			}
			for _, e := range m.BlockMetadata {
				if e.ByteOffset != list.Offset(next) || e.SizeBytes != extents.Size {
					t.Fatalf("seed %d, offset %d: extent %d is %v", seed, offset, next, e)
				}
				next++
			}
		}
		if next != count {
			t.Fatalf("seed %d, offset %d: ended after extent %d", seed, offset, next)
		}
	}
	stream, err := client.GetMetadataDelta(t.Context(), &api.GetMetadataDeltaRequest{StartingOffset: list.Capacity()})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.OutOfRange {
		t.Errorf("past the end: %v", err)
	}
}

// TestDriver has what the sidecar asks a driver for.
func TestDriver(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	start(t, socket, func(ctx context.Context) error {
		return ServeDriver(ctx, Config{Extents: count, PerMessage: 1000}, socket)
	})
	conn := dial(t, "unix://"+socket, insecure.NewCredentials())
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != DriverName {
		t.Errorf("%v, %v", info, err)
	}
	stream, err := csi.NewSnapshotMetadataClient(conn).GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{})
	if err != nil {
		t.Fatal(err)
	}
	comparison := extents.New(count).Compare(0)
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range m.GetBlockMetadata() {
			if err := comparison.Add(e.GetByteOffset(), e.GetSizeBytes()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := comparison.Done(); err != nil {
		t.Error(err)
	}
}

// TestLongList has messages that are marshalled on demand.
func TestLongList(t *testing.T) {
	prepared := newMessages(extents.New(count), 100)
	onDemand := newMessages(extents.New(count), 100)
	onDemand.prepared = nil
	for i := int64(0); i < count; {
		a, n := prepared.next(i, 1000)
		b, m := onDemand.next(i, 1000)
		if n != m || string(a[0].ReadOnlyData()) != string(b[0].ReadOnlyData()) {
			t.Fatalf("message %d: to %d and %d", i, n, m)
		}
		i = n
	}
}

// TestCostIsCPUTime: what a server burns is processor time, not time that passes.
func TestCostIsCPUTime(t *testing.T) {
	const cost = 5 * time.Millisecond
	begin := time.Now()
	if err := burn(cost); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < cost {
		t.Errorf("%s of CPU time took %s", cost, took)
	}
}

// TestSlowConn delivers everything in order, later.
func TestSlowConn(t *testing.T) {
	const oneWay = 5 * time.Millisecond
	near, far := net.Pipe()
	slow := newSlowConn(far, oneWay)
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(i / 7)
	}
	begin := time.Now()
	go func() {
		_, _ = slow.Write(want) // what is missing is seen below
	}()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(near, got); err != nil || string(got) != string(want) {
		t.Errorf("not what was written: %v", err)
	}
	if took := time.Since(begin); took < oneWay {
		t.Errorf("arrived after %s, the delay is %s", took, oneWay)
	}
	if err := errors.Join(slow.Close(), near.Close()); err != nil {
		t.Error(err)
	}
}
