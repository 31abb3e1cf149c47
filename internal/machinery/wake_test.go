package machinery

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// TestRangeWakesClaims changes a ChangedBlockRange in ways that concern its claims and in ways that do not.
func TestRangeWakesClaims(t *testing.T) {
	claim := sampleTarget().claim
	reader := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(claim).
		WithIndex(&corev1.PersistentVolumeClaim{}, indexSource, func(o client.Object) []string {
			source, _ := reference.Of(o.(*corev1.PersistentVolumeClaim))
			return []string{source.String()}
		}).
		WithIndex(&corev1.PersistentVolumeClaim{}, indexUID, func(o client.Object) []string { return []string{string(o.GetUID())} }).Build()
	for name, test := range map[string]struct {
		change func(*v1alpha1.ChangedBlockRange)
		wakes  bool
	}{
		"another spec":         {func(c *v1alpha1.ChangedBlockRange) { c.Generation++ }, true},
		"another object":       {func(c *v1alpha1.ChangedBlockRange) { c.UID = "uid-other" }, true},
		"is being deleted":     {func(c *v1alpha1.ChangedBlockRange) { c.DeletionTimestamp = &metav1.Time{Time: noon} }, true},
		"lost its finalizer":   {func(c *v1alpha1.ChangedBlockRange) { c.Finalizers = nil }, true},
		"no longer resolved":   {func(c *v1alpha1.ChangedBlockRange) { c.Status.Conditions[0].Status = metav1.ConditionFalse }, true},
		"another base":         {func(c *v1alpha1.ChangedBlockRange) { c.Status.FromSnapshotHandle = "other" }, true},
		"another target":       {func(c *v1alpha1.ChangedBlockRange) { c.Status.ToSnapshotHandle = "other" }, true},
		"another driver":       {func(c *v1alpha1.ChangedBlockRange) { c.Status.Driver = "other" }, true},
		"restore size known":   {func(c *v1alpha1.ChangedBlockRange) { c.Status.ToRestoreSizeBytes = ptr.To[int64](30 << 20) }, true},
		"progress":             {func(c *v1alpha1.ChangedBlockRange) { c.Status.Progress = &v1alpha1.PopulationProgress{} }, false},
		"figures":              {func(c *v1alpha1.ChangedBlockRange) { c.Status.EntryCount = ptr.To[int64](7) }, false},
		"message":              {func(c *v1alpha1.ChangedBlockRange) { c.Status.Message = "it is being populated" }, false},
		"its result":           {func(c *v1alpha1.ChangedBlockRange) { c.Status.RecordedPod = recordedPod(podName(claim.UID)) }, true},
		"another's result":     {func(c *v1alpha1.ChangedBlockRange) { c.Status.RecordedPod = recordedPod(podName("other")) }, false},
		"words of a condition": {func(c *v1alpha1.ChangedBlockRange) { c.Status.Conditions[0].Message = "other words" }, false},
		"a label":              {func(c *v1alpha1.ChangedBlockRange) { c.Labels = map[string]string{"a": "b"} }, false},
		"nothing (a resync)":   {func(c *v1alpha1.ChangedBlockRange) { c.ResourceVersion = "1" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := sampleSource().cbr
			before.ResourceVersion = "1"
			after := before.DeepCopy()
			after.ResourceVersion = "2"
			test.change(after)
			if got := wokenBy(reader, func(h toolscache.ResourceEventHandler) { h.OnUpdate(before, after) }); (len(got) > 0) != test.wakes {
				t.Errorf("woken: %v, want any: %v", got, test.wakes)
			}
		})
	}
	cbr := sampleSource().cbr
	for name, happen := range map[string]func(toolscache.ResourceEventHandler){
		"created":                          func(h toolscache.ResourceEventHandler) { h.OnAdd(cbr, false) },
		"deleted":                          func(h toolscache.ResourceEventHandler) { h.OnDelete(cbr) },
		"deleted while nobody was looking": func(h toolscache.ResourceEventHandler) { h.OnDelete(toolscache.DeletedFinalStateUnknown{Obj: cbr}) },
	} {
		t.Run(name, func(t *testing.T) {
			if got := wokenBy(reader, happen); len(got) != 1 || got[0] != nameOf(claim) {
				t.Errorf("woken: %v, want %v", got, nameOf(claim))
			}
		})
	}
}

func recordedPod(name string) *v1alpha1.RecordedPod {
	return &v1alpha1.RecordedPod{Name: name, UID: "uid-pod"}
}

// wokenBy returns the claims that are woken by what happens to a ChangedBlockRange.
func wokenBy(reader client.Reader, happen func(toolscache.ResourceEventHandler)) []types.NamespacedName {
	var woken []types.NamespacedName
	w := &waker{reader: reader, wake: func(claim types.NamespacedName) { woken = append(woken, claim) }}
	happen(w.onRange(context.Background()))
	return woken
}

// podHandler returns what the waker does with a pod's events, and the slots and claims that are touched by it.
func podHandler(t *testing.T) (toolscache.ResourceEventHandler, *slots, *[]types.NamespacedName) {
	t.Helper()
	s, _ := newTestSlots(1, 1)
	woken := &[]types.NamespacedName{}
	w := &waker{slots: s, wake: func(claim types.NamespacedName) { *woken = append(*woken, claim) }}
	return onAnyEvent(t.Context(), w.onPod), s, woken
}

func TestStrangePodsHoldNoSlot(t *testing.T) {
	for _, meta := range strangers() {
		handler, s, woken := podHandler(t)
		meta.Annotations = map[string]string{v1alpha1.AnnotationClaimNamespace: "backup", v1alpha1.AnnotationClaimName: "list"}
		handler.OnAdd(&corev1.Pod{ObjectMeta: meta}, false)
		if len(s.held) != 0 || len(*woken) != 0 {
			t.Errorf("pod %s holds %v and wakes %v", meta.Name, s.held, *woken)
		}
	}
}

// TestGonePodHoldsNoSlot, whether its deletion was seen or found out later, when the watch had been interrupted.
func TestGonePodHoldsNoSlot(t *testing.T) {
	pod := populatorPod(sampleConfig(), sampleSource(), sampleTarget())
	pod.Status.Phase = corev1.PodRunning
	for name, gone := range map[string]any{"seen": pod, "found out": toolscache.DeletedFinalStateUnknown{Obj: pod}} {
		handler, s, woken := podHandler(t)
		handler.OnAdd(pod, false)
		if len(s.held) != 1 {
			t.Fatalf("%s: a running pod holds %v", name, s.held)
		}
		handler.OnDelete(gone)
		if len(s.held) != 0 || len(*woken) != 2 {
			t.Errorf("%s: a pod that is gone holds %v; woken: %v", name, s.held, *woken)
		}
	}
}
