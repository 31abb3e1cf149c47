package tracing

import (
	"context"
	"encoding/hex"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// sink is a collector.
type sink struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string]*tracepb.Span
}

func (s *sink) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range req.GetResourceSpans() {
		for _, scope := range r.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				s.spans[span.GetName()] = span
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachTheCollector(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &sink{spans: map[string]*tracepb.Span{}}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, got)
	go func() { _ = server.Serve(listener) }() // it ends with Stop
	defer server.Stop()

	tracer, err := New(t.Context(), listener.Addr().String(), true)
	if err != nil {
		t.Fatal(err)
	}
	const claim = "11223344-5566-7788-99aa-bbccddeeff00"
	begin := time.Unix(1_700_000_000, 0)
	// By two parts of the controller that know nothing of each other, the inner one first.
	tracer.Record(claim, Span{Name: "write list", Part: "1", Start: begin.Add(2 * time.Second), End: begin.Add(3 * time.Second),
		Failure: "VolumeFull", Attributes: []attribute.KeyValue{attribute.Int64("cbt.entries", 7)}})
	tracer.Record(claim, Span{Name: Root, Start: begin, End: begin.Add(4 * time.Second)})
	tracer.Record(claim, Span{Name: "never started", End: begin}, Span{Name: "never ended", Start: begin}, Span{Name: "clocks differ", Start: begin.Add(time.Second), End: begin})
	tracer.Record("no uid", Span{Name: "of nothing", Start: begin, End: begin})
	if err := tracer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	root, list := got.spans[Root], got.spans["write list"]
	if len(got.spans) != 2 || root == nil || list == nil {
		t.Fatalf("the collector got %v", got.spans)
	}
	for _, span := range []*tracepb.Span{root, list} {
		if id := hex.EncodeToString(span.GetTraceId()); id != "112233445566778899aabbccddeeff00" {
			t.Errorf("%s is in trace %s, want the claim's UID", span.GetName(), id)
		}
	}
	if len(root.GetParentSpanId()) != 0 || !cmp.Equal(list.GetParentSpanId(), root.GetSpanId()) {
		t.Errorf("parents: %x of the root, %x of the list, whose parent is %x", root.GetParentSpanId(), list.GetParentSpanId(), root.GetSpanId())
	}
	if took := list.GetEndTimeUnixNano() - list.GetStartTimeUnixNano(); took != uint64(time.Second) || list.GetStatus().GetMessage() != "VolumeFull" {
		t.Errorf("the list took %d ns, %v", took, list.GetStatus())
	}
}

func TestNoTracer(t *testing.T) {
	var none *Tracer
	none.Record("11223344-5566-7788-99aa-bbccddeeff00", Span{Name: Root, Start: time.Unix(1, 0), End: time.Unix(2, 0)})
	if err := none.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestNobodyListens has a collector that is not there: nothing waits for it.
func TestNobodyListens(t *testing.T) {
	tracer, err := New(t.Context(), "127.0.0.1:1", true)
	if err != nil {
		t.Fatal(err)
	}
	tracer.Record("11223344-5566-7788-99aa-bbccddeeff00", Span{Name: Root, Start: time.Unix(1, 0), End: time.Unix(2, 0)})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := tracer.Stop(ctx); err == nil {
		t.Error("spans that nobody took are reported as sent")
	}
}
