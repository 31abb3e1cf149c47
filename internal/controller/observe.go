package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// annotationMigrated is set by the volume controller on claims whose in-tree provisioner was replaced by a CSI driver.
const annotationMigrated = "volume.kubernetes.io/migrated-to"

// observation is everything that the status of a ChangedBlockRange is computed from.
type observation struct {
	cbr *v1alpha1.ChangedBlockRange
	// from is nil unless the spec names a base VolumeSnapshot.
	from *snapshots.Snapshot
	to   *snapshots.Snapshot
	// services has the names of those drivers of the snapshots that have a SnapshotMetadataService.
	services map[string]bool
	// claims refer to cbr, and may.
	claims []corev1.PersistentVolumeClaim
	// classless has the claims whose StorageClass does not exist. Only a ChangedBlockRange that is being deleted asks.
	classless map[types.UID]bool
	// pods read from cbr.
	pods []corev1.Pod
	// failures are how the last attempts of claims failed whose pods are gone.
	failures []outcome.Failure
	// provisioned has the claims that wait for a pod while their volume is there, by UID.
	provisioned map[types.UID]bool
	// taken has the claims that were bound to another volume than the one that was to be filled for them, while that is there, by UID.
	taken map[types.UID]bool
	// intree has the provisioners of those claims that wait and whose StorageClass's cannot take a populated volume, by UID.
	intree map[types.UID]string
	// progress is what those of the pods that run said last, by UID.
	progress map[types.UID]outcome.Progress
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
	for _, s := range []*snapshots.Snapshot{seen.from, seen.to} {
		if s == nil || s.Content == nil {
			continue
		}
		var service metadatav1.SnapshotMetadataService
		found, err := r.read(ctx, client.ObjectKey{Name: s.Content.Spec.Driver}, &service)
		if err != nil {
			return nil, err
		}
		seen.services[s.Content.Spec.Driver] = found
	}

	var claims corev1.PersistentVolumeClaimList
	if err := r.client.List(ctx, &claims, client.MatchingFields{indexSource: client.ObjectKeyFromObject(cbr).String()}); err != nil {
		return nil, fmt.Errorf("list claims that refer to ChangedBlockRange %s/%s: %w", cbr.Namespace, cbr.Name, err)
	}
	// A claim of another namespace counts only with this one's consent: else anybody could hold a ChangedBlockRange.
	seen.claims = slices.DeleteFunc(claims.Items, func(claim corev1.PersistentVolumeClaim) bool {
		return r.config.References.Refused(&claim) != nil
	})
	if !cbr.DeletionTimestamp.IsZero() {
		if seen.classless, err = r.findClassless(ctx, seen.claims); err != nil {
			return nil, err
		}
	}
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.InNamespace(r.config.PopulatorNamespace), client.MatchingFields{indexPopulates: string(cbr.UID)}); err != nil {
		return nil, fmt.Errorf("list populator pods of ChangedBlockRange %s/%s: %w", cbr.Namespace, cbr.Name, err)
	}
	seen.pods = pods.Items
	if err := r.readPrimes(ctx, seen); err != nil {
		return nil, err
	}
	if seen.intree, err = r.findIntree(ctx, seen.claims); err != nil {
		return nil, err
	}
	seen.progress = r.progress.of(seen.pods)
	return seen, nil
}

// readPrimes looks at the prime claims of claims that wait and have no pod: whether their volume is there, and what the machinery
// wrote on them about the last attempt. And at those of claims that do not wait any more: whether it is for another volume.
func (r *reconciler) readPrimes(ctx context.Context, seen *observation) error {
	tried := map[string]bool{}
	for i := range seen.pods {
		tried[seen.pods[i].Labels[v1alpha1.LabelClaimUID]] = true
	}
	seen.provisioned, seen.taken = map[types.UID]bool{}, map[types.UID]bool{}
	for i := range seen.claims {
		claim := &seen.claims[i]
		if !started(claim) || (waiting(claim) && tried[string(claim.UID)]) {
			continue
		}
		var prime corev1.PersistentVolumeClaim
		exists, err := r.read(ctx, client.ObjectKey{Namespace: r.config.PopulatorNamespace, Name: v1alpha1.PrimeClaimPrefix + string(claim.UID)}, &prime)
		if err != nil {
			return err
		}
		if !waiting(claim) {
			seen.taken[claim.UID] = exists && claim.Spec.VolumeName != "" && claim.Spec.VolumeName != prime.Spec.VolumeName
			continue
		}
		seen.provisioned[claim.UID] = bound(&prime)
		if failed, ok := outcome.ParseFailure(prime.Annotations[v1alpha1.AnnotationFailure]); ok {
			seen.failures = append(seen.failures, failed)
		}
	}
	return nil
}

// findIntree returns the provisioners of those claims that have not been started and whose StorageClass is of a volume plugin that
// is compiled into Kubernetes: the populator library passes over them in silence, unless they are migrated to CSI.
func (r *reconciler) findIntree(ctx context.Context, claims []corev1.PersistentVolumeClaim) (map[types.UID]string, error) {
	intree := map[types.UID]string{}
	for i := range claims {
		claim := &claims[i]
		if !waiting(claim) || started(claim) || claim.Spec.StorageClassName == nil || claim.Annotations[annotationMigrated] != "" {
			continue
		}
		var class storagev1.StorageClass
		if _, err := r.read(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, &class); err != nil {
			return nil, err
		}
		if strings.HasPrefix(class.Provisioner, "kubernetes.io/") {
			intree[claim.UID] = class.Provisioner
		}
	}
	return intree, nil
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

func (r *reconciler) readSnapshot(ctx context.Context, namespace, name string) (*snapshots.Snapshot, error) {
	s := &snapshots.Snapshot{Name: name}
	var object snapshotv1.VolumeSnapshot
	found, err := r.read(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &object)
	if err != nil || !found {
		return s, err
	}
	s.Object = &object
	if object.Status == nil || object.Status.BoundVolumeSnapshotContentName == nil {
		return s, nil
	}
	var content snapshotv1.VolumeSnapshotContent
	found, err = r.read(ctx, client.ObjectKey{Name: *object.Status.BoundVolumeSnapshotContentName}, &content)
	if err != nil || !found {
		return s, err
	}
	s.Content = &content
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
