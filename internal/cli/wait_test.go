package cli

import (
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestWaitEnds: how the wait for a claim ends, if it does.
func TestWaitEnds(t *testing.T) {
	bound := func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName, c.Status.Phase = "pv", corev1.ClaimBound }
	other := func(name string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) {
			metav1.SetMetaDataAnnotation(&c.ObjectMeta, v1alpha1.AnnotationOtherVolume, name)
		}
	}
	for name, test := range map[string]struct {
		state  v1alpha1.State
		change []func(*corev1.PersistentVolumeClaim)
		ends   bool
		says   string
	}{
		"populating":                               {state: v1alpha1.StatePopulating},
		"written, not bound":                       {state: v1alpha1.StateReady},
		"bound, not written":                       {state: v1alpha1.StatePending, change: []func(*corev1.PersistentVolumeClaim){bound}},
		"written and bound":                        {state: v1alpha1.StateReady, change: []func(*corev1.PersistentVolumeClaim){bound}, ends: true},
		"bound to another volume":                  {state: v1alpha1.StatePending, change: []func(*corev1.PersistentVolumeClaim){bound, other("pv")}, ends: true, says: "claim list is not populated: it is bound to volume pv"},
		"bound to another volume, others have one": {state: v1alpha1.StateReady, change: []func(*corev1.PersistentVolumeClaim){bound, other("pv")}, ends: true, says: "claim list is not populated"},
		"waiting, copied from one with another":    {state: v1alpha1.StatePopulating, change: []func(*corev1.PersistentVolumeClaim){other("before")}},
	} {
		t.Run(name, func(t *testing.T) {
			cbr := &v1alpha1.ChangedBlockRange{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "tuesday"}}
			cbr.Status.State = test.state
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "list"}}
			for _, change := range test.change {
				change(claim)
			}
			w := &waiter{show: newProgressView(io.Discard), cbr: cbr, ended: make(chan struct{})}
			w.seeClaim(claim)
			switch {
			case w.closed != test.ends:
				t.Errorf("the wait has ended: %v, want %v", w.closed, test.ends)
			case (w.err != nil) != (test.says != ""), w.err != nil && !strings.Contains(w.err.Error(), test.says):
				t.Errorf("it ended with %v, want …%s…", w.err, test.says)
			}
		})
	}
}

func TestClaimRowsTellOtherVolumes(t *testing.T) {
	claim := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "list"}}
	claim.Spec.VolumeName, claim.Status.Phase = "pv", corev1.ClaimBound
	for other, want := range map[string]string{"": "Bound", "before": "Bound", "pv": "Bound, not populated"} {
		claim.Annotations = map[string]string{v1alpha1.AnnotationOtherVolume: other}
		if got := claimRows([]corev1.PersistentVolumeClaim{claim}, time.Time{})[1][1]; got != want {
			t.Errorf("annotation %q: status %q, want %q", other, got, want)
		}
	}
}

// TestNextStepForOtherVolume: list and describe say what to do.
func TestNextStepForOtherVolume(t *testing.T) {
	cbr := &v1alpha1.ChangedBlockRange{}
	cbr.Status.Conditions = []metav1.Condition{
		{Type: v1alpha1.ConditionSnapshotsResolved, Status: metav1.ConditionTrue},
		{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonBoundToOtherVolume},
	}
	if got := nextStep(cbr); !strings.Contains(got, "delete the claim and create it again") {
		t.Errorf("next step: %q", got)
	}
}
