package controller

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// indexedClient is a fake client that has the field indexes of the manager's cache.
type indexedClient struct{ *fake.ClientBuilder }

func (b indexedClient) IndexField(_ context.Context, object client.Object, field string, keys client.IndexerFunc) error {
	b.WithIndex(object, field, keys)
	return nil
}

func TestEachObjectWakesThoseItConcerns(t *testing.T) {
	named := func(namespace, name, from, to, driver string) client.Object {
		return aRange(func(o *v1alpha1.ChangedBlockRange) {
			o.Namespace, o.Name = namespace, name
			o.Spec.FromVolumeSnapshotName, o.Spec.ToVolumeSnapshotName, o.Status.Driver = from, to, driver
		})
	}
	stolen := aSnapshot("stolen").Object
	stolen.Status.BoundVolumeSnapshotContentName = ptr("content-from")
	builder := indexedClient{fake.NewClientBuilder().WithScheme(testScheme()).WithObjects(
		named("app", "increment", "from", "to", "driver"), named("app", "full", "", "to", "driver"), named("app", "thief", "stolen", "x", "other"),
		named("elsewhere", "increment", "from", "to", "driver"), stolen,
	)}
	if err := addIndexes(t.Context(), builder); err != nil {
		t.Fatal(err)
	}
	w := watches{Reader: builder.Build(), populatorNamespace: "cbt-populator"}

	claim := func(edit func(*corev1.TypedObjectReference)) client.Object {
		c := aClaim("a")
		c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "increment"}
		edit(c.Spec.DataSourceRef)
		return &c
	}
	prime := aClaim("prime", func(c *corev1.PersistentVolumeClaim) {
		c.Namespace, c.Annotations = "cbt-populator", map[string]string{v1alpha1.AnnotationChangedBlockRange: "app/increment"}
	})
	forged := prime.DeepCopy()
	forged.Namespace = "elsewhere"
	plainClaim, pod, plainPod := aClaim("a"), aPod("a"), corev1.Pod{}
	tests := map[string]struct {
		wakes  func(context.Context, client.Object) []reconcile.Request
		object client.Object
		want   []string
	}{
		"base snapshot":      {w.forSnapshot, aSnapshot("from").Object, []string{"app/increment"}},
		"target snapshot":    {w.forSnapshot, aSnapshot("to").Object, []string{"app/full", "app/increment"}},
		"unrelated snapshot": {w.forSnapshot, aSnapshot("unrelated").Object, nil},
		"content":            {w.forContent, aSnapshot("to").Content, []string{"app/full", "app/increment"}},
		"content also of another snapshot that claims it": {w.forContent, aSnapshot("from").Content, []string{"app/increment", "app/thief"}},
		"metadata service":                  {w.forService, &metadatav1.SnapshotMetadataService{ObjectMeta: metav1.ObjectMeta{Name: "driver"}}, []string{"app/full", "app/increment", "elsewhere/increment"}},
		"unrelated metadata service":        {w.forService, &metadatav1.SnapshotMetadataService{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, nil},
		"claim":                             {w.forClaim, claim(func(*corev1.TypedObjectReference) {}), []string{"app/increment"}},
		"claim that says its own namespace": {w.forClaim, claim(func(r *corev1.TypedObjectReference) { r.Namespace = ptr("app") }), []string{"app/increment"}},
		"claim that refers elsewhere":       {w.forClaim, claim(func(r *corev1.TypedObjectReference) { r.Namespace = ptr("elsewhere") }), nil},
		"claim of another kind":             {w.forClaim, claim(func(r *corev1.TypedObjectReference) { r.Kind = "VolumeSnapshot" }), nil},
		"claim of another group":            {w.forClaim, claim(func(r *corev1.TypedObjectReference) { r.APIGroup = ptr("x") }), nil},
		"claim of the core group":           {w.forClaim, claim(func(r *corev1.TypedObjectReference) { r.APIGroup = nil }), nil},
		"prime claim":                       {w.forClaim, &prime, []string{"app/increment"}},
		"claim that passes for a prime":     {w.forClaim, forged, nil},
		"claim without source":              {w.forClaim, &plainClaim, nil},
		"populator pod":                     {w.forPod, &pod, []string{"app/cbr"}},
		"another pod":                       {w.forPod, &plainPod, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, r := range test.wakes(t.Context(), test.object) {
				got = append(got, r.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, slices.Compact(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOnlyRelevantUpdatesPass(t *testing.T) {
	update := func(p predicate.Predicate, before, after client.Object) bool {
		return p.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after})
	}
	touch := func(object client.Object) client.Object {
		object.SetResourceVersion("2")
		object.SetLabels(map[string]string{"unrelated": "label"})
		object.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "m"}})
		return object
	}
	content, claim, pod := aSnapshot("a").Content, aClaim("a"), aPod("a")
	service := &metadatav1.SnapshotMetadataService{}
	for name, unrelated := range map[string]bool{
		"snapshot": update(onChange(snapshotFacts), aSnapshot("a").Object, touch(aSnapshot("a").Object)),
		"content":  update(onChange(contentFacts), content, touch(content.DeepCopy())),
		"service":  update(onChange(serviceFacts), service, touch(service.DeepCopy())),
		"claim":    update(onChange(claimFacts), &claim, touch(claim.DeepCopy())),
		"pod":      update(onChange(podFacts), &pod, touch(pod.DeepCopy())),
	} {
		if unrelated {
			t.Errorf("an unrelated update of a %s passes", name)
		}
	}

	ready := aSnapshot("a").Object
	pending := aSnapshot("a", func(s *snapshots.Snapshot) { s.Object.Status.ReadyToUse = nil }).Object
	leaving := aSnapshot("a", func(s *snapshots.Snapshot) { isDeleting(s.Object) }).Object
	changeID := aSnapshot("a", func(s *snapshots.Snapshot) {
		s.Object.Annotations = map[string]string{snapshots.AnnotationVSphereChangeID: "1"}
	}).Object
	handle := aSnapshot("a", func(s *snapshots.Snapshot) { s.Content.Status.SnapshotHandle = ptr("x") }).Content
	started, bound := aClaim("a", isStarted), aClaim("a", isBound)
	classless := aClaim("a", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
	done, recorded := aPod("a", ended(t, late, threeBlocks())), aPod("a", isRecorded)
	for name, relevant := range map[string]bool{
		"snapshot becomes ready":      update(onChange(snapshotFacts), pending, ready),
		"snapshot is being deleted":   update(onChange(snapshotFacts), ready, leaving),
		"snapshot gets its change ID": update(onChange(snapshotFacts), ready, changeID),
		"content gets its handle":     update(onChange(contentFacts), content, handle),
		"claim is started":            update(onChange(claimFacts), &claim, &started),
		"claim is bound":              update(onChange(claimFacts), &claim, &bound),
		"claim gets its class":        update(onChange(claimFacts), &classless, &claim),
		"pod ends":                    update(onChange(podFacts), &pod, &done),
		"pod is recorded":             update(onChange(podFacts), &pod, &recorded),
		"creation":                    onChange(podFacts).Create(event.CreateEvent{Object: &pod}),
		"deletion":                    onChange(podFacts).Delete(event.DeleteEvent{Object: &pod}),
	} {
		if !relevant {
			t.Errorf("%s: does not pass", name)
		}
	}
}

func TestMissingKindsAreNamed(t *testing.T) {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(v1alpha1.GroupVersion.WithKind(v1alpha1.Kind), meta.RESTScopeNamespace)
	mapper.Add(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), meta.RESTScopeNamespace)
	want := []string{
		"the cluster does not serve the kind SnapshotMetadataService of cbt.storage.k8s.io/v1beta1: install the SnapshotMetadataService definition (kubernetes-csi/external-snapshot-metadata); then restart this controller",
		"the cluster does not serve the kind VolumeSnapshotContent of snapshot.storage.k8s.io/v1: install the CSI snapshot definitions and the snapshot controller (kubernetes-csi/external-snapshotter); then restart this controller",
	}
	if diff := cmp.Diff(want, missingKinds(t, mapper)); diff != "" {
		t.Error(diff)
	}
}

// TestKindsOfOtherVersionsAreTold: with a definition from before the version that is watched, to install one would not be enough.
func TestKindsOfOtherVersionsAreTold(t *testing.T) {
	old, older := metadatav1.SchemeGroupVersion.Group+"/v1alpha1", snapshotv1.SchemeGroupVersion.Group+"/v1beta1"
	mapper := meta.MultiRESTMapper{}
	for version, kinds := range map[string][]string{
		old: {v1alpha1.Kind, "SnapshotMetadataService"}, older: {"VolumeSnapshot"},
		snapshotv1.SchemeGroupVersion.String(): {"VolumeSnapshotContent"},
	} {
		gv, err := schema.ParseGroupVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		// As discovery makes them: one for each version.
		of := meta.NewDefaultRESTMapper([]schema.GroupVersion{gv})
		for _, kind := range kinds {
			of.Add(gv.WithKind(kind), meta.RESTScopeNamespace)
		}
		mapper = append(mapper, of)
	}
	want := []string{
		"the cluster does not serve the kind SnapshotMetadataService of cbt.storage.k8s.io/v1beta1, only of v1alpha1: replace the SnapshotMetadataService definition, and the drivers' sidecars, by those of kubernetes-csi/external-snapshot-metadata v1.0.0 or newer; then restart this controller",
		"the cluster does not serve the kind VolumeSnapshot of snapshot.storage.k8s.io/v1, only of v1beta1: install the CSI snapshot definitions and the snapshot controller (kubernetes-csi/external-snapshotter); then restart this controller",
	}
	if diff := cmp.Diff(want, missingKinds(t, mapper)); diff != "" {
		t.Error(diff)
	}
}

// missingKinds returns what is said of kinds that the cluster lacks.
func missingKinds(t *testing.T, mapper meta.RESTMapper) []string {
	t.Helper()
	err := checkKinds(mapper)
	if err == nil {
		t.Fatal("nothing is missing")
	}
	lines := strings.Split(err.Error(), "\n")
	slices.Sort(lines)
	return lines
}
