package machinery

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// TestReleasedBeforePrimeIsLost has a volume controller that never notices that the prime claim lost its volume.
func TestReleasedBeforePrimeIsLost(t *testing.T) {
	w := newWorld(t, fill(t))
	w.fake.SetHolds(fakecluster.Holds{Lose: func(*corev1.PersistentVolumeClaim) bool { return true }})
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.waitFilled(claim)
	if w.fake.Written(claim.Spec.VolumeName) == "" {
		t.Error("the volume has lost its list")
	}
	var populated int
	w.eventually("the event is there", func() bool {
		populated = 0
		for _, e := range w.eventsOf(claim.Name) {
			if e.Reason == v1alpha1.ReasonPopulated {
				populated++
			}
		}
		return populated > 0
	})
	if populated != 1 {
		t.Errorf("%d events Populated, want one", populated)
	}
}

// TestFilledBeforeItsPodHasEnded has a kubelet that never gets a pod's sandbox down.
func TestFilledBeforeItsPodHasEnded(t *testing.T) {
	w := newWorld(t, fill(t))
	w.fake.SetHolds(fakecluster.Holds{Sandbox: func(*corev1.Pod) bool { return true }})
	w.startController()
	w.addRange("range")
	w.waitFilled(w.addClaim("claim", "range"))
}

func TestHandedOver(t *testing.T) {
	type state struct {
		claim, prime *corev1.PersistentVolumeClaim
		volume       *corev1.PersistentVolume
	}
	for name, test := range map[string]struct {
		change func(*state)
		want   bool
	}{
		"bound to the filled volume":                              {func(*state) {}, true},
		"claim is gone":                                           {func(s *state) { s.claim = nil }, false},
		"prime claim is gone":                                     {func(s *state) { s.prime = nil }, false},
		"claim is being deleted":                                  {func(s *state) { s.claim.DeletionTimestamp = &metav1.Time{Time: noon} }, false},
		"claim is not bound yet":                                  {func(s *state) { s.claim.Status.Phase = corev1.ClaimPending }, false},
		"claim has another volume":                                {func(s *state) { s.claim.Spec.VolumeName = "other" }, false},
		"volume still belongs to the prime claim":                 {func(s *state) { s.volume.Spec.ClaimRef.UID = s.prime.UID }, false},
		"volume belongs to a claim of that name that came before": {func(s *state) { s.volume.Spec.ClaimRef.UID = "before" }, false},
		"volume belongs to nobody":                                {func(s *state) { s.volume.Spec.ClaimRef = nil }, false},
		"volume is gone":                                          {func(s *state) { s.volume.Name = "another" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			target := sampleTarget()
			s := state{claim: target.claim, prime: target.prime, volume: &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: "pv"},
				Spec:       corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{UID: target.claim.UID}},
			}}
			s.claim.Spec.VolumeName, s.claim.Status.Phase = "pv", corev1.ClaimBound
			s.prime.Spec.VolumeName = "pv"
			test.change(&s)
			r := &releaser{live: fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(s.volume).Build()}
			got, err := r.handedOver(context.Background(), s.claim, s.prime)
			if err != nil || got != test.want {
				t.Errorf("handed over: %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

// TestListIsNotHandedOverByAnOldStatus: a snapshot was replaced, and the mark on the pod, which follows from that, is in the cache
// sooner than the status. An older controller marks such a pod like any other.
func TestListIsNotHandedOverByAnOldStatus(t *testing.T) {
	for name, replace := range map[string]func(*v1alpha1.ChangedBlockRange){
		"another snapshot":          func(cbr *v1alpha1.ChangedBlockRange) { cbr.Status.ToSnapshotHandle = "another" },
		"another ChangedBlockRange": func(cbr *v1alpha1.ChangedBlockRange) { cbr.UID = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, interceptor.Funcs{}, endedPod(t, corev1.PodSucceeded, outcome.Populated))
			complete := func() bool {
				t.Helper()
				complete, err := b.complete(context.Background(), b.target.claim, b.target.prime)
				if err != nil {
					t.Fatal(err)
				}
				return complete
			}
			if !complete() {
				t.Fatal("the list is not handed over, whatever the API server says")
			}
			newer := sampleSource().cbr
			replace(newer)
			b.live = newerRange{Reader: b.live, cbr: newer}
			if complete() {
				t.Error("the list is handed over although the API server knows that it is of what was replaced")
			}
		})
	}
}

// newerRange reads a ChangedBlockRange that the cache does not have yet.
type newerRange struct {
	client.Reader
	cbr *v1alpha1.ChangedBlockRange
}

func (r newerRange) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if cbr, ok := o.(*v1alpha1.ChangedBlockRange); ok {
		r.cbr.DeepCopyInto(cbr)
		return nil
	}
	return r.Reader.Get(ctx, key, o, opts...)
}
