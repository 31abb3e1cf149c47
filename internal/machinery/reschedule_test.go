package machinery

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
)

// selectNode plays the scheduler (a node) or the provisioner that gives it up ("").
func (w *world) selectNode(claim *corev1.PersistentVolumeClaim, node string) {
	w.Helper()
	patch := client.MergeFrom(claim.DeepCopy())
	delete(claim.Annotations, annotationSelectedNode)
	if node != "" {
		claim.Annotations = map[string]string{annotationSelectedNode: node}
	}
	if err := w.c.Patch(w.ctx, claim, patch); err != nil {
		w.Fatal(err)
	}
}

func TestNodeGivenUpByTheProvisioner(t *testing.T) {
	w := newWorld(t, fill(t))
	w.fake.SetProvisioning(false)
	w.startController()
	w.addRange("range")
	claim := w.claim("claim", "range")
	claim.Spec.StorageClassName = ptr.To(fakecluster.ClassLate)
	w.create(claim)
	w.selectNode(claim, "node-1")
	primeOn := func(node string) (prime *corev1.PersistentVolumeClaim) {
		t.Helper()
		w.eventually("there is a prime claim for "+node, func() bool {
			prime = w.prime(claim)
			return prime != nil && prime.Annotations[annotationSelectedNode] == node
		})
		return prime
	}
	first := primeOn("node-1")
	w.selectNode(first, "")
	w.eventually("the scheduler is asked again and the prime claim is gone", func() bool {
		return w.get(claim) && claim.Annotations[annotationSelectedNode] == "" && w.prime(claim) == nil
	})
	w.selectNode(claim, "node-2")
	if second := primeOn("node-2"); second.UID == first.UID {
		t.Error("the prime claim is the same")
	}
	w.fake.SetProvisioning(true)
	w.waitFilled(claim)
	if claim.Annotations[annotationSelectedNode] != "node-2" {
		t.Errorf("the claim's node is %q, want node-2", claim.Annotations[annotationSelectedNode])
	}
}

