package machinery

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/recorder"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/notice"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/internal/tracing"
)

// actionPopulate is the action of every event of this package.
const actionPopulate = "Populate"

// events tells people, on the claim, what happens to it: each transition once. Failed populations are told by the
// reconciler, which also writes them into the ChangedBlockRange's status. It is safe for concurrent use.
type events struct {
	recorder recorder.EventRecorder
	// tracer is told the same as spans; it may be nil.
	tracer *tracing.Tracer

	mu sync.Mutex
	// warned holds the last warning of each claim, so that it is not repeated with every retry.
	warned map[types.UID]string
	// begun holds the pod of each claim that is being populated.
	begun map[types.UID]beginning
}

// beginning is a pod that writes a list.
type beginning struct {
	pod types.UID
	// since is when this process saw it first.
	since time.Time
	told  bool
}

// populatingAfter is how long it is left untold that a claim is being populated: most are filled by then, and told so.
const populatingAfter = 10 * time.Second

func newEvents(r recorder.EventRecorder, tracer *tracing.Tracer) *events {
	return &events{recorder: r, tracer: tracer, warned: map[types.UID]string{}, begun: map[types.UID]beginning{}}
}

// began takes note of a pod that was created just now. Whatever was wrong before may be told again.
func (e *events) began(claim types.UID, pod *corev1.Pod, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.warned, claim)
	e.begun[claim] = beginning{pod: pod.UID, since: now}
}

// populating tells that a pod writes the claim's list, once it has done so for a while or failed. It returns how long until then;
// 0: it was told, or there is no need to any more. A restart of the controller may repeat it.
func (e *events) populating(claim *corev1.PersistentVolumeClaim, pod *corev1.Pod, now time.Time) time.Duration {
	ended := podstate.Ended(pod) || podstate.Terminated(pod) != nil
	e.mu.Lock()
	b, known := e.begun[claim.UID]
	if !known || b.pod != pod.UID {
		b = beginning{pod: pod.UID, since: now, told: ended}
	}
	left := b.since.Add(populatingAfter).Sub(now)
	tell := !b.told && !podstate.Wrote(pod) && (ended || left <= 0)
	b.told = b.told || tell
	e.begun[claim.UID] = b
	e.mu.Unlock()
	switch {
	case tell:
		e.tellPopulating(claim, pod)
		return 0
	case b.told || ended:
		return 0
	}
	return min(left, populatingAfter)
}

func (e *events) tellPopulating(claim *corev1.PersistentVolumeClaim, pod *corev1.Pod) {
	e.recorder.Eventf(claim, nil, corev1.EventTypeNormal, v1alpha1.ReasonPopulating, actionPopulate,
		"Populator pod %s/%s writes the list of ChangedBlockRange %s (attempt %d).",
		pod.Namespace, pod.Name, shownSource(claim), attemptOf(pod))
}

// populated tells that the claim has its volume. pod is the one that filled it.
func (e *events) populated(claim *corev1.PersistentVolumeClaim, pod *corev1.Pod) {
	result, err := podResult(pod)
	if err != nil {
		return
	}
	began := claim.CreationTimestamp.Time
	e.tracer.Record(claim.UID,
		tracing.Span{Name: "wait for volume", Start: began, End: pod.CreationTimestamp.Time},
		tracing.Span{Name: tracing.Root, Start: began, End: time.Now(), Attributes: []attribute.KeyValue{
			attribute.String("k8s.namespace.name", claim.Namespace),
			attribute.String("k8s.persistentvolumeclaim.name", claim.Name),
			attribute.String("cbt.changedblockrange", shownSource(claim)),
		}})
	e.recorder.Eventf(claim, nil, corev1.EventTypeNormal, v1alpha1.ReasonPopulated, actionPopulate,
		"The volume holds the %s list of ChangedBlockRange %s: %d entries, %d changed bytes, a list of %d bytes.",
		result.Mode, shownSource(claim), result.EntryCount, result.ChangedBytes, result.NumBytesWritten)
}

// warn tells about something that keeps the claim from being populated, once for as long as it stays the same.
func (e *events) warn(claim *corev1.PersistentVolumeClaim, reason, format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	e.warnOnce(claim, reason, note, note)
}

