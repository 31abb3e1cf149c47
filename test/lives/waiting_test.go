package lives

import "testing"

// TestWaiting leaves one thing out and gives it once the controller has seen the rest. Nothing in the controller looks
// again by itself within minutes, so a claim that goes on was woken.
func TestWaiting(t *testing.T) {
	w := newWorld(t)
	w.startController()
	all := []victim{theNamespace, theClass, theService, theFrom, theTo, theRange, theClaim}
	var lives []*life
	for _, late := range all[1:] {
		lives = append(lives, w.newLife(deletions{at: waiting, victims: []victim{late}}))
	}
	lives = w.each(lives, func(l *life) error {
		for _, v := range all {
			if v == l.fate.victims[0] {
				continue
			}
			if err := l.give(v); err != nil {
				return err
			}
		}
		return nil
	})
	// A claim that came later and lacks nothing is filled: the controller has seen the others.
	barrier := w.newLife(deletions{at: done})
	w.each([]*life{barrier}, func(l *life) error {
		if err := l.begin(done); err != nil {
			return err
		}
		return l.filled()
	})
	for _, l := range lives {
		if s := l.look(); checkNothingOfOurs(s) != "" {
			t.Errorf("%s: it did not wait: %s", l, checkNothingOfOurs(s))
		}
	}
	w.each(append(lives, barrier), func(l *life) error {
		if err := l.give(l.fate.victims...); err != nil {
			return err
		}
		if err := l.filled(); err != nil {
			return err
		}
		return l.end()
	})
	w.checkNothingLeft()
}
