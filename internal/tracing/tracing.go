// Package tracing exports what a claim went through as OpenTelemetry spans, from its creation to its volume. Its input is
// what the API objects say (when they were created, when a container started and ended), so that nothing has to be kept
// between two looks at a claim, and a restart of the controller breaks no trace.
//
// The identity of a trace is the claim's UID: whoever knows the claim finds the trace, and every part of the controller
// adds its spans to it without knowing of the others.
package tracing

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/internal/version"
)

// Root is the name of the span that covers a claim from its creation until its volume is there; all others lie in it.
const Root = "populate claim"

// Tracer exports spans. A nil Tracer exports nothing.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Span is something that is over.
type Span struct {
	Name string
	// Part tells spans of one name in one claim apart, such as the number of an attempt; empty if there is only one.
	Part       string
	Start, End time.Time
	// Failure is why what the span covers failed; empty if it did not.
	Failure    string
	Attributes []attribute.KeyValue
}

// New returns a Tracer that sends spans to an OTLP collector at endpoint (host:port, gRPC), with TLS and the system's
// certificates unless plain is set. It does not wait for the collector: spans that it does not take are dropped.
func New(ctx context.Context, endpoint string, plain bool) (*Tracer, error) {
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(endpoint)}
	if plain {
		options = append(options, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("export traces to %s: %w", endpoint, err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithIDGenerator(identities{}),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "cbt-populator-controller"),
			attribute.String("service.version", version.Get().Version),
		)),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/cbt-populator/cbt-populator")}, nil
}

// stopTimeout bounds the sending of the last spans when the controller ends.
const stopTimeout = 3 * time.Second

// Start implements manager.Runnable: it waits until ctx ends, and sends what was not sent yet.
func (t *Tracer) Start(ctx context.Context) error {
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return t.Stop(last)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Tracer) NeedLeaderElection() bool { return false }

// Stop sends what was not sent yet.
func (t *Tracer) Stop(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last traces: %w", err)
	}
	return nil
}

// Record exports spans of the claim with that UID. Spans without a start or an end, or that end before they start, because
// what they tell of did not happen or clocks differ, are left out.
func (t *Tracer) Record(claim types.UID, spans ...Span) {
	if t == nil {
		return
	}
	traceID, err := traceOf(claim)
	if err != nil {
		return
	}
	parent := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID, SpanID: spanOf(claim, Root, ""), TraceFlags: trace.FlagsSampled,
	}))
	for _, s := range spans {
		if s.Start.IsZero() || s.End.IsZero() || s.End.Before(s.Start) {
			continue
		}
		ctx := parent
		if s.Name == Root {
			ctx = context.Background()
		}
		ctx = context.WithValue(ctx, identityKey{}, identity{traceID, spanOf(claim, s.Name, s.Part)})
		_, span := t.tracer.Start(ctx, s.Name, trace.WithTimestamp(s.Start), trace.WithAttributes(s.Attributes...))
		if s.Failure != "" {
			span.SetStatus(otelcodes.Error, s.Failure)
		}
		span.End(trace.WithTimestamp(s.End))
	}
}

// traceOf returns the claim's UID as the identity of its trace: both have 16 bytes.
func traceOf(claim types.UID) (trace.TraceID, error) {
	id, err := uuid.Parse(string(claim))
	if err != nil || id == uuid.Nil {
		return trace.TraceID{}, errors.New("the UID of the claim is none")
	}
	return trace.TraceID(id), nil
}

func spanOf(claim types.UID, name, part string) (id trace.SpanID) {
	sum := sha256.Sum256([]byte(strings.Join([]string{string(claim), name, part}, "\x00")))
	copy(id[:], sum[:])
	return id
}

// identity is what a span is to be called; it travels in the context to identities, which the SDK asks.
type identity struct {
	trace trace.TraceID
	span  trace.SpanID
}

type identityKey struct{}

type identities struct{}

// NewIDs implements sdktrace.IDGenerator.
func (identities) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id, _ := ctx.Value(identityKey{}).(identity)
	return id.trace, id.span
}

// NewSpanID implements sdktrace.IDGenerator.
func (identities) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	id, _ := ctx.Value(identityKey{}).(identity)
	return id.span
}
