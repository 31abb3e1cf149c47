package machinery

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	testclock "k8s.io/utils/clock/testing"
)

func TestSettling(t *testing.T) {
	now := testclock.NewFakePassiveClock(noon)
	s := newSettling(now)
	var later []time.Duration
	s.later = func(_ *corev1.PersistentVolumeClaim, after time.Duration) { later = append(later, after) }
	claim := sampleTarget().claim
	claim.ResourceVersion = "1"
	newer := claim.DeepCopy()
	newer.ResourceVersion = "2"

	if s.has(claim) {
		t.Error("a claim that nobody wrote to settles")
	}
	s.begin(claim)
	if !s.has(claim) || s.has(newer) {
		t.Errorf("the version that was written to settles: %v, the next one: %v; want only the former", s.has(claim), s.has(newer))
	}
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
