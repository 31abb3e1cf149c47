package controller

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestWhatAClaimWaitsFor looks at what the status says of claims for which nothing runs, by what else is there.
func TestWhatAClaimWaitsFor(t *testing.T) {
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "standard"}, Provisioner: "kubernetes.io/no-provisioner"}
	migrated := func(c *corev1.PersistentVolumeClaim) {
		c.Annotations = map[string]string{annotationMigrated: "ebs.csi.aws.com"}
	}
	prime := func(phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		c := aClaim("prime")
		c.Namespace, c.Name, c.Status.Phase = populatorNamespace, v1alpha1.PrimeClaimPrefix+"uid-a", phase
		return &c
	}
	for says, test := range map[string]struct {
		claim corev1.PersistentVolumeClaim
		prime *corev1.PersistentVolumeClaim
	}{
		"has the provisioner kubernetes.io/no-provisioner": {aClaim("a", refersTo("cbr")), nil},
		"has not been started":                             {aClaim("a", refersTo("cbr"), migrated), nil},
		"being provisioned":                                {aClaim("a", refersTo("cbr"), isStarted), prime(corev1.ClaimPending)},
		"waits for its turn":                               {aClaim("a", refersTo("cbr"), isStarted), prime(corev1.ClaimBound)},
		`it is bound to volume "pv-a"`:                     {aClaim("a", refersTo("cbr"), isStarted, isBound), prime(corev1.ClaimBound)},
		"create a PersistentVolumeClaim":                   {aClaim("a", refersTo("cbr"), isStarted, isBound), nil},
	} {
		d := newDesk(t, &test.claim, class)
		if test.prime != nil {
			d.create(test.prime)
		}
		if err := d.reconcile(); err != nil {
			t.Fatal(err)
		}
		if got := d.cbr().Status.Message; !strings.Contains(got, says) {
			t.Errorf("message %q does not say …%s…", got, says)
		}
	}
}
