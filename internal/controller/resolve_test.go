package controller

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

func TestResolveFinds(t *testing.T) {
	const tenMiB = int64(10 << 20)
	tests := map[string]struct {
		seen *observation
		want resolution
	}{
		"two snapshots": {
			aView(),
			resolution{driver: "driver", fromHandle: "handle-from", toHandle: "handle-to", fromRestoreSize: ptr(tenMiB), toRestoreSize: ptr(tenMiB)},
		},
		"no base": {
			aView(func(o *observation) { o.from, o.cbr.Spec.FromVolumeSnapshotName = nil, "" }),
			resolution{driver: "driver", toHandle: "handle-to", toRestoreSize: ptr(tenMiB)},
		},
		"base as a handle": {
			aView(func(o *observation) { o.from, o.cbr.Spec.FromSnapshotHandle = nil, "old-handle" }),
			resolution{driver: "driver", fromHandle: "old-handle", toHandle: "handle-to", toRestoreSize: ptr(tenMiB)},
		},
		"contents made by hand say no volume": {
			aView(func(o *observation) {
				o.from.Content.Spec.Source = snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr("handle-from")}
			}),
			resolution{driver: "driver", fromHandle: "handle-from", toHandle: "handle-to", fromRestoreSize: ptr(tenMiB), toRestoreSize: ptr(tenMiB)},
		},
		"change IDs of vSphere": {
			aView(func(o *observation) {
				for _, s := range []*snapshots.Snapshot{o.from, o.to} {
					s.Content.Spec.Driver = snapshots.DriverVSphere
					s.Object.Annotations = map[string]string{snapshots.AnnotationVSphereChangeID: "52 ab/" + s.Name}
				}
				o.services = map[string]bool{snapshots.DriverVSphere: true}
			}),
			resolution{driver: snapshots.DriverVSphere, fromHandle: "52 ab/from", toHandle: "52 ab/to", fromRestoreSize: ptr(tenMiB), toRestoreSize: ptr(tenMiB)},
		},
		"the annotation means nothing to another driver": {
			aView(func(o *observation) {
				o.from.Object.Annotations = map[string]string{snapshots.AnnotationVSphereChangeID: "x"}
			}),
			resolution{driver: "driver", fromHandle: "handle-from", toHandle: "handle-to", fromRestoreSize: ptr(tenMiB), toRestoreSize: ptr(tenMiB)},
		},
		"restore size only on the VolumeSnapshot, or nowhere": {
			aView(func(o *observation) {
				o.from.Content.Status.RestoreSize, o.to.Content.Status.RestoreSize = nil, ptr(int64(0))
				o.from.Object.Status.RestoreSize = resource.NewQuantity(4096, resource.BinarySI)
			}),
			resolution{driver: "driver", fromHandle: "handle-from", toHandle: "handle-to", fromRestoreSize: ptr(int64(4096))},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := resolve(test.seen)
			if !got.ok() {
				t.Fatalf("not resolved: %s: %s", got.reason, got.message)
			}
			test.want.reason, test.want.message = got.reason, got.message
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(resolution{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(*observation)
		reason string
		says   string
	}{
		"base missing":   {func(o *observation) { gone(o.from) }, v1alpha1.ReasonSnapshotNotFound, `VolumeSnapshot "from" does not exist`},
		"target missing": {func(o *observation) { gone(o.to) }, v1alpha1.ReasonSnapshotNotFound, `VolumeSnapshot "to" does not exist`},
		"base is being deleted": {
			func(o *observation) { isDeleting(o.from.Object) }, v1alpha1.ReasonSnapshotDeleting, `"from" is being deleted`},
		"no status yet": {
			func(o *observation) { o.to.Object.Status = nil }, v1alpha1.ReasonSnapshotNotReady, `"to" is not ready`},
		"not ready": {
			func(o *observation) { o.to.Object.Status.ReadyToUse = ptr(false) }, v1alpha1.ReasonSnapshotNotReady, `"to" is not ready`},
		"not bound": {
			func(o *observation) { o.to.Object.Status.BoundVolumeSnapshotContentName, o.to.Content = nil, nil },
			v1alpha1.ReasonSnapshotNotReady, `"to" is not ready`},
		"failed": {
			func(o *observation) {
				o.to.Object.Status.ReadyToUse = nil
				o.to.Object.Status.Error = &snapshotv1.VolumeSnapshotError{Message: ptr("the array is on fire")}
			}, v1alpha1.ReasonSnapshotNotReady, "the array is on fire"},
		"content missing": {
			func(o *observation) { o.to.Content = nil }, v1alpha1.ReasonSnapshotNotFound, `VolumeSnapshotContent "content-to"`},
		"content of another namespace": {
			func(o *observation) { o.to.Content.Spec.VolumeSnapshotRef.Namespace = "victim" }, v1alpha1.ReasonSnapshotMisbound, "belongs to another"},
		"content of another name": {
			func(o *observation) { o.to.Content.Spec.VolumeSnapshotRef.Name = "other" }, v1alpha1.ReasonSnapshotMisbound, "belongs to another"},
		"content of a snapshot that had the name before": {
			func(o *observation) { o.to.Content.Spec.VolumeSnapshotRef.UID = "old" }, v1alpha1.ReasonSnapshotMisbound, "belongs to another"},
		"content not bound back yet": {
			func(o *observation) { o.to.Content.Spec.VolumeSnapshotRef.UID = "" }, v1alpha1.ReasonSnapshotNotReady, "not bound to it yet"},
		"content without handle": {
			func(o *observation) { o.to.Content.Status = nil }, v1alpha1.ReasonSnapshotNotReady, "no snapshot handle yet"},
		"two drivers": {
			func(o *observation) { o.from.Content.Spec.Driver = "other" }, v1alpha1.ReasonDriverMismatch, "driver other"},
		"two volumes": {
			func(o *observation) { o.from.Content.Spec.Source.VolumeHandle = ptr("other") }, v1alpha1.ReasonVolumeMismatch, "different volumes"},
		"no metadata service": {
			func(o *observation) { o.services["driver"] = false }, v1alpha1.ReasonMetadataServiceNotFound, "driver driver has no SnapshotMetadataService"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := resolve(aView(test.change))
			if got.reason != test.reason || !strings.Contains(got.message, test.says) {
				t.Errorf("got %s: %s\nwant %s: …%s…", got.reason, got.message, test.reason, test.says)
			}
			if got.fromHandle != "" || got.toHandle != "" {
				t.Errorf("handles %q and %q escaped from an unresolved pair", got.fromHandle, got.toHandle)
			}
		})
	}
}
