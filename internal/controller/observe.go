package controller

import (
	"context"
	"fmt"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// observation is everything that the status of a ChangedBlockRange is computed from.
type observation struct {
	cbr *v1alpha1.ChangedBlockRange
	// from is nil unless the spec names a base VolumeSnapshot.
	from *snapshot
	to   *snapshot
	// services has the names of those drivers of the snapshots that have a SnapshotMetadataService.
	services map[string]bool
	// claims refer to cbr.
	claims []corev1.PersistentVolumeClaim
	// classless has the claims whose StorageClass does not exist. Only a ChangedBlockRange that is being deleted asks.
	classless map[types.UID]bool
	// pods read from cbr.
	pods []corev1.Pod
	// progress is what those of the pods that run said last, by UID.
	progress map[types.UID]outcome.Progress
}

// snapshot is a VolumeSnapshot and the VolumeSnapshotContent that it names, as far as they exist.
type snapshot struct {
	name    string
	object  *snapshotv1.VolumeSnapshot
	content *snapshotv1.VolumeSnapshotContent
}

// observe reads the cache, and what the poller has heard. An object that does not exist is an observation, not an error.
func (r *reconciler) observe(ctx context.Context, cbr *v1alpha1.ChangedBlockRange) (*observation, error) {
	seen := &observation{cbr: cbr, services: map[string]bool{}}
	var err error
	if cbr.Spec.FromVolumeSnapshotName != "" {
		if seen.from, err = r.readSnapshot(ctx, cbr.Namespace, cbr.Spec.FromVolumeSnapshotName); err != nil {
			return nil, err
		}
	}
	if seen.to, err = r.readSnapshot(ctx, cbr.Namespace, cbr.Spec.ToVolumeSnapshotName); err != nil {
		return nil, err
	}
	for _, s := range []*snapshot{seen.from, seen.to} {
		if s == nil || s.content == nil {
			continue
		}
		var service metadatav1.SnapshotMetadataService
		found, err := r.read(ctx, client.ObjectKey{Name: s.content.Spec.Driver}, &service)
		if err != nil {
			return nil, err
		}
		seen.services[s.content.Spec.Driver] = found
	}

	var claims corev1.PersistentVolumeClaimList
	if err := r.client.List(ctx, &claims, client.InNamespace(cbr.Namespace), client.MatchingFields{indexSource: cbr.Name}); err != nil {
		return nil, fmt.Errorf("list claims that refer to ChangedBlockRange %s/%s: %w", cbr.Namespace, cbr.Name, err)
	}
	seen.claims = claims.Items
	if !cbr.DeletionTimestamp.IsZero() {
		if seen.classless, err = r.findClassless(ctx, claims.Items); err != nil {
			return nil, err
		}
	}
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.InNamespace(r.config.PopulatorNamespace), client.MatchingFields{indexPopulates: string(cbr.UID)}); err != nil {
		return nil, fmt.Errorf("list populator pods of ChangedBlockRange %s/%s: %w", cbr.Namespace, cbr.Name, err)
	}
	seen.pods = pods.Items
	seen.progress = r.progress.of(seen.pods)
	return seen, nil
}

// findClassless returns the UIDs of those claims whose StorageClass does not exist.
func (r *reconciler) findClassless(ctx context.Context, claims []corev1.PersistentVolumeClaim) (map[types.UID]bool, error) {
	classless := map[types.UID]bool{}
	for i := range claims {
		name := claims[i].Spec.StorageClassName
		if name == nil {
			continue
		}
		exists, err := r.read(ctx, client.ObjectKey{Name: *name}, &storagev1.StorageClass{})
		if err != nil {
			return nil, err
		}
		classless[claims[i].UID] = !exists
	}
	return classless, nil
}

func (r *reconciler) readSnapshot(ctx context.Context, namespace, name string) (*snapshot, error) {
	s := &snapshot{name: name}
	var object snapshotv1.VolumeSnapshot
	found, err := r.read(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &object)
	if err != nil || !found {
		return s, err
	}
	s.object = &object
	if object.Status == nil || object.Status.BoundVolumeSnapshotContentName == nil {
		return s, nil
	}
	var content snapshotv1.VolumeSnapshotContent
	found, err = r.read(ctx, client.ObjectKey{Name: *object.Status.BoundVolumeSnapshotContentName}, &content)
	if err != nil || !found {
		return s, err
	}
	s.content = &content
	return s, nil
}

func (r *reconciler) read(ctx context.Context, key client.ObjectKey, object client.Object) (found bool, err error) {
	err = r.client.Get(ctx, key, object)
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err):
		return false, nil
	}
	return false, fmt.Errorf("read %T %s: %w", object, key, err)
}
