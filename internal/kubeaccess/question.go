package kubeaccess

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// Facts are what a metadata service has to be told of the snapshots that a spec names. Sizes are bytes, 0 if unknown.
type Facts struct {
	Driver                         string
	FromHandle, ToHandle           string
	FromRestoreSize, ToRestoreSize int64
}

// FactsOf returns what the controller found for cbr, if that is about the snapshots as they are now.
func FactsOf(cbr *v1alpha1.ChangedBlockRange) (Facts, bool) {
	resolved := meta.FindStatusCondition(cbr.Status.Conditions, v1alpha1.ConditionSnapshotsResolved)
	if resolved == nil || resolved.Status != metav1.ConditionTrue || resolved.ObservedGeneration != cbr.Generation {
		return Facts{}, false
	}
	s := &cbr.Status
	return Facts{
		Driver: s.Driver, FromHandle: s.FromSnapshotHandle, ToHandle: s.ToSnapshotHandle,
		FromRestoreSize: value(s.FromRestoreSizeBytes), ToRestoreSize: value(s.ToRestoreSizeBytes),
	}, true
}

func value(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// Find reads the snapshots that spec names, and their contents, and returns what a metadata service has to be told. It
// judges them as the controller does.
func (a *Access) Find(ctx context.Context, namespace string, spec *v1alpha1.ChangedBlockRangeSpec) (Facts, error) {
	var from *snapshots.Snapshot
	var err error
	if spec.FromVolumeSnapshotName != "" {
		if from, err = a.snapshot(ctx, namespace, spec.FromVolumeSnapshotName); err != nil {
			return Facts{}, err
		}
	}
	to, err := a.snapshot(ctx, namespace, spec.ToVolumeSnapshotName)
	if err != nil {
		return Facts{}, err
	}
	if p := snapshots.Check(from, to); p != nil {
		return Facts{}, p
	}
	f := Facts{Driver: to.Content.Spec.Driver, FromHandle: spec.FromSnapshotHandle, ToHandle: to.ID(), ToRestoreSize: value(to.RestoreSize())}
	if from != nil {
		f.FromHandle, f.FromRestoreSize = from.ID(), value(from.RestoreSize())
	}
	return f, nil
}

// RestoreSize returns the size in bytes of the larger of the volumes that the snapshots of spec are of, as far as the
// VolumeSnapshots themselves say it; 0 if they do not.
func (a *Access) RestoreSize(ctx context.Context, namespace string, spec *v1alpha1.ChangedBlockRangeSpec) (int64, error) {
	largest := int64(0)
	for _, name := range []string{spec.FromVolumeSnapshotName, spec.ToVolumeSnapshotName} {
		if name == "" {
			continue
		}
		var object snapshotv1.VolumeSnapshot
		if _, err := a.read(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &object, "VolumeSnapshot"); err != nil {
			return 0, err
		}
		s := &snapshots.Snapshot{Name: name, Object: &object}
		largest = max(largest, value(s.RestoreSize()))
	}
	return largest, nil
}

// snapshot reads a VolumeSnapshot and its content. One that does not exist is no error: the snapshot then says so.
func (a *Access) snapshot(ctx context.Context, namespace, name string) (*snapshots.Snapshot, error) {
	s := &snapshots.Snapshot{Name: name}
	var object snapshotv1.VolumeSnapshot
	found, err := a.read(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &object, "VolumeSnapshot")
	if err != nil || !found {
		return s, err
	}
	s.Object = &object
	if object.Status == nil || object.Status.BoundVolumeSnapshotContentName == nil {
		return s, nil
	}
	var content snapshotv1.VolumeSnapshotContent
	found, err = a.read(ctx, client.ObjectKey{Name: *object.Status.BoundVolumeSnapshotContentName}, &content, "VolumeSnapshotContent")
	if err != nil || !found {
		return s, err
	}
	s.Content = &content
	return s, nil
}

// read reports whether the object exists.
func (a *Access) read(ctx context.Context, key client.ObjectKey, object client.Object, kind string) (bool, error) {
	err := a.Get(ctx, key, object)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	name := key.Name
	if key.Namespace != "" {
		name = key.String()
	}
	return err == nil, Explain(fmt.Sprintf("read %s %s", kind, name), err)
}