func TestRescheduled(t *testing.T) {
	given := func(p *corev1.PersistentVolumeClaim) { delete(p.Annotations, annotationSelectedNode) }
	for name, test := range map[string]struct {
		change func(claim, prime *corev1.PersistentVolumeClaim)
		want   bool
	}{
		"given up":          {func(_, p *corev1.PersistentVolumeClaim) { given(p) }, true},
		"still wanted":      {func(_, _ *corev1.PersistentVolumeClaim) {}, false},
		"never had a node":  {func(_, p *corev1.PersistentVolumeClaim) { p.Annotations = nil }, false},
		"has its volume":    {func(_, p *corev1.PersistentVolumeClaim) { given(p); p.Spec.VolumeName = "pv" }, false},
		"claim is bound":    {func(c, p *corev1.PersistentVolumeClaim) { given(p); c.Spec.VolumeName = "pv" }, false},
		"prime claim going": {func(_, p *corev1.PersistentVolumeClaim) { given(p); p.DeletionTimestamp = ptr.To(p.CreationTimestamp) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			target := sampleTarget()
			target.prime.Spec.VolumeName = ""
			target.prime.Annotations = map[string]string{annotationSelectedNode: "node-1"}
			prime := markPrime(sampleConfig(), target.prime, target.claim)
			test.change(target.claim, prime)
			if got := rescheduled(target.claim, prime); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestRemake: whoever may create a claim may write the annotation; it counts where the scheduler has to write it.
func TestRemake(t *testing.T) {
	late := ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
	for name, test := range map[string]struct {
		mode   *storagev1.VolumeBindingMode
		change func(claim, prime *corev1.PersistentVolumeClaim)
		remade bool
	}{
		"the class waits":         {late, func(_, _ *corev1.PersistentVolumeClaim) {}, true},
		"the class does not wait": {ptr.To(storagev1.VolumeBindingImmediate), func(_, _ *corev1.PersistentVolumeClaim) {}, false},
		"the class does not say":  {nil, func(_, _ *corev1.PersistentVolumeClaim) {}, false},
		"the class is gone":       {late, func(c, _ *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To("gone") }, false},
		"no class":                {late, func(c, _ *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }, false},
		"no node yet":             {late, func(c, _ *corev1.PersistentVolumeClaim) { c.Annotations = nil }, false},
		"made for a node": {late, func(_, p *corev1.PersistentVolumeClaim) {
			p.Annotations = map[string]string{annotationNode: "node-1", annotationSelectedNode: "node-1"}
		}, false},
		"node was given up": {late, func(_, p *corev1.PersistentVolumeClaim) { p.Annotations = map[string]string{annotationNode: "node-1"} }, false},
		"has its volume":    {late, func(_, p *corev1.PersistentVolumeClaim) { p.Spec.VolumeName = "pv" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			target := sampleTarget()
			target.prime.Spec.VolumeName = ""
			target.claim.Spec.StorageClassName = ptr.To("class")
			target.claim.Annotations = map[string]string{annotationSelectedNode: "node-1"}
			test.change(target.claim, target.prime)
			c := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(target.prime,
				&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}, VolumeBindingMode: test.mode}).Build()
			r := &releaser{client: c, deletes: newDeletes(c, nil, testclock.NewFakePassiveClock(noon))}
			if err := r.remake(t.Context(), target.claim, target.prime); err != nil {
				t.Fatal(err)
			}
			err := c.Get(t.Context(), client.ObjectKeyFromObject(target.prime), target.prime.DeepCopy())
			if got := apierrors.IsNotFound(err); got != test.remade {
				t.Errorf("the prime claim was deleted: %v (%v), want %v", got, err, test.remade)
			}
		})
	}
}

// TestNodeTakenOffBeforeBound takes the node off a claim whose volume is handed over, as provisioners do when the node is gone. No
// scheduler chooses another one for a claim that is bound.
func TestNodeTakenOffBeforeBound(t *testing.T) {
	w := newWorld(t, fill(t))
	w.fake.SetHolds(fakecluster.Holds{Bind: func(c *corev1.PersistentVolumeClaim) bool { return c.Namespace == w.namespace }})
	w.startController()
	w.addRange("range")
	claim := w.claim("claim", "range")
	claim.Spec.StorageClassName = ptr.To(fakecluster.ClassLate)
	claim.Annotations = map[string]string{annotationSelectedNode: fakecluster.Node}
	w.create(claim)
	w.eventually("the volume is handed over", func() bool {
		prime := w.prime(claim)
		return prime != nil && prime.Status.Phase == corev1.ClaimLost && w.get(claim)
	})
	w.selectNode(claim, "")
	w.fake.SetHolds(fakecluster.Holds{})
	w.waitFilled(claim)
}

func TestMarkPrime(t *testing.T) {
	cfg, target := sampleConfig(), sampleTarget()
	cfg.PrimeLabels = map[string]string{"team": "storage"}
	cfg.PrimeAnnotations = map[string]string{"note": "hello", annotationSelectedNode: "elsewhere"}
	target.prime.Annotations = map[string]string{annotationSelectedNode: "node-1"}
	target.claim.Spec.VolumeAttributesClassName = ptr.To("fast")
	prime := markPrime(cfg, target.prime, target.claim)
	if class := prime.Spec.VolumeAttributesClassName; class == nil || *class != "fast" {
		t.Errorf("its VolumeAttributesClass is %v, so the claim never binds to the filled volume", class)
	}
	for key, want := range map[string]string{"note": "hello", annotationSelectedNode: "node-1", annotationNode: "node-1"} {
		if got := prime.Annotations[key]; got != want {
			t.Errorf("annotation %s is %q, want %q", key, got, want)
		}
	}
	if prime.Labels["team"] != "storage" {
		t.Errorf("labels %v, want team=storage among them", prime.Labels)
	}
	if name, _ := claimOf(prime.Annotations); name != nameOf(target.claim) {
		t.Errorf("it belongs to %v, want %v", name, nameOf(target.claim))
	}
}
