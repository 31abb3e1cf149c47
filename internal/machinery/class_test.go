package machinery

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

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
