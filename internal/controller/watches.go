package controller

import (
	"context"
	"fmt"
	"strings"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// The field indexes of the manager's cache.
const (
	// indexSnapshots: a ChangedBlockRange by the names of its VolumeSnapshots.
	indexSnapshots = "cbt.volumeSnapshots"
	// indexDriver: a ChangedBlockRange by the CSI driver in its status.
	indexDriver = "cbt.driver"
	// indexContent: a VolumeSnapshot by the VolumeSnapshotContent that it is bound to.
	indexContent = "cbt.boundContent"
	// indexSource: a claim by the namespace/name of the ChangedBlockRange that it refers to, be that permitted or not.
	indexSource = "cbt.source"
	// indexPopulates: a populator pod by the UID of the ChangedBlockRange that it reads from.
	indexPopulates = "cbt.populates"
)

func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for _, index := range []struct {
		object client.Object
		field  string
		keys   client.IndexerFunc
	}{
		{&v1alpha1.ChangedBlockRange{}, indexSnapshots, snapshotNames},
		{&v1alpha1.ChangedBlockRange{}, indexDriver, driverName},
		{&snapshotv1.VolumeSnapshot{}, indexContent, boundContent},
		{&corev1.PersistentVolumeClaim{}, indexSource, sourceName},
		{&corev1.Pod{}, indexPopulates, populatesUID},
	} {
		if err := indexer.IndexField(ctx, index.object, index.field, index.keys); err != nil {
			return fmt.Errorf("add field index %s: %w", index.field, err)
		}
	}
	return nil
}

func snapshotNames(object client.Object) []string {
	spec := object.(*v1alpha1.ChangedBlockRange).Spec
	if spec.FromVolumeSnapshotName == "" {
		return []string{spec.ToVolumeSnapshotName}
	}
	return []string{spec.FromVolumeSnapshotName, spec.ToVolumeSnapshotName}
}

func driverName(object client.Object) []string {
	return nonEmpty(object.(*v1alpha1.ChangedBlockRange).Status.Driver)
}

func boundContent(object client.Object) []string {
	status := object.(*snapshotv1.VolumeSnapshot).Status
	if status == nil || status.BoundVolumeSnapshotContentName == nil {
		return nil
	}
	return nonEmpty(*status.BoundVolumeSnapshotContentName)
}

func sourceName(object client.Object) []string {
	if source, ok := reference.Of(object.(*corev1.PersistentVolumeClaim)); ok {
		return []string{source.String()}
	}
	return nil
}

func populatesUID(object client.Object) []string {
	return nonEmpty(object.GetLabels()[v1alpha1.LabelChangedBlockRangeUID])
}

func nonEmpty(key string) []string {
	if key == "" {
		return nil
	}
	return []string{key}
}

// watches maps the objects that ChangedBlockRanges depend on to the ones that they concern. The methods are
// handler.MapFuncs, which cannot return errors; a failing read of the cache is logged.
type watches struct {
	client.Reader
	references         *reference.Policy
	populatorNamespace string
}

func (w watches) forSnapshot(ctx context.Context, object client.Object) []reconcile.Request {
	return w.withSnapshot(ctx, client.ObjectKeyFromObject(object))
}

// forContent follows both directions of the binding: the content's reference wakes the snapshots that wait for it, and the
// snapshot's reference those that are bound to a content which does not refer back.
func (w watches) forContent(ctx context.Context, object client.Object) []reconcile.Request {
	ref := object.(*snapshotv1.VolumeSnapshotContent).Spec.VolumeSnapshotRef
	snapshots := map[types.NamespacedName]struct{}{{Namespace: ref.Namespace, Name: ref.Name}: {}}
	var bound snapshotv1.VolumeSnapshotList
	if err := w.List(ctx, &bound, client.MatchingFields{indexContent: object.GetName()}); err != nil {
		log.FromContext(ctx).Error(err, "list volume snapshots", "volumeSnapshotContent", object.GetName())
	}
	for i := range bound.Items {
		snapshots[client.ObjectKeyFromObject(&bound.Items[i])] = struct{}{}
	}
	var requests []reconcile.Request
	for key := range snapshots {
		requests = append(requests, w.withSnapshot(ctx, key)...)
	}
	return requests
}

func (w watches) forService(ctx context.Context, object client.Object) []reconcile.Request {
	return w.list(ctx, client.MatchingFields{indexDriver: object.GetName()})
}

// forClaim leaves out references that are not permitted: nobody is to set this to work on another namespace's objects. Prime claims
// say themselves for which ChangedBlockRange they are.
func (w watches) forClaim(_ context.Context, object client.Object) []reconcile.Request {
	claim := object.(*corev1.PersistentVolumeClaim)
	if claim.Namespace == w.populatorNamespace {
		if named := annotatedRange(claim); named != nil {
			return named
		}
	}
	source, ok := reference.Of(claim)
	if !ok || w.references.Refused(claim) != nil {
		return nil
	}
	return []reconcile.Request{{NamespacedName: source}}
}

