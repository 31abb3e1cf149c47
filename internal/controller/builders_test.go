package controller

import (
	"testing"
	"time"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// The times of the pure tests.
var (
	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	late = time.Date(2026, 3, 1, 14, 0, 0, 0, time.UTC)
)

func ptr[T any](v T) *T { return &v }

// aRange returns the ChangedBlockRange from snapshot "from" to snapshot "to".
func aRange(change ...func(*v1alpha1.ChangedBlockRange)) *v1alpha1.ChangedBlockRange {
	cbr := &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "cbr", UID: "cbr-uid", Generation: 1},
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: "from", ToVolumeSnapshotName: "to", Format: v1alpha1.FormatJSON},
	}
	for _, c := range change {
		c(cbr)
	}
	return cbr
}

// aSnapshot returns a ready snapshot of volume "volume" by driver "driver" with the handle "handle-<name>".
func aSnapshot(name string, change ...func(*snapshots.Snapshot)) *snapshots.Snapshot {
	s := &snapshots.Snapshot{
		Name: name,
		Object: &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, UID: types.UID("uid-" + name)},
			Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr("content-" + name), ReadyToUse: ptr(true)},
		},
		Content: &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{Name: "content-" + name},
			Spec: snapshotv1.VolumeSnapshotContentSpec{
				Driver:            "driver",
				DeletionPolicy:    snapshotv1.VolumeSnapshotContentDelete,
				Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr("volume")},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: "app", Name: name, UID: types.UID("uid-" + name)},
			},
			Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr("handle-" + name), RestoreSize: ptr(int64(10 << 20))},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func aService() *metadatav1.SnapshotMetadataService {
	return &metadatav1.SnapshotMetadataService{ObjectMeta: metav1.ObjectMeta{Name: "driver"}}
}

func gone(s *snapshots.Snapshot) { s.Object, s.Content = nil, nil }

// aView returns an observation in which everything is in place.
func aView(change ...func(*observation)) *observation {
	seen := &observation{cbr: aRange(), from: aSnapshot("from"), to: aSnapshot("to"), services: map[string]bool{"driver": true}}
	for _, c := range change {
		c(seen)
	}
	return seen
}

func aClaim(name string, change ...func(*corev1.PersistentVolumeClaim)) corev1.PersistentVolumeClaim {
	claim := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, UID: types.UID("uid-" + name)}}
	claim.Status.Phase, claim.Spec.StorageClassName = corev1.ClaimPending, ptr("standard")
	for _, c := range change {
		c(&claim)
	}
	return claim
}

func isStarted(c *corev1.PersistentVolumeClaim) {
	c.Finalizers = append(c.Finalizers, v1alpha1.FinalizerClaim)
}

// refersTo makes the claim one that the reconciler finds by itself.
func refersTo(cbr string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: cbr}
	}
}

func withoutClass(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }

func isBound(c *corev1.PersistentVolumeClaim) {
	c.Spec.VolumeName, c.Status.Phase = "pv-"+c.Name, corev1.ClaimBound
}

// isAstray is a claim that was bound to a volume which was not filled for it.
func isAstray(c *corev1.PersistentVolumeClaim) {
	isBound(c)
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, v1alpha1.AnnotationOtherVolume, c.Spec.VolumeName)
}

func isDeleting(object metav1.Object) { object.SetDeletionTimestamp(&metav1.Time{Time: noon}) }

// aPod returns a running populator pod for a claim, created at noon.
func aPod(claim string, change ...func(*corev1.Pod)) corev1.Pod {
	pod := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "cbt-populator", Name: "populate-" + claim, UID: types.UID("pod-" + claim), CreationTimestamp: metav1.NewTime(noon),
			Labels: map[string]string{
				v1alpha1.LabelClaimUID: "uid-" + claim, v1alpha1.LabelChangedBlockRangeUID: "cbr-uid",
				v1alpha1.LabelComponent: v1alpha1.ComponentPopulator,
			},
			Annotations: map[string]string{
				v1alpha1.AnnotationClaimNamespace: "app", v1alpha1.AnnotationClaimName: claim, v1alpha1.AnnotationChangedBlockRange: "app/cbr",
				v1alpha1.AnnotationSource: fingerprint(aRange(), &v1alpha1.ChangedBlockRangeStatus{
					Driver: "driver", FromSnapshotHandle: "handle-from", ToSnapshotHandle: "handle-to",
				}),
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
			Name: v1alpha1.ContainerPopulate, Image: "registry.test/populator", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}}},
	}
	for _, c := range change {
		c(&pod)
	}
	return pod
}

func createdAt(at time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(at) }
}

func isRecorded(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationResultRecorded] = "true" }

func isMarked(p *corev1.Pod) bool { return p.Annotations[v1alpha1.AnnotationResultRecorded] == "true" }

// died ends the pod without a result.
func died(state corev1.ContainerStateTerminated) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodFailed
		state.FinishedAt = metav1.NewTime(late)
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &state}
	}
}

// lostAt ends the pod as one whose node was lost: of its container, nothing is known any more.
func lostAt(at time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodFailed
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(at)}}
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown"}}
	}
}

// ended ends the pod with a result, as the populator does.
func ended(t *testing.T, at time.Time, result outcome.Result) func(*corev1.Pod) {
	t.Helper()
	message, err := result.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodFailed
		if result.Reason == outcome.Populated {
			p.Status.Phase = corev1.PodSucceeded
		}
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: int32(result.Reason.ExitCode()), Message: string(message), FinishedAt: metav1.NewTime(at),
		}}
	}
}

// threeBlocks is the result of a delta with three extents of 4 KiB.
func threeBlocks() outcome.Result {
	return outcome.Result{
		Reason: outcome.Populated, Mode: "Delta", VolumeCapacityBytes: 10 << 20, BlockMetadataType: "FIXED_LENGTH", BlockSize: 4096,
		EntryCount: 3, ChangedBytes: 12288, NumBytesWritten: 1500, ListDigest: "sha256:abc",
	}
}
