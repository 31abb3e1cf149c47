package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// driver returns a CSI driver's name that only this test uses, since metadata services have no namespace.
func (c *cluster) driver() string { return "driver." + c.namespace }

func (c *cluster) createRange(name string) *v1alpha1.ChangedBlockRange {
	c.Helper()
	cbr := &v1alpha1.ChangedBlockRange{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name}}
	cbr.Spec.FromVolumeSnapshotName, cbr.Spec.ToVolumeSnapshotName = "from", "to"
	c.create(cbr)
	return cbr
}

func (c *cluster) createSnapshot(name string) *snapshotv1.VolumeSnapshot {
	c.Helper()
	s := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name}}
	s.Spec.Source.PersistentVolumeClaimName = ptr("data")
	c.create(s)
	return s
}

// bindSnapshot plays the snapshot controller: content, handle, ready.
func (c *cluster) bindSnapshot(s *snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshotContent {
	c.Helper()
	content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content-" + string(s.UID)}}
	content.Spec = snapshotv1.VolumeSnapshotContentSpec{
		Driver: c.driver(), DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
		Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr("volume")},
		VolumeSnapshotRef: corev1.ObjectReference{Namespace: s.Namespace, Name: s.Name, UID: s.UID},
	}
	c.create(content)
	change(c, content, true, func(o *snapshotv1.VolumeSnapshotContent) {
		o.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr("handle-" + s.Name), RestoreSize: ptr(int64(1 << 20)), ReadyToUse: ptr(true)}
	})
	change(c, s, true, func(o *snapshotv1.VolumeSnapshot) {
		o.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content.Name, ReadyToUse: ptr(true)}
	})
	return content
}

func (c *cluster) createService() *metadatav1.SnapshotMetadataService {
	c.Helper()
	service := &metadatav1.SnapshotMetadataService{ObjectMeta: metav1.ObjectMeta{Name: c.driver()}}
	service.Spec = metadatav1.SnapshotMetadataServiceSpec{Audience: "audience", Address: "service.test:6443", CACert: []byte("ca")}
	c.create(service)
	c.Cleanup(func() {
		if err := c.Delete(context.Background(), service); client.IgnoreNotFound(err) != nil {
			c.Error(err)
		}
	})
	return service
}

// createResolvable creates all that a ChangedBlockRange needs.
func (c *cluster) createResolvable() {
	c.Helper()
	c.bindSnapshot(c.createSnapshot("from"))
	c.bindSnapshot(c.createSnapshot("to"))
	c.createService()
}

func (c *cluster) createClaim(name, source string) *corev1.PersistentVolumeClaim {
	c.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name}}
	claim.Spec = corev1.PersistentVolumeClaimSpec{
		AccessModes:   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:     corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")}},
		DataSourceRef: &corev1.TypedObjectReference{APIGroup: ptr(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: source},
	}
	c.create(claim)
	return claim
}

// startClaim and releaseClaim play the populator library.
func (c *cluster) startClaim(claim *corev1.PersistentVolumeClaim) {
	c.Helper()
	change(c, claim, false, func(o *corev1.PersistentVolumeClaim) { o.Finalizers = append(o.Finalizers, v1alpha1.FinalizerClaim) })
}

func (c *cluster) releaseClaim(claim *corev1.PersistentVolumeClaim) {
	c.Helper()
	change(c, claim, false, func(o *corev1.PersistentVolumeClaim) { o.Finalizers = nil })
}

// bindClaim plays the volume binder.
func (c *cluster) bindClaim(claim *corev1.PersistentVolumeClaim) {
	c.Helper()
	change(c, claim, false, func(o *corev1.PersistentVolumeClaim) { o.Spec.VolumeName = "pv-" + string(o.UID) })
	change(c, claim, true, func(o *corev1.PersistentVolumeClaim) { o.Status.Phase = corev1.ClaimBound })
}

// createPod plays the machinery, which waits until it knows what to read.
func (c *cluster) createPod(claim *corev1.PersistentVolumeClaim, cbr *v1alpha1.ChangedBlockRange) *corev1.Pod {
	c.Helper()
	c.until(cbr.Name+" may be populated", func(ctx context.Context) string {
		if err := c.Get(ctx, client.ObjectKeyFromObject(cbr), cbr); err != nil {
			return err.Error()
		}
		if !cbr.MayPopulate() {
			return fmt.Sprintf("it is %+v", cbr.Status)
		}
		return ""
	})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: populatorNamespace, GenerateName: "populate-",
		Labels: map[string]string{
			v1alpha1.LabelComponent: v1alpha1.ComponentPopulator, v1alpha1.LabelClaimUID: string(claim.UID),
			v1alpha1.LabelChangedBlockRangeUID: string(cbr.UID),
		},
		Annotations: map[string]string{
			v1alpha1.AnnotationClaimNamespace: claim.Namespace, v1alpha1.AnnotationClaimName: claim.Name,
			v1alpha1.AnnotationChangedBlockRange: cbr.Namespace + "/" + cbr.Name, v1alpha1.AnnotationSource: cbr.ListFingerprint(),
		},
	}}
	pod.Spec.Containers = []corev1.Container{{Name: v1alpha1.ContainerPopulate, Image: "registry.test/populator"}}
	c.create(pod)
	return pod
}

