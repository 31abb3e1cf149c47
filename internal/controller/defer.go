package controller

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const (
	// statusInterval is the shortest time between two writes of a status of which the second says nothing that anybody waits for.
	// With many claims of one ChangedBlockRange the count and the messages change many times a second.
	statusInterval = time.Second
	// beginsAfter is how long it is left untold that a population begins, and how far it is: most have ended by then, and what
	// they end with is written anyway.
	beginsAfter = 3 * time.Second
	// proceedsAfter is the same for the step that a population has come to, when it is told that it has begun.
	proceedsAfter = 10 * time.Second
)

// writeLog remembers the writes to each ChangedBlockRange. It is safe for concurrent use.
type writeLog struct {
	mu     sync.Mutex
	ranges map[types.NamespacedName]*rangeWrites
}

type rangeWrites struct {
	// replaced are the versions that our writes have replaced since the cache last had the newest one.
	replaced []string
	// status is when the status was last written.
	status time.Time
	// waits is since when a status waits to be written; zero: none does.
	waits time.Time
}

func newWriteLog() *writeLog { return &writeLog{ranges: map[types.NamespacedName]*rangeWrites{}} }

// of returns what is known about a ChangedBlockRange. The caller holds mu.
func (l *writeLog) of(cbr types.NamespacedName) *rangeWrites {
	if l.ranges[cbr] == nil {
		l.ranges[cbr] = &rangeWrites{}
	}
	return l.ranges[cbr]
}

func (l *writeLog) forget(cbr types.NamespacedName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ranges, cbr)
}

// behind reports whether the cache still has a version that we have replaced: every write that follows from it would be refused.
// The version that replaced it wakes us.
func (l *writeLog) behind(cbr *v1alpha1.ChangedBlockRange) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of(client.ObjectKeyFromObject(cbr))
	if slices.Contains(w.replaced, cbr.ResourceVersion) {
		return true
	}
	w.replaced = nil
	return false
}

// wrote takes note that a write made after of before. One that changed nothing made no new version, and none would wake us.
func (l *writeLog) wrote(before, after *v1alpha1.ChangedBlockRange) {
	if before.ResourceVersion == after.ResourceVersion {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of(client.ObjectKeyFromObject(after))
	w.replaced = append(w.replaced, before.ResourceVersion)
}

// told takes note that the status in the API is the one that was computed, which was written just now or was there before.
func (l *writeLog) told(cbr types.NamespacedName, written bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of(cbr)
	w.waits = time.Time{}
	if written {
		w.status = now
	}
}

// wait returns how long a status that can wait has to, from when that was asked first if patience is more than 0, else from the last
// write.
func (l *writeLog) wait(cbr types.NamespacedName, patience time.Duration, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of(cbr)
	if w.waits.IsZero() {
		w.waits = now
	}
	since, atMost := w.status, statusInterval
	if patience > 0 {
		since, atMost = w.waits, patience
	}
	if since.IsZero() {
		return 0
	}
	// A clock that was set back must not keep a status from being written.
	return min(max(atMost-now.Sub(since), 0), atMost)
}

// canWait reports whether a change of the status may be written a moment later: the messages, the count of claims, the progress,
// and that a population has begun, which its end may overtake. What decides about claims cannot wait, nor can results: the
// status is the only memory of a pod once that is recorded.
func canWait(before, after *v1alpha1.ChangedBlockRangeStatus) bool {
	return equality.Semantic.DeepEqual(withoutDetails(before), withoutDetails(after))
}

// patience returns how long a change that can wait may, because the end of a population takes it back: that there is a claim, how
// far the cluster is with it, and the first progress. Of any other change it returns 0.
func patience(before, after *v1alpha1.ChangedBlockRangeStatus) time.Duration {
	ready := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionReady)
	switch {
	case before.Progress == nil && after.Progress != nil:
		return beginsAfter
	case before.Progress != nil || !begins(ready.Reason) || (before.State == after.State && before.Message == after.Message):
		return 0
	case before.State == v1alpha1.StatePopulating:
		return proceedsAfter
	}
	return beginsAfter
}

func withoutDetails(status *v1alpha1.ChangedBlockRangeStatus) *v1alpha1.ChangedBlockRangeStatus {
	s := status.DeepCopy()
	s.Message, s.PopulatedClaims, s.Progress = "", 0, nil
	for i := range s.Conditions {
		s.Conditions[i].Message = ""
	}
	ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
	if ready != nil && begins(ready.Reason) {
		ready.Reason, s.State = v1alpha1.ReasonWaitingForClaim, v1alpha1.StatePending
	}
	return s
}
