package machinery

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
)

// victims are what TestDeletions deletes.
type victims struct {
	claim *corev1.PersistentVolumeClaim
	cbr   *v1alpha1.ChangedBlockRange
	class *storagev1.StorageClass
}

// TestDeletions deletes things in mid-flight, with the populator running and, in the second round, waiting for a volume.
func TestDeletions(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(*world, victims)
	}{
		{"claim", func(*world, victims) {}},
		{"range then claim", func(w *world, v victims) { w.remove(v.cbr) }},
		{"class then claim", func(w *world, v victims) { w.remove(v.class) }},
		{"range by force then claim", func(w *world, v victims) {
			w.resolve.Store(false)
			w.eventually("the finalizer is gone", func() bool {
				w.get(v.cbr)
				v.cbr.Finalizers = nil
				return w.c.Update(w.ctx, v.cbr) == nil
			})
			w.remove(v.cbr)
			w.eventually("the range is gone", func() bool { return !w.get(v.cbr) })
		}},
		{"prime then claim", func(w *world, v victims) { w.remove(w.prime(v.claim)) }},
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, pod running %v", test.name, running), func(t *testing.T) {
				deleteInMidFlight(t, running, test.before)
			})
		}
	}
}

// deleteInMidFlight takes a claim to its running pod, or to its unbound prime claim, deletes what before deletes and then
// the claim, and waits until nothing is left.
func deleteInMidFlight(t *testing.T, running bool, before func(*world, victims)) {
	t.Helper()
	w := newWorld(t, hang)
	w.fake.SetProvisioning(running)
	w.startController()
	v := victims{class: &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: w.namespace}, Provisioner: fakecluster.Driver,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate),
	}}
	w.create(v.class)
	v.cbr = w.addRange("range")
	v.claim = w.claim("claim", "range")
	v.claim.Spec.StorageClassName = &v.class.Name
	w.create(v.claim)
	if running {
		w.waitRunning(v.claim)
	} else {
		w.eventually("the claim has the finalizer", func() bool { return w.get(v.claim) && hasFinalizer(v.claim) })
	}
	before(w, v)
	w.remove(v.claim)
	w.waitGone(v.claim)
	w.eventually("no volume is left", func() bool {
		var volumes corev1.PersistentVolumeList
		if err := w.c.List(w.ctx, &volumes); err != nil {
			t.Fatal(err)
		}
		for _, volume := range volumes.Items {
			if ref := volume.Spec.ClaimRef; ref != nil && ref.Namespace == w.cfg.PopulatorNamespace {
				return false
			}
		}
		return true
	})
	w.remove(v.cbr)
	w.eventually("the range is gone", func() bool { return !w.get(v.cbr.DeepCopy()) })
}

func TestRangeDeletedInMidFlightStillFills(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	cbr := w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.waitRunning(claim)
	w.remove(cbr)
	w.fake.SetKubelet(fill(t))
	w.waitFilled(claim)
	w.eventually("the range is gone", func() bool { return !w.get(cbr) })
}

func TestRangeReplacedInMidFlight(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	cbr := w.addRange("range")
	claim := w.addClaim("claim", "range")
	old := w.waitRunning(claim)
	w.eventually("the finalizer is gone by force", func() bool {
		w.get(cbr)
		if cbr.DeletionTimestamp == nil {
			w.remove(cbr)
			return false
		}
		cbr.Finalizers = nil
		return w.c.Update(w.ctx, cbr) == nil
	})
	w.addRange("range")
	w.eventually("a pod of the new range runs", func() bool {
		pod := w.pod(claim)
		return pod != nil && pod.UID != old.UID && pod.Status.Phase == corev1.PodRunning
	})
	w.fake.SetKubelet(fill(t))
	w.waitFilled(claim)
}

func TestPrimeDeletedInMidFlightStillFills(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	old := w.waitRunning(claim)
	w.remove(w.prime(claim))
	w.eventually("another pod runs", func() bool {
		pod := w.pod(claim)
		return pod != nil && pod.UID != old.UID && pod.Status.Phase == corev1.PodRunning
	})
	w.fake.SetKubelet(fill(t))
	w.waitFilled(claim)
}

// TestOrphansAreRemoved lets a claim vanish behind the controller's back: its finalizer was removed by force while no
// controller ran.
func TestOrphansAreRemoved(t *testing.T) {
	w := newWorld(t, hang)
	w.startController()
	w.addRange("range")
	claim := w.addClaim("claim", "range")
	w.waitRunning(claim)
	w.stop()
	w.remove(claim)
	w.eventually("the claim is gone", func() bool {
		if !w.get(claim) {
			return true
		}
		claim.Finalizers = nil
		if err := w.c.Update(w.ctx, claim); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return false
	})
	w.startController()
	w.eventually("pod and prime claim are gone", func() bool { return w.pod(claim) == nil && w.prime(claim) == nil })
}

// TestFinalizerWithoutReference: who restores claims from a backup may keep the finalizer and leave the reference out, or replace it.
func TestFinalizerWithoutReference(t *testing.T) {
	for name, source := range map[string]*corev1.TypedObjectReference{
		"no data source":   nil,
		"a VolumeSnapshot": {APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "monday"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, hang)
			held := func(name string) *corev1.PersistentVolumeClaim {
				claim := w.claim(name, "range")
				claim.Spec.DataSourceRef, claim.Finalizers = source, []string{v1alpha1.FinalizerClaim}
				w.create(claim)
				return claim
			}
			going, staying := held("going"), held("staying")
			filled := func() bool { return source != nil || w.get(staying) && staying.Status.Phase == corev1.ClaimBound }
			w.eventually("a claim that nobody is to fill has its volume", filled)
			w.remove(going)
			w.startController()
			w.waitGone(going)
			w.eventually("the finalizer is gone", func() bool { return w.get(staying) && !hasFinalizer(staying) })
			if !filled() || staying.DeletionTimestamp != nil {
				t.Errorf("the claim was not left alone: %+v", staying)
			}
			volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: staying.Spec.VolumeName}}
			if source == nil && (!w.get(volume) || volume.DeletionTimestamp != nil || volume.Spec.ClaimRef.UID != staying.UID) {
				t.Errorf("the claim's volume was not left alone: %+v", volume)
			}
			w.remove(staying)
			w.waitGone(staying)
		})
	}
}

// TestForeignObjectsAreLeftAlone creates objects in the populator namespace that look a little like temporary ones.
func TestForeignObjectsAreLeftAlone(t *testing.T) {
	w := newWorld(t, fill(t))
	foreign := w.claim("prime-11111111-2222-3333-4444-555555555555", "range")
	foreign.Namespace, foreign.Spec.DataSourceRef = w.cfg.PopulatorNamespace, nil
	w.create(foreign)
	inside := w.claim("inside", "range")
	inside.Namespace = w.cfg.PopulatorNamespace
	w.create(inside)
	w.startController()
	w.addRange("range")
	w.waitFilled(w.addClaim("barrier", "range"))
	if !w.get(foreign) || foreign.DeletionTimestamp != nil {
		t.Error("a claim that is not ours was deleted")
	}
	if !w.get(inside) || len(inside.Finalizers) != 1 {
		t.Error("a claim in the populator namespace was worked on")
	}
	w.remove(foreign)
	w.remove(inside)
}
