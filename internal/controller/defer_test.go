package controller

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// TestWritesOfAPopulation follows a claim from its creation to its end, which takes two seconds or four.
func TestWritesOfAPopulation(t *testing.T) {
	for name, test := range map[string]struct {
		takes time.Duration
		// running is what is written when the populator has run for that long.
		running []string
	}{
		"a short one": {2 * time.Second, nil},
		"a long one":  {4 * time.Second, []string{"range/status"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.wrote("without a claim", "range/status")
			d.wrote("once more")
			d.now = d.now.Add(time.Hour)

			claim := aClaim("a", refersTo("cbr"))
			d.create(&claim)
			d.wrote("a claim waits", "range")
			d.update(&claim, func() { isStarted(&claim) })
			pod := aPod("a")
			d.create(&pod)
			if wait := d.wrote("the populator runs"); wait != beginsAfter {
				t.Errorf("that it runs is told after %v, want %v", wait, beginsAfter)
			}
			d.now = d.now.Add(test.takes)
			d.wrote("it still runs", test.running...)
			if told := d.cbr().Status.State == v1alpha1.StatePopulating; told != (test.running != nil) {
				t.Errorf("after %v the state is %s", test.takes, d.cbr().Status.State)
			}
			d.end(&pod, threeBlocks())
			d.wrote("it has ended", "range/status")
			if d.cbr().Status.State != v1alpha1.StateReady || d.cbr().Status.PopulatedClaims != 1 {
				t.Errorf("the result had to wait: %+v", d.cbr().Status)
			}
			d.bind(&claim)
			d.remove(&pod)
			d.now = d.now.Add(time.Minute)
			d.wrote("it is bound")
			d.update(&claim, func() { claim.Finalizers = nil })
			d.wrote("it is released", "range")
		})
	}
}

// TestDetailsAreWrittenInTime changes the count of claims many times a second.
func TestDetailsAreWrittenInTime(t *testing.T) {
	d := newDesk(t)
	d.wrote("at first", "range/status")
	pod := aPod("a", ended(t, late, threeBlocks()))
	d.create(&pod)
	d.wrote("there is a list", "range", "range/status")
	d.wrote("and nothing more to do", "range")
	for i, name := range []string{"a", "b", "c"} {
		claim := aClaim(name, refersTo("cbr"), isBound)
		d.create(&claim)
		if wait := d.wrote("one more claim"); wait != statusInterval-time.Duration(i)*statusInterval/4 {
			t.Errorf("claim %s waits for %v", name, wait)
		}
		d.now = d.now.Add(statusInterval / 4)
	}
	d.now = d.now.Add(statusInterval / 4)
	d.wrote("a second has passed", "range/status")
	if n := d.cbr().Status.PopulatedClaims; n != 3 {
		t.Errorf("%d claims are counted, want 3", n)
	}
}

// TestDeletionIsExplainedInTime: who deletes a ChangedBlockRange waits for an answer.
func TestDeletionIsExplainedInTime(t *testing.T) {
	claim, pod := aClaim("a", refersTo("cbr"), isStarted), aPod("a")
	d := newDesk(t, &claim, &pod)
	d.wrote("at first", "range", "range/status")
	d.remove(d.cbr())
	d.now = d.now.Add(statusInterval)
	d.wrote("it is being deleted", "range/status")
}

// TestCacheThatLagsBehind shows the reconciler versions that it has replaced itself, whose writes would all be refused.
func TestCacheThatLagsBehind(t *testing.T) {
	claim := aClaim("a", refersTo("cbr"))
	d := newDesk(t, &claim)
	d.remember()
	d.wrote("a claim waits", "range", "range/status")
	d.lags = true
	d.wrote("the cache has the first version")
	d.lags = false
	pod := aPod("a", ended(t, late, outcome.Result{Reason: outcome.VolumeFull, Message: "m"}))
	d.create(&pod)
	d.wrote("the cache has the newest version", "range/status", "pod")

	t.Run("a write that changed nothing replaces nothing", func(t *testing.T) {
		cbr := aRange(func(c *v1alpha1.ChangedBlockRange) { c.ResourceVersion = "7" })
		l := newWriteLog()
		l.wrote(cbr, cbr.DeepCopy())
		if l.behind(cbr) {
			t.Error("nothing would ever wake the reconciler")
		}
	})
}

func TestPatience(t *testing.T) {
	waiting := recompute(aView(), noon)
	with := func(base v1alpha1.ChangedBlockRangeStatus, change func(*observation)) v1alpha1.ChangedBlockRangeStatus {
		seen := aView(change)
		seen.cbr.Status = base
		return recompute(seen, noon)
	}
	claimed := with(waiting, func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a")} })
	provisioning := with(waiting, func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)} })
	running := with(waiting, func(o *observation) { o.pods = []corev1.Pod{aPod("a")} })
	answered, ahead := running, running
	answered.Progress, ahead.Progress = &v1alpha1.PopulationProgress{Percent: 1}, &v1alpha1.PopulationProgress{Percent: 2}
	counted := running
	counted.PopulatedClaims++
	for name, test := range map[string]struct {
		before, after v1alpha1.ChangedBlockRangeStatus
		want          time.Duration
	}{
		"there is a claim":   {waiting, claimed, beginsAfter},
		"it is being filled": {waiting, running, beginsAfter},
		"the next step":      {provisioning, running, proceedsAfter},
		"it answers":         {running, answered, beginsAfter},
		"it answers soon":    {waiting, answered, beginsAfter},
		"it goes on":         {answered, ahead, 0},
		"one more claim":     {running, counted, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if !canWait(&test.before, &test.after) {
				t.Fatal("it cannot wait at all")
			}
			if got := patience(&test.before, &test.after); got != test.want {
				t.Errorf("it can wait for %v, want %v", got, test.want)
			}
		})
	}
}