// endPod plays the kubelet.
func (c *cluster) endPod(pod *corev1.Pod, result outcome.Result) {
	c.Helper()
	set := ended(c.T, time.Now(), result)
	change(c, pod, true, func(o *corev1.Pod) {
		o.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: v1alpha1.ContainerPopulate}}
		set(o)
	})
}

// reaches waits for a state and a reason of Ready.
func (c *cluster) reaches(cbr *v1alpha1.ChangedBlockRange, state v1alpha1.State, reason string) {
	c.Helper()
	c.until(fmt.Sprintf("%s reaches %s, %s", cbr.Name, state, reason), func(ctx context.Context) string {
		if err := c.Get(ctx, client.ObjectKeyFromObject(cbr), cbr); err != nil {
			return err.Error()
		}
		ready := meta.FindStatusCondition(cbr.Status.Conditions, v1alpha1.ConditionReady)
		if ready == nil || cbr.Status.State != state || ready.Reason != reason {
			return fmt.Sprintf("it is %+v", cbr.Status)
		}
		return ""
	})
}

// becomes waits for anything else about an object.
func becomes[T client.Object](c *cluster, what string, object T, holds func(T) bool) {
	c.Helper()
	c.until(what, func(ctx context.Context) string {
		if err := c.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err.Error()
		}
		if holds(object) {
			return ""
		}
		return fmt.Sprintf("it is %+v", object)
	})
}

func isHeld(cbr *v1alpha1.ChangedBlockRange) bool {
	return slices.Contains(cbr.Finalizers, v1alpha1.FinalizerPopulating)
}

func (c *cluster) goes(object client.Object) {
	c.Helper()
	c.until(object.GetName()+" goes", func(ctx context.Context) string {
		if err := c.Get(ctx, client.ObjectKeyFromObject(object), object); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("it is still there: %v %v", err, object.GetFinalizers())
		}
		return ""
	})
}

// TestEachCauseWakes builds up what a population needs one by one; only watches can make the reconciler notice.
func TestEachCauseWakes(t *testing.T) {
	c := aCluster(t)
	claim := c.createClaim("early", "cbr") // before its ChangedBlockRange
	cbr := c.createRange("cbr")
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound)
	becomes(c, "a waiting claim holds it", cbr, isHeld)

	from := c.createSnapshot("from")
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotReady)
	change(c, from, true, func(s *snapshotv1.VolumeSnapshot) {
		s.Status = &snapshotv1.VolumeSnapshotStatus{Error: &snapshotv1.VolumeSnapshotError{Message: ptr("the array is busy")}}
	})
	becomes(c, "the snapshot's error is shown", cbr, func(o *v1alpha1.ChangedBlockRange) bool {
		return strings.Contains(o.Status.Message, "the array is busy")
	})
	c.bindSnapshot(from)
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound)
	to := c.bindSnapshot(c.createSnapshot("to"))
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonMetadataServiceNotFound)
	if cbr.MayPopulate() {
		t.Error("it may be populated without a metadata service")
	}
	service := c.createService()
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim)
	if !cbr.MayPopulate() {
		t.Errorf("it may not be populated: %+v", cbr)
	}

	// What was resolved can be lost again.
	c.remove(service)
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonMetadataServiceNotFound)
	c.createService()
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim)
	change(c, to, false, func(o *snapshotv1.VolumeSnapshotContent) { o.Spec.VolumeSnapshotRef.UID = "" })
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotReady)

	becomes(c, "the claim is told", claim, func(*corev1.PersistentVolumeClaim) bool {
		var events eventsv1.EventList
		if err := c.List(t.Context(), &events, client.InNamespace(c.namespace)); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool {
			return e.Regarding.UID == claim.UID && e.Reason == v1alpha1.ReasonMetadataServiceNotFound
		})
	})
}

