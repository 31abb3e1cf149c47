package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// recompute returns the status that follows when seen is looked at with the status that cbr has.
func recompute(seen *observation, now time.Time) v1alpha1.ChangedBlockRangeStatus {
	return computeStatus(seen, resolve(seen), attempts(seen.pods, seen.cbr.Status.RecordedPod), now)
}

func TestStatusOfAPopulatedRange(t *testing.T) {
	seen := aView(func(o *observation) {
		o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted), aClaim("b", isBound)}
		o.pods = []corev1.Pod{aPod("a", ended(t, late, threeBlocks()))}
	})
	at := metav1.NewTime(noon)
	want := v1alpha1.ChangedBlockRangeStatus{
		ObservedGeneration: 1, State: v1alpha1.StateReady, Message: "the list has 3 extents, 12 KiB changed",
		Driver: "driver", FromSnapshotHandle: "handle-from", ToSnapshotHandle: "handle-to",
		FromRestoreSizeBytes: ptr(int64(10 << 20)), ToRestoreSizeBytes: ptr(int64(10 << 20)),
		Mode: v1alpha1.ModeDelta, VolumeCapacityBytes: ptr(int64(10 << 20)), BlockMetadataType: "FIXED_LENGTH", BlockSize: ptr(int64(4096)),
		EntryCount: ptr(int64(3)), ChangedBytes: ptr(int64(12288)), Changed: "12 KiB",
		NumBytesWritten: ptr(int64(1500)), ListSize: "1.5 KiB", ListDigest: "sha256:abc", PopulatedClaims: 2,
		Conditions: []metav1.Condition{
			{Type: "SnapshotsResolved", Status: metav1.ConditionTrue, ObservedGeneration: 1, LastTransitionTime: at, Reason: "Resolved",
				Message: `the changes from VolumeSnapshot "from" to "to" can be listed by driver driver`},
			{Type: "Ready", Status: metav1.ConditionTrue, ObservedGeneration: 1, LastTransitionTime: at, Reason: "Populated",
				Message: "the list has 3 extents, 12 KiB changed"},
		},
	}
	got := recompute(seen, noon)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}

	t.Run("stays when the pod is gone", func(t *testing.T) {
		seen.cbr.Status, seen.pods = got, nil
		seen.claims[0].Status.Phase = corev1.ClaimBound // or it would be no longer counted
		if diff := cmp.Diff(want, recompute(seen, late)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("stays when the base snapshot is gone", func(t *testing.T) {
		gone(seen.from)
		after := recompute(seen, late)
		if after.State != v1alpha1.StateReady || after.ToSnapshotHandle != "handle-to" || *after.EntryCount != 3 {
			t.Errorf("the list was forgotten: %+v", after)
		}
		if meta.IsStatusConditionTrue(after.Conditions, v1alpha1.ConditionSnapshotsResolved) {
			t.Error("SnapshotsResolved is still True")
		}
		if want := `claim "a" cannot be populated: VolumeSnapshot "from" does not exist`; !strings.Contains(after.Message, want) {
			t.Errorf("message %q does not say …%s…", after.Message, want)
		}
	})
	t.Run("goes when another snapshot takes the name", func(t *testing.T) {
		seen.from = aSnapshot("from", func(s *snapshots.Snapshot) { s.Content.Status.SnapshotHandle = ptr("another") })
		// The pod that wrote the old list may still be there.
		seen.pods = []corev1.Pod{aPod("a", ended(t, late, threeBlocks()), isRecorded)}
		after := recompute(seen, late)
		if after.EntryCount != nil || after.Changed != "" || after.ListDigest != "" || after.State == v1alpha1.StateReady {
			t.Errorf("figures of another list are left: %+v", after)
		}
		resolved := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionSnapshotsResolved)
		if !resolved.LastTransitionTime.Equal(ptr(metav1.NewTime(late))) {
			t.Errorf("SnapshotsResolved does not show that something changed: %v", resolved.LastTransitionTime)
		}
		seen.cbr.Status = after
		if again := recompute(seen, late); again.State == v1alpha1.StateReady || again.EntryCount != nil {
			t.Errorf("the old list came back: %+v", again)
		}
		// Nobody had looked at its end, as when the controller was down meanwhile.
		seen.pods = []corev1.Pod{aPod("a", ended(t, late, threeBlocks()))}
		tries := attempts(seen.pods, nil)
		after = computeStatus(seen, resolve(seen), tries, late)
		if after.State == v1alpha1.StateReady || after.EntryCount != nil || after.ListDigest != "" {
			t.Errorf("the old list became the new one's: %+v", after)
		}
		if pod := recordedPod(seen.cbr, &after, tries); pod != nil {
			t.Errorf("the status claims to have the result of %+v", pod)
		}
	})
}

// TestStates looks at a life in steps; the status of each is the memory of the next.
func TestStates(t *testing.T) {
	streamFailed := outcome.Result{Reason: outcome.StreamFailed, Message: "cut"}
	volumeFull := outcome.Result{Reason: outcome.VolumeFull, Message: "make it larger"}
	withClaims := func(claims ...corev1.PersistentVolumeClaim) func(*observation) {
		return func(o *observation) { o.claims = claims }
	}
	withPods := func(pods ...corev1.Pod) func(*observation) {
		return func(o *observation) { o.pods = pods }
	}
	type step struct {
		change func(*observation)
		state  v1alpha1.State
		reason string
		says   string
	}
	tests := map[string][]step{
		"waits for snapshots, then for a claim, which waits for its consumer": {
			{func(o *observation) { gone(o.from) }, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound, `"from" does not exist`},
			{func(o *observation) { o.from = aSnapshot("from") }, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim, "create a PersistentVolumeClaim"},
			{withClaims(aClaim("a")), v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim, `claim "a" has not been started`},
			{withClaims(aClaim("a", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, "being provisioned"},
			{func(o *observation) { o.provisioned = map[types.UID]bool{"uid-a": true} }, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, `"a" waits for its turn`},
			{withPods(aPod("a")), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, `"a" is being populated`},
			{withPods(aPod("a", ended(t, late, threeBlocks()))), v1alpha1.StateReady, v1alpha1.ReasonPopulated, "3 extents"},
		},
		"a class that is part of Kubernetes": {
			{func(o *observation) {
				o.claims, o.intree = []corev1.PersistentVolumeClaim{aClaim("a")}, map[types.UID]string{"uid-a": "kubernetes.io/no-provisioner"}
			}, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim, `"standard" has the provisioner kubernetes.io/no-provisioner`},
		},
		"waits for a default class": {
			{withClaims(aClaim("a", isStarted, withoutClass)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, "no StorageClass"},
			{withClaims(aClaim("a", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, "being provisioned"},
		},
		"a claim with another volume, and one that is created in its place": {
			{withClaims(aClaim("a", isAstray)), v1alpha1.StatePending, v1alpha1.ReasonBoundToOtherVolume, `claim "a" is not populated: it is bound to volume "pv-a"`},
			{func(o *observation) { gone(o.from) }, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound, `claim "a" is not populated`},
			{func(o *observation) { o.from = aSnapshot("from") }, v1alpha1.StatePending, v1alpha1.ReasonBoundToOtherVolume, ""},
			{withClaims(aClaim("a", isAstray), aClaim("b")), v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim, `claim "a" is not populated`},
			{withPods(aPod("b", ended(t, late, threeBlocks()))), v1alpha1.StateReady, v1alpha1.ReasonPopulated, `3 extents, 12 KiB changed; claim "a" is not populated`},
			{func(o *observation) { o.claims, o.pods = []corev1.PersistentVolumeClaim{aClaim("b", isBound)}, nil }, v1alpha1.StateReady, v1alpha1.ReasonPopulated, ""},
		},
		"a claim that was bound to another volume while its list was written": {
			{withClaims(aClaim("a", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{func(o *observation) {
				o.claims, o.taken = []corev1.PersistentVolumeClaim{aClaim("a", isStarted, isBound)}, map[types.UID]bool{"uid-a": true}
			}, v1alpha1.StatePending, v1alpha1.ReasonBoundToOtherVolume, `claim "a" is not populated`},
		},
		"wrong snapshots fail at once": {
			{func(o *observation) { o.from.Content.Spec.Driver = "other" }, v1alpha1.StateFailed, v1alpha1.ReasonDriverMismatch, "other"},
		},
		"a failed stream is tried again until it works": {
			{withClaims(aClaim("a", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{withPods(aPod("a", ended(t, late, streamFailed))), v1alpha1.StatePopulating, v1alpha1.ReasonStreamFailed, "cut; it is tried again"},
			{withPods(aPod("a", ended(t, late, streamFailed), isRecorded)), v1alpha1.StatePopulating, v1alpha1.ReasonStreamFailed, "cut; it is tried again"},
			{withPods(), v1alpha1.StatePopulating, v1alpha1.ReasonStreamFailed, "cut; it is tried again"},
			{withPods(aPod("a")), v1alpha1.StatePopulating, v1alpha1.ReasonStreamFailed, "cut; it is tried again"},
			{withPods(aPod("a", ended(t, late, threeBlocks()))), v1alpha1.StateReady, v1alpha1.ReasonPopulated, "3 extents"},
		},
		"a failed stream is forgotten with the claim": {
			{withClaims(aClaim("a", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{withPods(aPod("a", ended(t, late, streamFailed))), v1alpha1.StatePopulating, v1alpha1.ReasonStreamFailed, ""},
			{func(o *observation) { o.claims, o.pods = nil, nil }, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim, "create a PersistentVolumeClaim"},
		},
		"a terminal failure stays until a new attempt": {
			{withClaims(aClaim("small", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{withPods(aPod("small", ended(t, late, volumeFull))), v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, "make it larger"},
			{withPods(), v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, "make it larger"},
			{withClaims(aClaim("large", isStarted)), v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, "make it larger"},
			{withPods(aPod("large")), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, `"large" is being populated`},
			{withPods(aPod("large", ended(t, late, threeBlocks()))), v1alpha1.StateReady, v1alpha1.ReasonPopulated, "3 extents"},
		},
		"a terminal failure outlives its pod and the snapshots": {
			{withClaims(aClaim("small", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{withPods(aPod("small", ended(t, late, volumeFull))), v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, "make it larger"},
			{func(o *observation) { o.pods, o.failures = nil, failuresOf(o, volumeFull) }, v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, "make it larger"},
			{func(o *observation) { gone(o.from) }, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound, `"from" does not exist`},
			{func(o *observation) { o.from = aSnapshot("from") }, v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, "make it larger"},
			{func(o *observation) { gone(o.from) }, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound, ""},
			{func(o *observation) {
				o.from = aSnapshot("from", func(s *snapshots.Snapshot) { s.Content.Status.SnapshotHandle = ptr("another") })
			}, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, "being provisioned"},
		},
		"the failure of another ChangedBlockRange of that name is not this one's": {
			{withClaims(aClaim("a", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{func(o *observation) {
				o.failures = failuresOf(o, volumeFull)
				o.failures[0].SourceUID = "before"
			}, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, "being provisioned"},
		},
		"the last of two attempts counts": {
			{withClaims(aClaim("a", isStarted), aClaim("b", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{withPods(aPod("a", ended(t, noon, volumeFull)), aPod("b", ended(t, late, threeBlocks()))), v1alpha1.StateReady, v1alpha1.ReasonPopulated, ""},
		},
		"the last of two attempts counts, also if it failed": {
			{withPods(aPod("a", ended(t, late, volumeFull)), aPod("b", ended(t, noon, threeBlocks()))), v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, ""},
		},
		"the last of two attempts counts, also if it was lost with its node": {
			{withClaims(aClaim("a", isStarted), aClaim("b", isStarted)), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{withPods(aPod("a", ended(t, noon.Add(time.Hour), volumeFull))), v1alpha1.StateFailed, v1alpha1.ReasonVolumeFull, ""},
			{withPods(aPod("a", ended(t, noon.Add(time.Hour), volumeFull), isRecorded), aPod("b", lostAt(late))), v1alpha1.StatePopulating, v1alpha1.ReasonEvicted, "it is tried again"},
		},
		"a written list outlives the next claim's wait": {
			{withPods(aPod("a", ended(t, late, threeBlocks()))), v1alpha1.StateReady, v1alpha1.ReasonPopulated, ""},
			{withPods(aPod("b")), v1alpha1.StateReady, v1alpha1.ReasonPopulated, ""},
			{func(o *observation) { o.services["driver"] = false }, v1alpha1.StateReady, v1alpha1.ReasonPopulated, ""},
		},
		"a pod that gets nowhere says why, and no more once it runs": {
			{withPods(aPod("a", func(p *corev1.Pod) {
				p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}
			})), v1alpha1.StatePopulating, v1alpha1.ReasonImageUnavailable, "cannot be pulled"},
			{withPods(aPod("a")), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, "is being populated"},
		},
		"a pod that runs is not disturbed by a snapshot that goes": {
			{withPods(aPod("a")), v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
			{func(o *observation) { gone(o.from) }, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, ""},
		},
		"the driver's SnapshotNotFound is told from a missing VolumeSnapshot": {
			{func(o *observation) { gone(o.to) }, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound, `"to" does not exist`},
			{func(o *observation) { o.to = aSnapshot("to") }, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim, ""},
			{withPods(aPod("a", ended(t, late, outcome.Result{Reason: outcome.SnapshotNotFound, Message: "unknown to the driver"}))),
				v1alpha1.StateFailed, v1alpha1.ReasonSnapshotNotFound, "unknown to the driver"},
			{withPods(), v1alpha1.StateFailed, v1alpha1.ReasonSnapshotNotFound, "unknown to the driver"},
		},
		"a fallback is said": {
			{withPods(aPod("a", ended(t, late, outcome.Result{Reason: outcome.Populated, Mode: "Allocated", EntryCount: 1, ChangedBytes: 4096, Fallback: "the driver answered Unimplemented"}))),
				v1alpha1.StateReady, v1alpha1.ReasonPopulated, "1 extent, 4 KiB allocated; the delta is unavailable because the driver answered Unimplemented; the list holds all allocated"},
		},
		"a deletion that waits says for what": {
			{func(o *observation) {
				isDeleting(o.cbr)
				o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}
			}, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating, `goes as soon as claim "a" is populated`},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			seen := aView()
			for i, s := range steps {
				s.change(seen)
				got := recompute(seen, noon)
				ready := meta.FindStatusCondition(got.Conditions, v1alpha1.ConditionReady)
				if got.State != s.state || ready.Reason != s.reason || !strings.Contains(got.Message, s.says) {
					t.Fatalf("step %d: got %s, %s: %s\nwant %s, %s: …%s…", i+1, got.State, ready.Reason, got.Message, s.state, s.reason, s.says)
				}
				if (ready.Status == metav1.ConditionTrue) != (got.State == v1alpha1.StateReady) {
					t.Fatalf("step %d: state %s with Ready=%s", i+1, got.State, ready.Status)
				}
				seen.cbr.Status = got
				if diff := cmp.Diff(got, recompute(seen, late)); diff != "" {
					t.Fatalf("step %d: looking again changed the status:\n%s", i+1, diff)
				}
			}
		})
	}
}

// failuresOf returns a failure that is about the snapshots as seen has resolved them.
func failuresOf(seen *observation, result outcome.Result) []outcome.Failure {
	asked := &v1alpha1.ChangedBlockRange{Spec: seen.cbr.Spec, Status: seen.cbr.Status}
	return []outcome.Failure{{
		SourceUID: string(seen.cbr.UID), Source: asked.ListFingerprint(), Reason: result.Reason, Message: result.Message, Attempt: 1, At: late,
	}}
}

func TestMustHold(t *testing.T) {
	recordedFailure := func(reason outcome.Reason) corev1.Pod {
		return aPod("a", ended(t, late, outcome.Result{Reason: reason, Message: "m"}), isRecorded)
	}
	tests := map[string]struct {
		change   func(*observation)
		live     bool // whether a ChangedBlockRange that nobody deletes is held
		deleting bool // whether one that is being deleted is held
	}{
		"nothing":                 {func(*observation) {}, false, false},
		"a claim that waits":      {func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a")} }, true, false},
		"a claim that is bound":   {func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isBound)} }, false, false},
		"a claim astray":          {func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isAstray)} }, false, false},
		"a claim just being let":  {func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isBound, isStarted)} }, true, true},
		"a claim that is started": {func(o *observation) { o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)} }, true, true},
		"a claim that is given up": {func(o *observation) {
			o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted, func(c *corev1.PersistentVolumeClaim) { isDeleting(c) })}
		}, true, true},
		"a claim that was never started and is given up": {func(o *observation) {
			o.claims = []corev1.PersistentVolumeClaim{aClaim("a", func(c *corev1.PersistentVolumeClaim) { isDeleting(c) })}
		}, false, false},
		"a pod that runs":         {func(o *observation) { o.pods = []corev1.Pod{aPod("a")} }, true, true},
		"a result not recorded":   {func(o *observation) { o.pods = []corev1.Pod{aPod("a", ended(t, late, threeBlocks()))} }, true, true},
		"a pod kept for its logs": {func(o *observation) { o.pods = []corev1.Pod{recordedFailure(outcome.VolumeFull)} }, false, false},
		"a claim that will not fit": {func(o *observation) {
			o.claims, o.pods = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}, []corev1.Pod{recordedFailure(outcome.VolumeFull)}
		}, true, false},
		"a claim that is tried again": {func(o *observation) {
			o.claims, o.pods = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}, []corev1.Pod{recordedFailure(outcome.StreamFailed)}
		}, true, true},
		"a claim that would be tried again, if the snapshot were there": {func(o *observation) {
			o.claims, o.pods = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}, []corev1.Pod{recordedFailure(outcome.StreamFailed)}
			gone(o.from)
		}, true, false},
		"a claim that lost its storage class before its pod": {func(o *observation) {
			o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}
			o.classless = map[types.UID]bool{o.claims[0].UID: true}
		}, true, false},
		"a claim that lost its storage class after its list was written": {func(o *observation) {
			pod := aPod("a", ended(t, late, threeBlocks()))
			pod.Annotations[v1alpha1.AnnotationResultRecorded] = "true"
			o.claims, o.pods = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}, []corev1.Pod{pod}
			o.classless = map[types.UID]bool{o.claims[0].UID: true}
		}, true, true},
		"a claim that lost its snapshot before its pod": {func(o *observation) {
			o.claims = []corev1.PersistentVolumeClaim{aClaim("a", isStarted)}
			gone(o.from)
		}, true, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, deleting := range []bool{false, true} {
				seen := aView(test.change)
				want := test.live
				if deleting {
					isDeleting(seen.cbr)
					want = test.deleting
				}
				if got := mustHold(seen, resolve(seen), attempts(seen.pods, seen.cbr.Status.RecordedPod)); got != want {
					t.Errorf("deleting %t: got %t, want %t", deleting, got, want)
				}
			}
		})
	}
}
