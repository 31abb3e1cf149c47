package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// statusInterval is the shortest time between two writes of a status of which the second says nothing that anybody waits for.
// With many claims of one ChangedBlockRange the count and the messages change many times a second.
const statusInterval = time.Second

// writeLog remembers when each status was last written. It is safe for concurrent use.
type writeLog struct {
	mu   sync.Mutex
	last map[types.NamespacedName]time.Time
}

func newWriteLog() *writeLog { return &writeLog{last: map[types.NamespacedName]time.Time{}} }

func (l *writeLog) wrote(cbr types.NamespacedName, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last[cbr] = at
}

func (l *writeLog) forget(cbr types.NamespacedName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.last, cbr)
}

// wait returns how long the next write that can wait has to.
func (l *writeLog) wait(cbr types.NamespacedName, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, ok := l.last[cbr]
	if !ok {
		return 0
	}
	// A clock that was set back must not keep a status from being written.
	return min(max(statusInterval-now.Sub(last), 0), statusInterval)
}

// canWait reports whether a change of the status may be written a moment later: the messages, the count of claims, the progress,
// and that a population has begun, which its end may overtake. What decides about claims cannot wait, nor can results: the
// status is the only memory of a pod once that is recorded.
func canWait(before, after *v1alpha1.ChangedBlockRangeStatus) bool {
	return equality.Semantic.DeepEqual(withoutDetails(before), withoutDetails(after))
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