func TestPopulationFromBeginningToEnd(t *testing.T) {
	c := aCluster(t)
	c.createResolvable()
	cbr := c.createRange("cbr")
	c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonWaitingForClaim)
	if isHeld(cbr) {
		t.Error("held without a claim")
	}
	claim := c.createClaim("claim", "cbr")
	becomes(c, "the claim holds it", cbr, (*v1alpha1.ChangedBlockRange).MayPopulate)
	c.startClaim(claim)
	c.reaches(cbr, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating)

	first := c.createPod(claim, cbr)
	c.endPod(first, outcome.Result{Reason: outcome.StreamFailed, Message: "cut"})
	c.reaches(cbr, v1alpha1.StatePopulating, v1alpha1.ReasonStreamFailed)
	becomes(c, "the failure is recorded", first, isMarked)
	if err := c.Delete(t.Context(), first, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	second := c.createPod(claim, cbr)
	c.endPod(second, threeBlocks())
	c.reaches(cbr, v1alpha1.StateReady, v1alpha1.ReasonPopulated)
	if !isPod(cbr.Status.RecordedPod, second) || cbr.Status.PopulatedClaims != 1 {
		t.Errorf("the result is not recorded: %+v", cbr.Status)
	}

	c.bindClaim(claim)
	if !isHeld(cbr) {
		t.Error("let go before the library had finished")
	}
	if err := c.Delete(t.Context(), second, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	c.releaseClaim(claim)
	becomes(c, "it is let go", cbr, func(o *v1alpha1.ChangedBlockRange) bool { return !isHeld(o) })
	if cbr.Status.PopulatedClaims != 1 {
		t.Errorf("%d claims are counted, want 1", cbr.Status.PopulatedClaims)
	}

	columns := strings.Fields(c.kubectl("", "-n", c.namespace, "get", "cbt", "cbr", "-o", "wide", "--no-headers"))
	columns = slices.Delete(columns, 7, 8) // the age
	want := "cbr from to Ready 3 12 KiB " + c.driver() + " Delta JSON 1.5 KiB the list has 3 extents, 12 KiB changed"
	if got := strings.Join(columns, " "); got != want {
		t.Errorf("kubectl get cbt -o wide prints\n%s\nwant\n%s", got, want)
	}
	header := strings.Fields(c.kubectl("", "-n", c.namespace, "get", "cbr"))
	if got := strings.Join(header[:8], " "); got != "NAME FROM TO STATE PROGRESS ENTRIES CHANGED AGE" {
		t.Errorf("kubectl get cbr prints the columns %s", got)
	}
}

func TestDeletionWaitsForThePopulation(t *testing.T) {
	c := aCluster(t)
	c.createResolvable()
	cbr := c.createRange("cbr")
	claim := c.createClaim("claim", "cbr")
	becomes(c, "the claim holds it", cbr, (*v1alpha1.ChangedBlockRange).MayPopulate)
	c.startClaim(claim)
	c.reaches(cbr, v1alpha1.StatePopulating, v1alpha1.ReasonPopulating)
	pod := c.createPod(claim, cbr)
	c.remove(cbr)
	becomes(c, "the wait is explained", cbr, func(o *v1alpha1.ChangedBlockRange) bool {
		return strings.Contains(o.Status.Message, `goes as soon as claim "claim" is populated`)
	})
	if !cbr.MayPopulate() {
		t.Error("the population cannot go on")
	}
	c.endPod(pod, threeBlocks())
	c.reaches(cbr, v1alpha1.StateReady, v1alpha1.ReasonPopulated)
	c.bindClaim(claim)
	c.releaseClaim(claim)
	c.goes(cbr)
}

func TestDeletionDoesNotWaitForNothing(t *testing.T) {
	tests := map[string]func(*cluster, *v1alpha1.ChangedBlockRange){
		"no claim": func(*cluster, *v1alpha1.ChangedBlockRange) {},
		"a claim that was not started": func(c *cluster, cbr *v1alpha1.ChangedBlockRange) {
			c.createClaim("claim", cbr.Name)
			becomes(c, "the claim holds it", cbr, isHeld)
		},
		"a claim for which the list was too large": func(c *cluster, cbr *v1alpha1.ChangedBlockRange) {
			c.createResolvable()
			claim := c.createClaim("claim", cbr.Name)
			becomes(c, "the claim holds it", cbr, (*v1alpha1.ChangedBlockRange).MayPopulate)
			c.startClaim(claim)
			c.endPod(c.createPod(claim, cbr), outcome.Result{Reason: outcome.ListTooLarge, Message: "raise maxSizeInBytes"})
			c.reaches(cbr, v1alpha1.StateFailed, v1alpha1.ReasonListTooLarge)
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			c := aCluster(t)
			cbr := c.createRange("cbr")
			c.reaches(cbr, v1alpha1.StatePending, v1alpha1.ReasonSnapshotNotFound)
			prepare(c, cbr)
			c.remove(cbr)
			c.goes(cbr)
		})
	}
}
