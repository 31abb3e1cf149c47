package machinery

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
)

// TestOtherVolumeBeforeTheGate has Kubernetes bind claims to volumes that were there already, while they wait for their
// ChangedBlockRange to be resolved.
func TestOtherVolumeBeforeTheGate(t *testing.T) {
	for name, test := range map[string]struct {
		annotations func(*world) map[string]string
		named       bool
	}{
		"an empty one":                {func(*world) map[string]string { return nil }, false},
		"one that the claim names":    {func(*world) map[string]string { return nil }, true},
		"one with another list":       {func(w *world) map[string]string { return populatedFrom(w.namespace + "/yesterday") }, false},
		"one of another night's name": {func(w *world) map[string]string { return filledBefore(w.namespace + "/range") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fill(t))
			w.resolve.Store(false)
			w.startController()
			w.addRange("range")
			claim := w.claim("claim", "range")
			volume := fakecluster.Available("other-"+w.namespace, claim, test.annotations(w))
			w.create(volume)
			if test.named {
				claim.Spec.VolumeName = volume.Name
			}
			w.create(claim)
			w.waitAstray(claim, volume)
			w.resolve.Store(true)
			w.look()
			// What is created again is filled, and nobody touches the other one.
			w.waitFilled(w.addClaim("again", "range"))
			w.checkNothingLeft(claim)
			w.waitAstray(claim, volume)
		})
	}
}

// TestOtherVolumeInMidFlight has Kubernetes bind a claim to a volume that appears while its list is written, and while its own volume
// is still to be provisioned.
func TestOtherVolumeInMidFlight(t *testing.T) {
	for name, provisioned := range map[string]bool{"running": true, "provisioning": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, hang)
			w.fake.SetHolds(fakecluster.Holds{Provision: func(*corev1.PersistentVolumeClaim) bool { return !provisioned }})
			w.startController()
			w.addRange("range")
			claim := w.addClaim("claim", "range")
			if provisioned {
				w.waitRunning(claim)
			} else {
				w.eventually("the claim has the finalizer", func() bool { return w.get(claim) && hasFinalizer(claim) })
			}
			volume := fakecluster.Available("other-"+w.namespace, claim, nil)
			fakecluster.Take(volume, claim)
			w.create(volume)
			w.waitAstray(claim, volume)
			w.checkNothingLeft(claim)
		})
	}
}

// TestCopiedAnnotation fills a claim that was copied from one which had another volume.
func TestCopiedAnnotation(t *testing.T) {
	w := newWorld(t, fill(t))
	w.startController()
	w.addRange("range")
	claim := w.claim("claim", "range")
	claim.Annotations = map[string]string{v1alpha1.AnnotationOtherVolume: "another"}
	w.create(claim)
	w.eventually("the copied annotation is gone", func() bool {
		return w.get(claim) && claim.Annotations[v1alpha1.AnnotationOtherVolume] == ""
	})
	w.waitFilled(claim)
}

// waitAstray waits until a claim is bound to a volume and let go, and is said, once, not to be filled.
func (w *world) waitAstray(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
	w.Helper()
	var told []string
	w.eventually(claim.Name+" is said not to be filled", func() bool {
		told = nil
		for _, e := range w.eventsOf(claim.Name) {
			switch e.Reason {
			case v1alpha1.ReasonBoundToOtherVolume:
				told = append(told, e.Note)
				if e.Series != nil {
					w.Errorf("claim %s is told %d times", claim.Name, e.Series.Count)
				}
			case v1alpha1.ReasonPopulated:
				w.Errorf("claim %s is told that %s", claim.Name, e.Note)
			}
		}
		return w.get(claim) && claim.Status.Phase == corev1.ClaimBound && !hasFinalizer(claim) &&
			claim.Annotations[v1alpha1.AnnotationOtherVolume] == volume.Name && len(told) > 0
	})
	if len(told) != 1 || !strings.Contains(told[0], volume.Name) || !strings.Contains(told[0], "ChangedBlockRange range") {
		w.Errorf("told %q, want one event that names volume and ChangedBlockRange", told)
	}
}

func populatedFrom(source string) map[string]string {
	return map[string]string{annotationPopulatedFrom: source}
}

// filledBefore is what is on a volume that was filled for a claim that is gone.
func filledBefore(source string) map[string]string {
	annotations := populatedFrom(source)
	annotations[v1alpha1.AnnotationPopulatedFor] = "gone"
	return annotations
}

func TestFilledFor(t *testing.T) {
	for name, test := range map[string]struct {
		annotations map[string]string
		foreign     string
		want        bool
	}{
		"for this claim":                             {map[string]string{v1alpha1.AnnotationPopulatedFor: "claim-uid"}, "", true},
		"for another claim, from the same range":     {filledBefore("ns/range"), "", false},
		"for nobody":                                 {nil, "", false},
		"by an older version":                        {populatedFrom("ns/range"), "", true},
		"by an older version, from another range":    {populatedFrom("ns/other"), "", false},
		"by an older version, of another namespace":  {populatedFrom("home/range"), "home", true},
		"the same, before the library was corrected": {populatedFrom("ns/range"), "home", true},
		"by an older version, of a third namespace":  {populatedFrom("third/range"), "home", false},
	} {
		t.Run(name, func(t *testing.T) {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "claim-uid"}}
			claim.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "range"}
			if test.foreign != "" {
				claim.Spec.DataSourceRef.Namespace = &test.foreign
			}
			volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Annotations: test.annotations}}
			if got := filledFor(volume, claim); got != test.want {
				t.Errorf("filled for the claim: %v, want %v", got, test.want)
			}
		})
	}
}

// TestMissingVolumeProvesNothing: a claim whose volume does not exist is not said to have another one, and is looked at again.
func TestMissingVolumeProvesNothing(t *testing.T) {
	claim := sampleTarget().claim
	claim.Spec.VolumeName = "gone"
	r := &releaser{live: fake.NewClientBuilder().WithScheme(scheme.Scheme).Build()}
	if err := r.checkVolume(context.Background(), claim); err != nil {
		t.Fatal(err)
	}
	if _, known := r.origins.of(claim.UID); known || claim.Annotations[v1alpha1.AnnotationOtherVolume] != "" {
		t.Errorf("known %v, annotations %v", known, claim.Annotations)
	}
}
