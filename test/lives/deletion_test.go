package lives

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/test/size"
)

// deletions are what is deleted, one after the other, when the claim has come to phase at.
type deletions struct {
	at      phase
	victims []victim
}

func (d deletions) String() string {
	var names []string
	for _, v := range d.victims {
		names = append(names, string(v))
	}
	return fmt.Sprintf("%s, %s deleted", d.at, strings.Join(names, " then "))
}

// possible reports whether all victims exist in the phase.
func (d deletions) possible() bool {
	has := func(v victim) bool { return slices.Contains(d.victims, v) }
	switch d.at {
	case waiting, done:
		return !has(thePod) && !has(thePrime)
	case provisioning:
		return !has(thePod)
	default:
		return true
	}
}

// end is how a claim may end.
type end string

const (
	gone   end = "gone"
	filled end = "filled"
	// stays: it waits until what was deleted is there again.
	stays end = "waiting"
	// either: it is filled or waits, depending on who is quicker.
	either end = "filled or waiting"
)

// expected says how the claim ends when it is let to its end after the deletions.
func (d deletions) expected() end {
	lost := func(vs ...victim) bool {
		return slices.ContainsFunc(d.victims, func(v victim) bool { return slices.Contains(vs, v) })
	}
	switch {
	case lost(theClaim, theNamespace):
		return gone
	case lost(theGrant, theHome) && d.at < handedOver:
		// What was begun is undone, even if the populator runs.
		return stays
	case d.at >= handedOver:
		// The data is complete.
		return filled
	case d.at == running && !lost(thePod, thePrime):
		// A populator that runs has all that it needs.
		return filled
	case d.at == waiting && lost(theRange, theFrom, theTo, theClass, theService):
		return stays
	case lost(theFrom, theTo, theClass, theService):
		return either
	}
	return filled
}

// singles are all deletions of one thing, pairs of two, in both orders.
func singles() []deletions {
	var all []deletions
	for _, at := range phases {
		for _, v := range victims {
			all = append(all, deletions{at, []victim{v}})
		}
	}
	return slices.DeleteFunc(all, func(d deletions) bool { return !d.possible() })
}

func pairs() []deletions {
	var all []deletions
	for _, first := range singles() {
		for _, second := range victims {
			if second != first.victims[0] {
				all = append(all, deletions{first.at, []victim{first.victims[0], second}})
			}
		}
	}
	return slices.DeleteFunc(all, func(d deletions) bool { return !d.possible() })
}

// onceWrong are pairs that hung or left something behind before.
func onceWrong() []deletions {
	var all []deletions
	for _, v := range []victim{theFrom, theTo, theClass, theService} {
		all = append(all, deletions{provisioning, []victim{theRange, v}}, deletions{provisioning, []victim{v, theRange}})
	}
	return all
}

// sample returns as many of all as -pairs says, or all if that is negative.
func sample(r *rand.Rand, all []deletions) []deletions {
	n := size.Or(*pairsFlag, 20, 4)
	if n < 0 || n > len(all) {
		return all
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:n]
}

// TestDeletions deletes everything that can be deleted, alone and in pairs, at each step of a claim's life.
func TestDeletions(t *testing.T) {
	w := newWorld(t)
	cases := slices.Concat(singles(), onceWrong(), sample(newRandom(t), pairs()))
	w.startController()
	w.each(w.livesFor(cases), func(l *life) error { return l.dieAndComeBack(func(bool) {}) })
	w.checkNothingLeft()
}

// TestDeletionsWithRestarts restarts the controller between any two steps of a claim's life and of its deletions; what is
// deleted is deleted while none runs.
func TestDeletionsWithRestarts(t *testing.T) {
	w := newWorld(t)
	cases := slices.Concat(singles(), onceWrong(), sample(newRandom(t), pairs()))
	w.startController()
	for batch := range slices.Chunk(w.livesFor(cases), atOnce) {
		crew := w.newCrew(len(batch))
		w.each(batch, func(l *life) error {
			defer crew.leave()
			return l.dieAndComeBack(crew.turn)
		})
	}
	w.checkNothingLeft()
}

func (w *world) livesFor(cases []deletions) []*life {
	lives := make([]*life, 0, len(cases))
	for _, d := range cases {
		lives = append(lives, w.newLife(d))
	}
	w.Logf("%d lives", len(lives))
	return lives
}

// dieAndComeBack takes a claim to a phase, deletes things, lets the claim come to its end, gives back what was deleted, and
// ends it. between is called between any two steps, with whether the controller has to run for the next one.
func (l *life) dieAndComeBack(between func(running bool)) error {
	d := l.fate
	steps := []func() error{
		func() error { return l.begin(d.at) },
		func() error { return l.reach(d.at) },
	}
	losing := len(steps)
	for i := range 2 {
		steps = append(steps, func() error {
			if i < len(d.victims) {
				return l.lose(d.victims[i])
			}
			return nil
		})
	}
	steps = append(steps,
		func() error { return l.letOn(d) },
		func() error { return l.settle(d) },
		func() error { return l.give(l.returning()...) },
		func() error {
			if d.expected() == gone || (d.expected() == stays && slices.Contains(l.lost, theHome)) {
				return nil
			}
			return l.filled()
		},
		l.end,
	)
	var err error
	for i, step := range steps {
		if i > 0 {
			between(i != losing && i != losing+1)
		}
		if err == nil {
			err = step()
		}
	}
	return err
}

// letOn takes everything away that the test held back.
func (l *life) letOn(d deletions) error {
	l.let(everything)
	if d.at != waiting || slices.Contains(d.victims, theNamespace) || slices.Contains(d.victims, theHome) {
		return nil
	}
	for name, v := range map[string]victim{fromName: theFrom, toName: theTo} {
		if slices.Contains(d.victims, v) {
			continue
		}
		if err := l.giveSnapshot(name); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until nothing is being deleted any more and the claim has come to the end that is expected.
func (l *life) settle(d deletions) error {
	return l.until(fmt.Sprintf("the claim is %s and nothing hangs", d.expected()), func(s sight) string {
		if hanging := checkNothingTerminating(s); hanging != "" {
			return hanging
		}
		switch {
		case (slices.Contains(l.lost, theRange) || slices.Contains(l.lost, theHome)) && s.cbr != nil:
			return "the ChangedBlockRange is still there"
		case d.expected() == gone && s.claim != nil:
			return "the claim is still there"
		case d.expected() == gone:
			return checkNothingOfOurs(s)
		case d.expected() == filled, d.expected() == either && s.claim != nil && s.claim.Spec.VolumeName != "":
			return l.checkFilled(s)
		case s.claim == nil:
			return "the claim is gone"
		case s.claim.Status.Phase == corev1.ClaimBound:
			return "the claim is bound"
		case s.cbr == nil, slices.Contains(l.lost, theGrant):
			// Nobody knows whether it comes back: nothing is kept for the claim.
			return checkNothingOfOurs(s)
		}
		return ""
	})
}

// returning are the lost victims that are given back: a claim that was deleted is gone for good.
func (l *life) returning() []victim {
	if slices.Contains(l.lost, theNamespace) || slices.Contains(l.lost, theHome) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(l.lost), func(v victim) bool { return v == theClaim || v == thePod || v == thePrime })
}
