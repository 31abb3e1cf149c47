package machinery

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// strangers are metadata, in the populator namespace, of objects that are not ours, although they have a label or a name like ours:
// the label is one that Kubernetes recommends to everybody.
func strangers() []metav1.ObjectMeta {
	meta := func(name string, claim types.UID) metav1.ObjectMeta {
		labels := ownLabels(claim)
		if claim == "" {
			labels = map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentPopulator}
		}
		return metav1.ObjectMeta{Namespace: "cbt-populator", Name: name, UID: types.UID("uid-" + name), Labels: labels}
	}
	return []metav1.ObjectMeta{
		meta("data-of-another-populator", ""), meta(primeName("x"), ""), meta(podName("x"), ""), meta(primeName(""), ""), meta(podName(""), ""),
		meta(primeName("y"), "z"), meta(podName("y"), "z"), meta("z", "z"),
	}
}

// TestLetGoLeavesStrangers: the namespace may be shared, and a claim that is deleted takes its data along.
func TestLetGoLeavesStrangers(t *testing.T) {
	target := sampleTarget()
	ours := []client.Object{target.prime, populatorPod(sampleConfig(), sampleSource(), target)}
	target.prime.Labels = ownLabels(target.claim.UID)
	target.claim.Finalizers = []string{v1alpha1.FinalizerClaim}
	objects := append([]client.Object{target.claim}, ours...)
	var theirs []client.Object
	for _, meta := range strangers() {
		theirs = append(theirs, &corev1.Pod{ObjectMeta: meta}, &corev1.PersistentVolumeClaim{ObjectMeta: meta})
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects, theirs...)...).Build()
	for _, want := range []int{len(objects), 0} {
		if left, err := letGoOnce(t.Context(), c, "cbt-populator"); err != nil || left != want {
			t.Errorf("something was found on %d objects, %v; want %d", left, err, want)
		}
	}
	exists := func(o client.Object) bool {
		err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		return !apierrors.IsNotFound(err)
	}
	for _, o := range theirs {
		if !exists(o) {
			t.Errorf("%T %s, which is not ours, is deleted", o, o.GetName())
		}
	}
	if slices.ContainsFunc(ours, exists) || !exists(target.claim) || hasFinalizer(target.claim) {
		t.Error("what is ours is not let go")
	}
}
