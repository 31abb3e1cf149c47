package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/internal/notice"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// tape records events as "kind reason object".
type tape struct{ events, notes []string }

func (l *tape) Eventf(regarding, _ runtime.Object, kind, reason, _, note string, args ...any) {
	l.events = append(l.events, fmt.Sprintf("%s %s %s", kind, reason, regarding.(metav1.Object).GetName()))
	l.notes = append(l.notes, fmt.Sprintf(note, args...))
}

func (l *tape) take() []string {
	events := l.events
	l.events = nil
	return events
}

func TestEventsTellTransitionsOnce(t *testing.T) {
	events := &tape{}
	announce := announcer{recorder: events, told: map[types.NamespacedName]map[types.UID]string{}}
	seen := aView(func(o *observation) {
		gone(o.from)
		o.claims = []corev1.PersistentVolumeClaim{aClaim("a")}
	})
	streamFailed := ended(t, noon, outcome.Result{Reason: outcome.StreamFailed, Message: "cut"})
	fallback := outcome.Result{Reason: outcome.Populated, Mode: "Allocated", Fallback: "the driver answered Unimplemented"}
	steps := []struct {
		name   string
		change func()
		want   []string
	}{
		{"base missing", func() {}, []string{"Warning SnapshotNotFound cbr", "Warning SnapshotNotFound a"}},
		{"one more claim", func() { seen.claims = append(seen.claims, aClaim("b")) }, []string{"Warning SnapshotNotFound b"}},
		{"base comes, not ready", func() {
			seen.from = aSnapshot("from", func(s *snapshots.Snapshot) { s.Object.Status.ReadyToUse = nil })
		}, []string{"Normal SnapshotNotReady cbr", "Normal SnapshotNotReady a", "Normal SnapshotNotReady b"}},
		{"base ready", func() { seen.from = aSnapshot("from") }, []string{"Normal Resolved cbr"}},
		{"population starts", func() { seen.pods = []corev1.Pod{aPod("a")} }, nil},
		{"it fails", func() { seen.pods = []corev1.Pod{aPod("a", streamFailed)} }, []string{"Warning StreamFailed cbr", "Warning StreamFailed a"}},
		{"it fails again", func() {
			seen.pods = []corev1.Pod{aPod("a", streamFailed, createdAt(late))}
		}, nil},
		{"it succeeds with a fallback", func() {
			seen.pods = []corev1.Pod{aPod("a", ended(t, late, fallback))}
		}, []string{"Normal Populated cbr", "Warning UsedAllocated cbr", "Warning UsedAllocated a"}},
		{"the next claim gets a delta", func() {
			seen.pods = []corev1.Pod{aPod("b", ended(t, late, threeBlocks()))}
		}, nil},
		{"and the one after that not", func() {
			seen.claims = append(seen.claims, aClaim("c"))
			seen.pods = []corev1.Pod{aPod("c", ended(t, late, fallback))}
		}, []string{"Warning UsedAllocated cbr", "Warning UsedAllocated c"}},
		{"the other fails", func() {
			seen.pods = []corev1.Pod{aPod("b", ended(t, late, outcome.Result{Reason: outcome.VolumeFull, Message: strings.Repeat("ä", notice.MaxBytes)}))}
		}, []string{"Warning VolumeFull cbr", "Warning VolumeFull b"}},
	}
	for _, step := range steps {
		step.change()
		found, tries := resolve(seen), attempts(seen.pods, seen.cbr.Status.RecordedPod)
		before := seen.cbr.Status
		seen.cbr.Status = recompute(seen, noon)
		for range 2 { // a second look says nothing new
			announce.aboutRange(transitions(seen.cbr, &before, &seen.cbr.Status))
			announce.aboutClaims(seen, claimEvents(seen, found, tries, &seen.cbr.Status))
			before = seen.cbr.Status
		}
		if diff := cmp.Diff(step.want, events.take()); diff != "" {
			t.Errorf("%s:\n%s", step.name, diff)
		}
	}
	if want := "the delta is unavailable because the driver answered Unimplemented; the list holds all allocated blocks instead, as whenDeltaUnavailable asks"; !slices.Contains(events.notes, want) {
		t.Errorf("no note says %q:\n%s", want, strings.Join(events.notes, "\n"))
	}
	for _, note := range events.notes {
		if len(note) > notice.MaxBytes {
			t.Errorf("a note has %d bytes; the API takes %d", len(note), notice.MaxBytes)
		}
	}

	t.Run("a list is no news to who waits for it on the claim", func(t *testing.T) {
		seen := aView()
		before := recompute(seen, noon)
		seen.cbr.Status, seen.pods = before, []corev1.Pod{aPod("a", ended(t, late, threeBlocks()))}
		after := recompute(seen, noon)
		if all := transitions(seen.cbr, &before, &after); len(all) > 0 {
			t.Errorf("events %v", all)
		}
	})
	t.Run("claims that are gone are forgotten", func(t *testing.T) {
		seen.claims = nil
		announce.aboutClaims(seen, nil)
		if len(announce.told) != 0 {
			t.Errorf("still remembered: %v", announce.told)
		}
	})
}
