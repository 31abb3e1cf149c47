package controller

import (
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
	"github.com/cbt-populator/cbt-populator/internal/tracing"
)

// claimUIDOf returns the UID of the claim that a populator pod fills.
func claimUIDOf(pod *corev1.Pod) types.UID { return types.UID(pod.Labels[v1alpha1.LabelClaimUID]) }

// spans are what a pod that has ended took part in: being scheduled and started, and writing the list.
func spans(a *attempt) []tracing.Span {
	var started, ended time.Time
	if t := podstate.Terminated(a.pod); t != nil {
		started, ended = t.StartedAt.Time, t.FinishedAt.Time
	}
	// A retried claim has several pods of one name; the times of their creation differ.
	part := strconv.FormatInt(a.pod.CreationTimestamp.Unix(), 10)
	write := tracing.Span{Name: "write list", Part: part, Start: started, End: ended, Attributes: []attribute.KeyValue{
		attribute.String("cbt.driver", driverLabel(a.pod)),
		attribute.String("cbt.reason", string(a.result.Reason)),
		attribute.String("cbt.mode", a.result.Mode),
		attribute.Int64("cbt.entries", a.result.EntryCount),
		attribute.Int64("cbt.changed_bytes", a.result.ChangedBytes),
		attribute.Int64("cbt.list_bytes", a.result.NumBytesWritten),
		attribute.Int("cbt.resumes", a.result.Resumes),
		attribute.String("k8s.pod.name", a.pod.Name),
		attribute.String("k8s.node.name", a.pod.Spec.NodeName),
	}}
	if !a.succeeded() {
		write.Failure = string(a.result.Reason) + ": " + a.result.Message
	}
	return []tracing.Span{
		{Name: "start populator", Part: part, Start: a.pod.CreationTimestamp.Time, End: started},
		write,
	}
}
