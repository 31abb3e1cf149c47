package machinery

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
)

// class returns a StorageClass of this world that waits for the first consumer, which makes it matter most.
func (w *world) class() *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "late-" + w.namespace}, Provisioner: fakecluster.Driver,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}
}

func (w *world) addLateClaim() *corev1.PersistentVolumeClaim {
	w.Helper()
	claim := w.claim("claim", "range")
	claim.Spec.StorageClassName = ptr.To("late-" + w.namespace)
	claim.Annotations = map[string]string{annotationSelectedNode: fakecluster.Node}
	w.create(claim)
	return claim
}

func TestClassDeletedInMidFlightStillFills(t *testing.T) {
	w := newWorld(t, hang)
	class := w.class()
	w.create(class)
	w.startController()
	w.addRange("range")
	claim := w.addLateClaim()
	w.waitRunning(claim)
	w.remove(class)
	w.fake.SetKubelet(fill(t))
	w.waitFilled(claim)
}

// TestNoPrimeWithoutClass deletes class and prime claim in mid-flight: the next prime claim needs the class.
func TestNoPrimeWithoutClass(t *testing.T) {
	w := newWorld(t, hang)
	w.cfg.Shards = 1
	class := w.class()
	w.create(class)
	w.startController()
	w.addRange("range")
	claim := w.addLateClaim()
	w.waitRunning(claim)
	w.remove(class)
	w.remove(w.prime(claim))
	w.eventually("the prime claim is gone", func() bool { return w.prime(claim) == nil })
	w.fake.SetKubelet(fill(t))
	w.waitFilled(w.addClaim("barrier", "range"))
	if w.prime(claim) != nil {
		t.Error("a prime claim was made although its StorageClass does not exist")
	}
	w.create(w.class())
	w.waitFilled(claim)
	w.remove(w.class())
}

// TestClassAfterClaim creates the StorageClass last.
func TestClassAfterClaim(t *testing.T) {
	w := newWorld(t, fill(t))
	w.startController()
	w.addRange("range")
	claim := w.addLateClaim()
	w.waitFilled(w.addClaim("barrier", "range"))
	if w.get(claim); hasFinalizer(claim) || w.prime(claim) != nil {
		t.Error("the claim was worked on although its StorageClass does not exist")
	}
	w.create(w.class())
	w.waitFilled(claim)
	w.remove(w.class())
}

// TestClassThatWaitsAfterPrime: a prime claim was made without a node, and then the StorageClass waits for the first consumer.
func TestClassThatWaitsAfterPrime(t *testing.T) {
	immediate := func(w *world) *corev1.PersistentVolumeClaim {
		class := w.class()
		class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
		w.create(class)
		claim := w.claim("claim", "range")
		claim.Spec.StorageClassName = &class.Name
		return claim
	}
	for name, test := range map[string]struct {
		// begin returns the claim; change has it wait for a node.
		begin  func(*world) *corev1.PersistentVolumeClaim
		change func(w *world, claim, prime *corev1.PersistentVolumeClaim)
	}{
		"the class was another one": {immediate, func(w *world, _, _ *corev1.PersistentVolumeClaim) {
			w.remove(w.class())
			w.create(w.class())
		}},
		"the claim had its node before": {immediate, func(w *world, claim, _ *corev1.PersistentVolumeClaim) {
			w.selectNode(claim, fakecluster.Node)
			w.remove(w.class())
			w.create(w.class())
		}},
		"there was no default class": {func(w *world) *corev1.PersistentVolumeClaim {
			claim := w.claim("claim", "range")
			claim.Spec.StorageClassName = nil
			return claim
		}, func(w *world, claim, prime *corev1.PersistentVolumeClaim) {
			w.create(w.class())
			w.setClass(prime)
			w.setClass(claim)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fill(t))
			w.fake.SetProvisioning(false)
			w.startController()
			w.addRange("range")
			claim := test.begin(w)
			w.create(claim)
			w.eventually("there is a prime claim and the finalizer", func() bool { return w.prime(claim) != nil && w.get(claim) && hasFinalizer(claim) })
			test.change(w, claim, w.prime(claim))
			w.selectNode(claim, fakecluster.Node)
			w.fake.SetProvisioning(true)
			w.waitFilled(claim)
			w.remove(w.class())
		})
	}
}

// setClass plays the volume controller, which gives claims that name no class the default one.
func (w *world) setClass(claim *corev1.PersistentVolumeClaim) {
	w.Helper()
	patch := client.MergeFrom(claim.DeepCopy())
	claim.Spec.StorageClassName = ptr.To(w.class().Name)
	if err := w.c.Patch(w.ctx, claim, patch); err != nil {
		w.Fatal(err)
	}
}
