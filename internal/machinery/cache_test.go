package machinery

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

func TestSlimClaim(t *testing.T) {
	const populatorNamespace = "cbt-populator"
	for name, test := range map[string]struct {
		change func(*corev1.PersistentVolumeClaim)
		whole  bool
	}{
		"ours":       {func(*corev1.PersistentVolumeClaim) {}, true},
		"a stranger": {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSourceRef = nil }, false},
		"filled by others": {func(c *corev1.PersistentVolumeClaim) {
			other := "snapshot.storage.k8s.io"
			c.Spec.DataSourceRef.APIGroup = &other
		}, false},
		"a prime claim": {func(c *corev1.PersistentVolumeClaim) {
			c.Namespace, c.Spec.DataSourceRef = populatorNamespace, nil
		}, true},
		"one with our finalizer": {func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSourceRef, c.Finalizers = nil, []string{v1alpha1.FinalizerClaim}
		}, true},
		// The API server takes it for its own namespace, and so does everybody here but the library.
		"ours, of the namespace of no name": {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSourceRef.Namespace = ptr.To("") }, true},
		"ours, of a namespace":              {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSourceRef.Namespace = ptr.To("other") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			claim := sampleTarget().claim
			claim.Annotations = map[string]string{annotationSelectedNode: "node"}
			claim.Labels = map[string]string{"a": "b"}
			claim.Status.Phase = corev1.ClaimBound
			test.change(claim)
			want := claim.DeepCopy()
			if !test.whole {
				want = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}}
			}
			if ref := want.Spec.DataSourceRef; ref != nil && ptr.Deref(ref.Namespace, "") == "" {
				ref.Namespace = nil
			}
			claim.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "someone"}}
			claim.Annotations[annotationApplied] = "a copy"
			got, err := slimClaim(populatorNamespace)(claim)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v and %v, want %+v", got, err, want)
			}
		})
	}
}