// refused tells that the API server refused an object. What a quota counts at the moment is no news.
func (e *events) refused(claim *corev1.PersistentVolumeClaim, reason string, err error, format string, args ...any) {
	same, _, _ := strings.Cut(err.Error(), ", requested: ")
	e.warnOnce(claim, reason, same, fmt.Sprintf(format, args...))
}

// warnOnce tells a note unless the last one about the claim said the same.
func (e *events) warnOnce(claim *corev1.PersistentVolumeClaim, reason, same, note string) {
	e.mu.Lock()
	repeated := e.warned[claim.UID] == reason+same
	e.warned[claim.UID] = reason + same
	e.mu.Unlock()
	if !repeated {
		e.recorder.Eventf(claim, nil, corev1.EventTypeWarning, reason, actionPopulate, "%s", notice.Note(note))
	}
}

// forget is called when nothing of the claim is left.
func (e *events) forget(claim types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.warned, claim)
	delete(e.begun, claim)
}

// retract lets the next warning about the claim through if the last one was given for one of reasons, which is no more.
func (e *events) retract(claim types.UID, reasons ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, reason := range reasons {
		if strings.HasPrefix(e.warned[claim], reason) {
			delete(e.warned, claim)
		}
	}
}

// shownSource names the claim's ChangedBlockRange for readers of the claim.
func shownSource(claim *corev1.PersistentVolumeClaim) string {
	source, _ := reference.Of(claim)
	return reference.Shown(claim.Namespace, source)
}

// libraryRecorder is the recorder that the library gets. The library tells about every retry, about waiting, and, each time
// it looks at a claim that was filled long ago, that it has finished. Only one thing it tells is news for people: that no prime claim
// can be made. That it finds no ChangedBlockRange is news for us.
type libraryRecorder struct {
	events   *events
	refused  *refusals
	settling *settling
	// later adds a claim to its queue after a while.
	later func(claim *corev1.PersistentVolumeClaim, after time.Duration)
	// wait announces to the claim's queue that the sync that runs ends in waiting.
	wait func(claim *corev1.PersistentVolumeClaim, atMost time.Duration)
}

var _ record.EventRecorder = libraryRecorder{}

const (
	// libraryReasonPrime is the library's reason for a prime claim that could not be created.
	libraryReasonPrime = "PopulatorPVCPrimeCreationError"
	// libraryReasonNoSource is the library's reason for a ChangedBlockRange that it does not find.
	libraryReasonNoSource = "PopulatorDataSourceNotFound"
	// lookAgainAfter is how long the library is given to see a ChangedBlockRange.
	lookAgainAfter = time.Second
)

// Event implements record.EventRecorder.
func (libraryRecorder) Event(runtime.Object, string, string, string) {}

// Eventf implements record.EventRecorder.
func (r libraryRecorder) Eventf(object runtime.Object, _, reason, _ string, args ...any) {
	claim, ok := object.(*corev1.PersistentVolumeClaim)
	if ok && reason == libraryReasonNoSource {
		// The gate has seen it, or the library would not have been handed the claim, and each has a watch of its own. The library
		// forgets the claim now, and if the reference is to another namespace, it waits for a ChangedBlockRange of the claim's. The
		// gate is asked again before the claim is handed out.
		r.later(claim, lookAgainAfter)
	}
	if !ok || reason != libraryReasonPrime || len(args) == 0 {
		return
	}
	r.settling.end(claim.UID)
	err, ok := args[0].(error)
	refused := refusal(err)
	if !ok || !refused && (apierrors.IsAlreadyExists(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)) {
		return
	}
	if refused {
		// The library tells before it asks its queue for another attempt. A change wakes the claim sooner.
		r.wait(claim, r.refused.addPrime(claim))
	}
	r.events.refused(claim, "PrimeClaimRejected", err,
		"The temporary claim that is to be filled could not be created, it is tried again: %v", err)
}

// AnnotatedEventf implements record.EventRecorder.
func (r libraryRecorder) AnnotatedEventf(object runtime.Object, _ map[string]string, eventType, reason, format string, args ...any) {
	r.Eventf(object, eventType, reason, format, args...)
}
