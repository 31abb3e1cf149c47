package controller

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// rawRange returns a ChangedBlockRange with a spec that Go types could not express. A nil value removes the field.
func (c *cluster) rawRange(name string, spec map[string]any) *unstructured.Unstructured {
	full := map[string]any{"fromVolumeSnapshotName": "a", "toVolumeSnapshotName": "b"}
	maps.Copy(full, spec)
	maps.DeleteFunc(full, func(_ string, value any) bool { return value == nil })
	object := &unstructured.Unstructured{Object: map[string]any{"spec": full}}
	object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.Kind))
	object.SetNamespace(c.namespace)
	object.SetName(name)
	return object
}

func TestAdmissionRefuses(t *testing.T) {
	c := aCluster(t)
	tests := map[string]struct {
		spec map[string]any
		says string
	}{
		"both bases":        {map[string]any{"fromSnapshotHandle": "h"}, "set one of them, or neither to list the allocated blocks"},
		"the same twice":    {map[string]any{"fromVolumeSnapshotName": "b"}, "are the same snapshot: name the older one in fromVolumeSnapshotName"},
		"no target":         {map[string]any{"toVolumeSnapshotName": nil}, "spec.toVolumeSnapshotName: Required value"},
		"empty target":      {map[string]any{"toVolumeSnapshotName": ""}, "toVolumeSnapshotName must be the name of a VolumeSnapshot"},
		"target not a name": {map[string]any{"toVolumeSnapshotName": "Not/Me"}, "toVolumeSnapshotName must be the name of a VolumeSnapshot"},
		"long target":       {map[string]any{"toVolumeSnapshotName": strings.Repeat("a", 254)}, "may not be more than 253"},
		"empty base":        {map[string]any{"fromVolumeSnapshotName": ""}, "leave it out to list the allocated blocks of the target"},
		"base not a name":   {map[string]any{"fromVolumeSnapshotName": "-a"}, "fromVolumeSnapshotName must be the name of a VolumeSnapshot"},
		"empty handle":      {map[string]any{"fromVolumeSnapshotName": nil, "fromSnapshotHandle": ""}, "fromSnapshotHandle must not be empty: leave it out"},
		"long handle":       {map[string]any{"fromVolumeSnapshotName": nil, "fromSnapshotHandle": strings.Repeat("a", 1025)}, "may not be more than 1024"},
		"format":            {map[string]any{"format": "XML"}, `supported values: "JSON", "Binary"`},
		"fallback":          {map[string]any{"whenDeltaUnavailable": "Guess"}, `supported values: "Fail", "UseAllocated"`},
		"no size":           {map[string]any{"maxSizeInBytes": int64(0)}, "maxSizeInBytes must be greater than 0: leave it out"},
		"negative size":     {map[string]any{"maxSizeInBytes": int64(-1)}, "maxSizeInBytes must be greater than 0"},
		"fine granularity":  {map[string]any{"granularityBytes": int64(256)}, "granularityBytes must be a power of two from 512 to 1073741824"},
		"odd granularity":   {map[string]any{"granularityBytes": int64(65537)}, "granularityBytes must be a power of two"},
		"huge granularity":  {map[string]any{"granularityBytes": int64(1) << 31}, "granularityBytes must be a power of two"},
		"size as a word":    {map[string]any{"maxSizeInBytes": "10Gi"}, "must be of type integer"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), c.rawRange("refused", test.spec))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v\nwant …%s…", err, test.says)
			}
		})
	}
}

func TestAdmissionTakes(t *testing.T) {
	c := aCluster(t)
	tests := map[string]map[string]any{
		"allocated":     {"fromVolumeSnapshotName": nil},
		"handle":        {"fromVolumeSnapshotName": nil, "fromSnapshotHandle": "52 c3/42@x"},
		"everything":    {"format": "Binary", "maxSizeInBytes": int64(1), "granularityBytes": int64(512), "mergeExtents": false, "whenDeltaUnavailable": "UseAllocated"},
		"names-of-dots": {"fromVolumeSnapshotName": "a.b-c.1", "toVolumeSnapshotName": strings.Repeat("a", 253)},
	}
	for power := 9; power <= 30; power++ {
		tests[fmt.Sprintf("granularity-%d", power)] = map[string]any{"granularityBytes": int64(1) << power}
	}
	for name, spec := range tests {
		if err := c.Create(t.Context(), c.rawRange(name, spec)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSpecCannotChange(t *testing.T) {
	c := aCluster(t)
	for field, value := range map[string]any{
		"fromVolumeSnapshotName": "c", "toVolumeSnapshotName": "c", "format": "Binary", "maxSizeInBytes": int64(2),
		"granularityBytes": int64(1024), "mergeExtents": true, "whenDeltaUnavailable": "UseAllocated",
	} {
		t.Run(field, func(t *testing.T) {
			object := c.rawRange("unchanged-"+strings.ToLower(field), map[string]any{"maxSizeInBytes": int64(1), "granularityBytes": int64(512)})
			if err := c.Create(t.Context(), object); err != nil {
				t.Fatal(err)
			}
			base := object.DeepCopy()
			if err := unstructured.SetNestedField(object.Object, value, "spec", field); err != nil {
				t.Fatal(err)
			}
			err := c.Patch(t.Context(), object, client.MergeFrom(base))
			if err == nil || !strings.Contains(err.Error(), "cannot be changed: create another ChangedBlockRange") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPrototypeManifest: the manifest with which the first prototype was used is the one of the examples.
func TestPrototypeManifest(t *testing.T) {
	c := aCluster(t)
	manifest, err := os.ReadFile("../../examples/prototype/changedblockrange.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.kubectl(string(manifest), "-n", c.namespace, "apply", "-f", "-")
	}
	var cbr v1alpha1.ChangedBlockRange
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: "cbt-cbr"}, &cbr); err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.ChangedBlockRangeSpec{
		FromVolumeSnapshotName: "cbt-vs-from", ToVolumeSnapshotName: "cbt-vs-to", MaxSizeInBytes: ptr(int64(42949672960)),
		Format: v1alpha1.FormatJSON, WhenDeltaUnavailable: v1alpha1.FallbackFail,
	}
	if diff := cmp.Diff(want, cbr.Spec); diff != "" {
		t.Error(diff)
	}
	if cbr.Spec.Merge() {
		t.Error("a JSON list must mirror what the driver sent")
	}
}
