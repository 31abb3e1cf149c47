package lives

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// TestFailureOutlivesPodAndSnapshot lets a claim fail for good, its pod be removed, and a snapshot vanish and come back: the
// status says again why nothing happens.
func TestFailureOutlivesPodAndSnapshot(t *testing.T) {
	w := newWorld(t)
	w.cfg.FailedPodRetention = ptr.To(time.Duration(0))
	w.startController()
	l := w.newLife(deletions{at: running})
	says := func(state v1alpha1.State, reason string) func(sight) string {
		return func(s sight) string {
			if s.cbr == nil || s.pod != nil {
				return "there is a pod, or no ChangedBlockRange"
			}
			ready := meta.FindStatusCondition(s.cbr.Status.Conditions, v1alpha1.ConditionReady)
			if ready == nil || ready.Reason != reason || s.cbr.Status.State != state {
				return "the status is another one"
			}
			return ""
		}
	}
	failed := says(v1alpha1.StateFailed, string(outcome.ListTooLarge))
	w.each([]*life{l}, func(l *life) error {
		if err := l.begin(running); err != nil {
			return err
		}
		l.let(stage{provision: true, bind: true, result: outcome.ListTooLarge})
		for _, step := range []struct {
			what  string
			do    func() error
			check func(sight) string
		}{
			{"it failed and the pod is gone", func() error { return nil }, failed},
			{"the snapshot is missed", func() error { return l.lose(theFrom) }, says(v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound)},
			{"the failure is told again", func() error { return l.give(theFrom) }, failed},
		} {
			if err := step.do(); err != nil {
				return err
			}
			if err := l.until(step.what, step.check); err != nil {
				return err
			}
		}
		return l.end()
	})
	w.checkNothingLeft()
}
