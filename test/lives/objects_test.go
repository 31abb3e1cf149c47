package lives

import (
	"context"
	"errors"
	"fmt"
	"slices"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
)

// victim is something that may be deleted under a claim.
type victim string

const (
	theClaim     victim = "claim"
	theRange     victim = "range"
	theFrom      victim = "from-snapshot"
	theTo        victim = "to-snapshot"
	theNamespace victim = "namespace"
	thePod       victim = "pod"
	thePrime     victim = "prime"
	theClass     victim = "class"
	theService   victim = "service"
	// theHome is the namespace of the ChangedBlockRange, theGrant the ReferenceGrant there, of a claim of another namespace.
	theHome  victim = "home"
	theGrant victim = "grant"
)

var victims = []victim{theClaim, theRange, theFrom, theTo, theNamespace, thePod, thePrime, theClass, theService}

// give creates victims that do not exist. A pod or prime claim is the controller's to make.
func (l *life) give(all ...victim) error {
	for _, v := range all {
		var err error
		switch v {
		case theClaim:
			err = l.create(l.newClaim())
		case theRange:
			err = l.create(l.newRange())
		case theFrom:
			err = l.giveSnapshot(fromName)
		case theTo:
			err = l.giveSnapshot(toName)
		case theNamespace:
			err = l.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.namespace}})
		case theHome:
			err = l.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.home}})
		case theGrant:
			err = l.giveGrant()
		case theClass:
			err = l.create(&storagev1.StorageClass{
				ObjectMeta: metav1.ObjectMeta{Name: l.namespace}, Provisioner: fakecluster.Driver,
				VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate),
			})
		case theService:
			err = l.create(&smsv1beta1.SnapshotMetadataService{
				ObjectMeta: metav1.ObjectMeta{Name: l.driver()},
				Spec:       smsv1beta1.SnapshotMetadataServiceSpec{Audience: "a", Address: "metadata.example:443", CACert: []byte("ca")},
			})
		default:
			// The controller's to make.
		}
		if err != nil {
			return err
		}
		l.lost = slices.DeleteFunc(l.lost, func(o victim) bool { return o == v })
	}
	return nil
}

func (l *life) newClaim() *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: l.named(claimName),
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &l.namespace,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")}},
			DataSourceRef:    &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: rangeName},
		},
	}
	if l.foreign() {
		claim.Spec.DataSourceRef.Namespace = &l.home
	}
	return claim
}

func (l *life) newRange() *v1alpha1.ChangedBlockRange {
	return &v1alpha1.ChangedBlockRange{
		ObjectMeta: l.namedAtHome(rangeName),
		Spec: v1alpha1.ChangedBlockRangeSpec{
			FromVolumeSnapshotName: fromName, ToVolumeSnapshotName: toName, GranularityBytes: l.granularity,
		},
	}
}

// contentName names the VolumeSnapshotContent of a snapshot.
func (l *life) contentName(snapshot string) string { return l.namespace + "-" + snapshot }

// giveSnapshot creates a snapshot that is ready, and the content that it is bound to.
func (l *life) giveSnapshot(name string) error {
	if err := l.giveUnready(name); err != nil {
		return err
	}
	ctx := context.Background()
	snapshot := &snapshotv1.VolumeSnapshot{}
	if err := l.c.Get(ctx, client.ObjectKey{Namespace: l.home, Name: name}, snapshot); err != nil {
		return fmt.Errorf("get snapshot %s: %w", name, err)
	}
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: l.contentName(name)},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: l.driver(), DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr.To("volume")},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: l.home, Name: name, UID: snapshot.UID},
		},
	}
	err := l.c.Create(ctx, content)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create content of snapshot %s: %w", name, err)
	}
	content.Status = &snapshotv1.VolumeSnapshotContentStatus{
		SnapshotHandle: ptr.To(handle(l.home, name)), RestoreSize: ptr.To[int64](10 << 20), ReadyToUse: ptr.To(true),
	}
	snapshot.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content.Name, ReadyToUse: ptr.To(true)}
	if err := errors.Join(l.c.Status().Update(ctx, content), l.c.Status().Update(ctx, snapshot)); err != nil {
		return fmt.Errorf("make snapshot %s ready: %w", name, err)
	}
	return nil
}

// giveUnready creates a snapshot that is not ready yet.
func (l *life) giveUnready(name string) error {
	return l.create(&snapshotv1.VolumeSnapshot{
		ObjectMeta: l.namedAtHome(name),
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("data")}},
	})
}

// lose deletes a victim. It does not wait for its end.
func (l *life) lose(v victim) error {
	if !slices.Contains(l.lost, v) {
		l.lost = append(l.lost, v)
	}
	s := l.look()
	switch v {
	case theClaim:
		return l.remove(l.newClaim())
	case theRange:
		return l.remove(l.newRange())
	case theFrom:
		return l.loseSnapshot(fromName)
	case theTo:
		return l.loseSnapshot(toName)
	case theNamespace:
		return l.loseNamespace(l.namespace)
	case theHome:
		return l.loseNamespace(l.home)
	case theGrant:
		return l.remove(&gatewayv1beta1.ReferenceGrant{ObjectMeta: l.namedAtHome(grantName)})
	case thePod:
		if s.pod != nil {
			return l.remove(s.pod)
		}
	case thePrime:
		if s.prime != nil {
			return l.remove(s.prime)
		}
	case theClass:
		return l.remove(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: l.namespace}})
	case theService:
		return l.remove(&smsv1beta1.SnapshotMetadataService{ObjectMeta: metav1.ObjectMeta{Name: l.driver()}})
	}
	return nil
}

// loseSnapshot plays the snapshot controller: the content goes with the snapshot.
func (l *life) loseSnapshot(name string) error {
	return errors.Join(
		l.remove(&snapshotv1.VolumeSnapshot{ObjectMeta: l.namedAtHome(name)}),
		l.remove(&snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: l.contentName(name)}}),
	)
}

// loseNamespace plays the namespace controller: from now on the API server accepts no new object in the namespace, and every
// object in it is deleted.
func (l *life) loseNamespace(namespace string) error {
	if err := l.remove(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return err
	}
	kinds := []client.Object{&corev1.PersistentVolumeClaim{}, &v1alpha1.ChangedBlockRange{}}
	if l.foreign() {
		kinds = append(kinds, &gatewayv1beta1.ReferenceGrant{})
	}
	for _, o := range kinds {
		if err := l.c.DeleteAllOf(context.Background(), o, client.InNamespace(namespace)); err != nil {
			return fmt.Errorf("delete all %T of namespace %s: %w", o, namespace, err)
		}
	}
	if namespace != l.home {
		return nil
	}
	return errors.Join(l.loseSnapshot(fromName), l.loseSnapshot(toName))
}
