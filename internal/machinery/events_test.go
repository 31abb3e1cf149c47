package machinery

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/workqueue"
	testclock "k8s.io/utils/clock/testing"
)

func anyWait(*corev1.PersistentVolumeClaim, time.Duration) {}

func TestLibraryRecorderIsQuiet(t *testing.T) {
	log := &eventLog{}
	noonClock := testclock.NewFakePassiveClock(noon)
	r := libraryRecorder{events: newEvents(log, nil), refused: newRefusals(noonClock, 1), settling: newSettling(noonClock), wait: anyWait, later: func(*corev1.PersistentVolumeClaim, time.Duration) {
		t.Error("a claim is looked at again although the library looks at it by itself")
	}}
	claim := sampleTarget().claim
	quota := apierrors.NewForbidden(schema.GroupResource{Resource: "persistentvolumeclaims"}, "prime", errors.New("exceeded quota"))
	exists := apierrors.NewAlreadyExists(schema.GroupResource{Resource: "persistentvolumeclaims"}, "prime")
	for range 3 {
		r.Eventf(claim, corev1.EventTypeNormal, "PopulatorFinished", "Populator finished")
		r.Eventf(claim, corev1.EventTypeWarning, "PopulateOperationStartError", "Failed to start populate operation: %s", errWaiting)
		r.Eventf(claim, corev1.EventTypeWarning, libraryReasonPrime, "Failed to create populator pvcPrime: %s", exists)
		r.Eventf(claim, corev1.EventTypeWarning, libraryReasonPrime, "Failed to create populator pvcPrime: %s", quota)
	}
	if len(log.notes) != 1 || !strings.Contains(log.notes[0], "exceeded quota") {
		t.Errorf("events %v, want one about the quota", log.notes)
	}
}

// TestRefusedPrimeClaimIsWoken when what refused it changes, be it a quota or a webhook.
func TestRefusedPrimeClaimIsWoken(t *testing.T) {
	for name, refusal := range map[string]error{
		"quota":               apierrors.NewForbidden(schema.GroupResource{Resource: "persistentvolumeclaims"}, "prime", errors.New("exceeded quota")),
		"webhook":             webhookAnswer(400, metav1.StatusReasonUnknown, "no"),
		"webhook with a code": webhookAnswer(409, metav1.StatusReasonAlreadyExists, "no"),
	} {
		noonClock := testclock.NewFakePassiveClock(noon)
		r := libraryRecorder{events: newEvents(&eventLog{}, nil), refused: newRefusals(noonClock, 1), settling: newSettling(noonClock), wait: anyWait}
		claim := sampleTarget().claim
		r.Eventf(claim, corev1.EventTypeWarning, libraryReasonPrime, "Failed to create populator pvcPrime: %s", refusal)
		if woken := r.refused.take(); !slices.Equal(woken, []wokenClaim{{claim: nameOf(claim)}}) {
			t.Errorf("%s: woken %v", name, woken)
		}
	}
}

// TestClaimIsLookedAtAgainWhenTheLibraryLags: the gate has seen the ChangedBlockRange, the library has not yet, and forgets the claim.
func TestClaimIsLookedAtAgainWhenTheLibraryLags(t *testing.T) {
	admitted := true
	delaying := &instantQueue{TypedDelayingInterface: workqueue.NewTypedDelayingQueue[any]()}
	queue := newClaimQueue(0, 1, delaying, func(string) bool { return admitted })
	queues := &claimQueues{own: []*claimQueue{queue}}
	log, noonClock, claim := &eventLog{}, testclock.NewFakePassiveClock(noon), sampleTarget().claim
	r := libraryRecorder{events: newEvents(log, nil), refused: newRefusals(noonClock, 1), settling: newSettling(noonClock), later: queues.addAfter}
	// What the library does with a claim whose ChangedBlockRange it does not find.
	sync := func() {
		key, _ := queue.Get()
		r.Eventf(claim, corev1.EventTypeWarning, libraryReasonNoSource, "Data source %s/%s not found", "backup", "monday")
		queue.Forget(key)
		queue.Done(key)
	}
	queue.Add(claimKey(nameOf(claim)))
	sync()
	if queue.Len() != 1 || !slices.Equal(delaying.after, []time.Duration{lookAgainAfter}) {
		t.Fatalf("%d claims wait for the library, added after %v", queue.Len(), delaying.after)
	}
	sync()

	// It is gone for the gate as well: a watch brings the claim back.
	admitted = false
	queue.ShutDown()
	if key, ok := queue.Get(); !ok || key != nil {
		t.Errorf("the library is handed %v although nothing may be begun", key)
	}
	if len(log.notes) != 0 {
		t.Errorf("events %v about what passes by itself", log.notes)
	}
}

// instantQueue adds at once what is to be added later.
type instantQueue struct {
	workqueue.TypedDelayingInterface[any]
	after []time.Duration
}

func (q *instantQueue) AddAfter(item any, after time.Duration) {
	q.after = append(q.after, after)
	q.Add(item)
}
