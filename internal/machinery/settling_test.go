package machinery

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	testclock "k8s.io/utils/clock/testing"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

func TestSettling(t *testing.T) {
	now := testclock.NewFakePassiveClock(noon)
	s := newSettling(now)
	var later []time.Duration
	s.later = func(_ *corev1.PersistentVolumeClaim, after time.Duration) { later = append(later, after) }
	claim := sampleTarget().claim
	claim.ResourceVersion = "1"
	touched := claim.DeepCopy()
	touched.ResourceVersion = "2"
	written := touched.DeepCopy()
	written.Finalizers = append(written.Finalizers, v1alpha1.FinalizerClaim)

	if s.has(claim) {
		t.Error("a claim that nobody wrote to settles")
	}
	s.begin(claim)
	for _, test := range []struct {
		what   string
		claim  *corev1.PersistentVolumeClaim
		before *corev1.PersistentVolumeClaim
		want   bool
	}{
		{"the version that the library wrote to", claim, claim, true},
		{"somebody else's write came first", touched, claim, true},
		{"the finalizer is on", written, claim, false},
		{"the finalizer is still on", written, written, true},
		{"the finalizer is off", touched, written, false},
	} {
		s.begin(test.before)
		if s.has(test.claim) != test.want {
			t.Errorf("%s: settles %v, want %v", test.what, !test.want, test.want)
		}
	}
	s.begin(claim)
	now.SetTime(noon.Add(settleFor))
	if s.has(claim) {
		t.Error("a patch that was lost keeps the claim for good")
	}
	if len(later) == 0 || later[0] != settleFor {
		t.Errorf("the claim is looked at again after %v, want after %v", later, settleFor)
	}
	s.begin(claim)
	s.end(claim.UID)
	if s.has(claim) {
		t.Error("a claim that was not written to settles")
	}
	other := sampleTarget().claim
	other.UID = "other"
	s.begin(other)
	if len(s.claims) != 1 {
		t.Errorf("%d claims are remembered, want those of the last moments only", len(s.claims))
	}
}
