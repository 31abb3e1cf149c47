package lives

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// phase is how far a claim has come.
type phase int

const (
	// waiting: its snapshots are not ready, and nothing was made for it.
	waiting phase = iota
	// provisioning: its prime claim has no volume yet.
	provisioning
	// running: its populator runs.
	running
	// handedOver: its volume is filled and names the claim, which is not bound yet.
	handedOver
	// done: it is bound, and what was made for it is gone.
	done
)

var phases = []phase{waiting, provisioning, running, handedOver, done}

func (p phase) String() string {
	return [...]string{"waiting", "provisioning", "running", "handed over", "done"}[p]
}

// stages say how far the parts that are played let a claim come so that it reaches a phase.
var stages = map[phase]stage{
	waiting:      {},
	provisioning: {},
	running:      {provision: true},
	handedOver:   {provision: true, result: outcome.Populated},
	done:         everything,
}

// begin creates everything for a claim that is to come to phase p.
func (l *life) begin(p phase) error {
	l.let(stages[p])
	if err := l.give(theNamespace, theHome, theClass, theService, theRange, theClaim); err != nil {
		return err
	}
	if l.foreign() {
		if err := l.give(theGrant); err != nil {
			return err
		}
	}
	if p != waiting {
		return l.give(theFrom, theTo)
	}
	if err := l.giveUnready(fromName); err != nil {
		return err
	}
	return l.giveUnready(toName)
}

// reach waits until the claim has come to phase p.
func (l *life) reach(p phase) error {
	return l.until("the claim reaches the phase "+p.String(), func(s sight) string {
		reached := s.claim != nil
		switch p {
		case waiting:
			reached = reached && s.cbr != nil && s.cbr.Status.State == v1alpha1.StatePending && released(s.claim)
		case provisioning:
			reached = reached && s.prime != nil && !released(s.claim)
		case running:
			reached = s.pod != nil && s.pod.Status.Phase == corev1.PodRunning
		case handedOver:
			reached = s.prime != nil && s.prime.Status.Phase == corev1.ClaimLost
		case done:
			return l.checkFilled(s)
		}
		if !reached {
			return "it has not"
		}
		return ""
	})
}
