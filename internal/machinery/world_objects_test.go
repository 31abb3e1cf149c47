package machinery

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func (w *world) create(o client.Object) {
	w.Helper()
	if err := w.c.Create(w.ctx, o); err != nil {
		w.Fatal(err)
	}
}

func (w *world) remove(o client.Object) {
	w.Helper()
	if err := w.c.Delete(w.ctx, o); client.IgnoreNotFound(err) != nil {
		w.Fatal(err)
	}
}

// get reads o again and reports whether it exists.
func (w *world) get(o client.Object) bool {
	w.Helper()
	err := w.c.Get(w.ctx, client.ObjectKeyFromObject(o), o)
	if client.IgnoreNotFound(err) != nil {
		w.Fatal(err)
	}
	return err == nil
}

// addRange creates a ChangedBlockRange.
func (w *world) addRange(name string) *v1alpha1.ChangedBlockRange {
	w.Helper()
	cbr := &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: "vs-from", ToVolumeSnapshotName: "vs-to"},
	}
	w.create(cbr)
	return cbr
}

// addClaim creates a claim that is to be filled from the ChangedBlockRange.
func (w *world) addClaim(name, source string) *corev1.PersistentVolumeClaim {
	w.Helper()
	claim := w.claim(name, source)
	w.create(claim)
	return claim
}

func (w *world) claim(name, source string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(fakecluster.Class),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")}},
			DataSourceRef:    &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: source},
		},
	}
}

func (w *world) pods() []corev1.Pod {
	var pods corev1.PodList
	if err := w.c.List(w.ctx, &pods, client.InNamespace(w.cfg.PopulatorNamespace)); err != nil && w.ctx.Err() == nil {
		w.Error(err)
	}
	return pods.Items
}

// pod returns the populator pod of claim, or nil.
func (w *world) pod(claim *corev1.PersistentVolumeClaim) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.cfg.PopulatorNamespace, Name: podName(claim.UID)}}
	if !w.get(pod) {
		return nil
	}
	return pod
}

// prime returns the prime claim of claim, or nil.
func (w *world) prime(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	prime := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.cfg.PopulatorNamespace, Name: primeName(claim.UID)}}
	if !w.get(prime) {
		return nil
	}
	return prime
}

// message renders a result as a populator would.
func message(t *testing.T, r outcome.Result) string {
	t.Helper()
	data, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// fill is a kubelet under which every populator succeeds.
func fill(t *testing.T) fakecluster.Kubelet {
	end := &fakecluster.End{Phase: corev1.PodSucceeded, Message: message(t, outcome.Result{
		Reason: outcome.Populated, Mode: "Delta", EntryCount: 3, ChangedBytes: 12288, NumBytesWritten: 512,
	})}
	return func(*corev1.Pod) *fakecluster.End { return end }
}

// hang is a kubelet under which populators run on.
func hang(*corev1.Pod) *fakecluster.End { return nil }

// fail is a kubelet under which every populator fails.
func fail(t *testing.T, reason outcome.Reason) fakecluster.Kubelet {
	end := &fakecluster.End{Phase: corev1.PodFailed, Message: message(t, outcome.Result{Reason: reason, Message: "it failed"})}
	return func(*corev1.Pod) *fakecluster.End { return end }
}
