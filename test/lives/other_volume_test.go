package lives

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
)

// TestOtherVolume has Kubernetes bind claims to volumes that were there already: one before its snapshots are ready, one while its
// list is written. Neither counts as populated, the status tells of them, and a claim that is created again is filled.
func TestOtherVolume(t *testing.T) {
	w := newWorld(t)
	w.startController()
	early, amid := w.newLife(deletions{at: waiting}), w.newLife(deletions{at: running})
	lives := w.each([]*life{early}, func(l *life) error {
		if err := l.create(l.otherVolume()); err != nil {
			return err
		}
		// The binder is not held: it has nothing else to bind.
		l.let(everything)
		if err := l.give(theNamespace, theClass, theService, theRange, theClaim); err != nil {
			return err
		}
		if err := l.until("the claim is bound", isBound); err != nil {
			return err
		}
		return l.give(theFrom, theTo)
	})
	lives = append(lives, w.each([]*life{amid}, func(l *life) error {
		if err := l.begin(running); err != nil {
			return err
		}
		if err := l.reach(running); err != nil {
			return err
		}
		l.let(stage{provision: true, bind: true})
		return l.create(l.otherVolume())
	})...)
	w.each(lives, func(l *life) error {
		if err := l.until("the claim is told not to be populated", l.checkAstray); err != nil {
			return err
		}
		if err := l.lose(theClaim); err != nil {
			return err
		}
		if err := l.until("the claim is gone", func(s sight) string {
			if s.claim != nil {
				return "it is there"
			}
			return ""
		}); err != nil {
			return err
		}
		l.let(everything)
		if err := l.give(theClaim); err != nil {
			return err
		}
		if err := l.filled(); err != nil {
			return err
		}
		return l.end()
	})
	w.checkNothingLeft()
}

// otherVolume is a volume of the life's class that nobody has.
func (l *life) otherVolume() *corev1.PersistentVolume {
	return fakecluster.Available("other-"+l.namespace, l.newClaim(), nil)
}

func isBound(s sight) string {
	if s.claim == nil || s.claim.Status.Phase != corev1.ClaimBound {
		return "it is not"
	}
	return ""
}

// checkAstray says what is missing until all is told of a claim that was bound to the other volume; "" for nothing.
func (l *life) checkAstray(s sight) string {
	if missing := l.checkFilled(s); missing != "" {
		return missing
	}
	other := l.otherVolume().Name
	if s.claim.Spec.VolumeName != other || !v1alpha1.HasOtherVolume(s.claim, other) {
		return fmt.Sprintf("it has the volume %s and the annotations %v", s.claim.Spec.VolumeName, s.claim.Annotations)
	}
	if s.cbr == nil || len(s.cbr.Finalizers) > 0 || s.cbr.Status.PopulatedClaims != 0 {
		return "it counts, or holds the ChangedBlockRange"
	}
	ready := meta.FindStatusCondition(s.cbr.Status.Conditions, v1alpha1.ConditionReady)
	want := fmt.Sprintf("claim %q is not populated: it is bound to volume %q, which was not filled for it; delete the claim and create it again", claimName, other)
	if s.cbr.Status.State != v1alpha1.StatePending || ready == nil || ready.Reason != v1alpha1.ReasonBoundToOtherVolume || s.cbr.Status.Message != want {
		return "the status is another one"
	}
	return ""
}