// forGrants wakes those of a namespace whose ReferenceGrants changed, for "" those of all namespaces: other claims may refer to
// them now.
func (w watches) forGrants(ctx context.Context, namespace string) []reconcile.Request {
	return w.list(ctx, client.InNamespace(namespace))
}

// forClass wakes those that are being deleted: a claim whose StorageClass goes does not keep them.
func (w watches) forClass(ctx context.Context, _ client.Object) []reconcile.Request {
	var found v1alpha1.ChangedBlockRangeList
	if err := w.List(ctx, &found); err != nil {
		log.FromContext(ctx).Error(err, "list changed block ranges")
		return nil
	}
	var requests []reconcile.Request
	for i := range found.Items {
		if cbr := &found.Items[i]; !cbr.DeletionTimestamp.IsZero() {
			requests = append(requests, request(cbr.Namespace, cbr.Name))
		}
	}
	return requests
}

func (watches) forPod(_ context.Context, object client.Object) []reconcile.Request {
	return annotatedRange(object)
}

// annotatedRange returns the ChangedBlockRange for which a temporary object says that it is there; nil if it names none.
func annotatedRange(object client.Object) []reconcile.Request {
	namespace, name, found := strings.Cut(object.GetAnnotations()[v1alpha1.AnnotationChangedBlockRange], "/")
	if !found {
		return nil
	}
	return []reconcile.Request{request(namespace, name)}
}

func (w watches) withSnapshot(ctx context.Context, key types.NamespacedName) []reconcile.Request {
	return w.list(ctx, client.InNamespace(key.Namespace), client.MatchingFields{indexSnapshots: key.Name})
}

func (w watches) list(ctx context.Context, options ...client.ListOption) []reconcile.Request {
	var found v1alpha1.ChangedBlockRangeList
	if err := w.List(ctx, &found, options...); err != nil {
		log.FromContext(ctx).Error(err, "list changed block ranges")
		return nil
	}
	requests := make([]reconcile.Request, 0, len(found.Items))
	for i := range found.Items {
		requests = append(requests, request(found.Items[i].Namespace, found.Items[i].Name))
	}
	return requests
}

func request(namespace, name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}
}

// onChange lets creations and deletions pass, and those updates that change the facts which the reconciler reads.
func onChange[T client.Object](facts func(T) any) predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, ok := e.ObjectOld.(T)
			after, isT := e.ObjectNew.(T)
			return !ok || !isT || before.GetUID() != after.GetUID() ||
				before.GetDeletionTimestamp().IsZero() != after.GetDeletionTimestamp().IsZero() ||
				!equality.Semantic.DeepEqual(facts(before), facts(after))
		},
	}
}

func snapshotFacts(s *snapshotv1.VolumeSnapshot) any {
	type facts struct {
		Status   *snapshotv1.VolumeSnapshotStatus
		ChangeID string
	}
	return facts{s.Status, s.Annotations[snapshots.AnnotationVSphereChangeID]}
}

func contentFacts(c *snapshotv1.VolumeSnapshotContent) any {
	type facts struct {
		Spec   snapshotv1.VolumeSnapshotContentSpec
		Status *snapshotv1.VolumeSnapshotContentStatus
	}
	return facts{c.Spec, c.Status}
}

// serviceFacts is nothing: only that the service exists matters here. Its address and certificates are the machinery's.
func serviceFacts(*metadatav1.SnapshotMetadataService) any { return nil }

// classFacts is nothing: only that the class exists matters here.
func classFacts(*storagev1.StorageClass) any { return nil }

func claimFacts(c *corev1.PersistentVolumeClaim) any {
	type facts struct {
		Phase      corev1.PersistentVolumeClaimPhase
		VolumeName string
		Finalizers []string
		// Class is given later to a claim that came before the cluster had a default one.
		Class *string
		Other string
	}
	return facts{c.Status.Phase, c.Spec.VolumeName, c.Finalizers, c.Spec.StorageClassName, c.Annotations[v1alpha1.AnnotationOtherVolume]}
}

func podFacts(p *corev1.Pod) any {
	type facts struct {
		Status      corev1.PodStatus
		Annotations map[string]string
		// Version of a pod whose result has to be recorded: who loses a conflict about that waits for the newer version.
		Version string
	}
	f := facts{Status: p.Status, Annotations: p.Annotations}
	if podstate.Ended(p) && p.Annotations[v1alpha1.AnnotationResultRecorded] == "" {
		f.Version = p.ResourceVersion
	}
	return f
}
