package sidecar

import (
	"context"
	"fmt"

	servicev1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

const (
	namespace = "bench"
	snapshot  = "snap-2"
	class     = "bench"
	account   = "reader"
	audience  = "bench-snapshot-metadata"
)

// install creates what the sidecar looks up, and returns the token of a service account that may read snapshots.
func (s *Sidecar) install(ctx context.Context) (string, error) {
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, snapshotv1.AddToScheme, servicev1beta1.AddToScheme} {
		if err := add(types); err != nil {
			return "", fmt.Errorf("register API types: %w", err)
		}
	}
	api, err := client.New(s.api.Config, client.Options{Scheme: types})
	if err != nil {
		return "", fmt.Errorf("make API client: %w", err)
	}
	vs, content := snapshotObjects()
	statuses := map[client.Object]func(){
		vs: func() {
			vs.Status = &snapshotv1.VolumeSnapshotStatus{ReadyToUse: ptr.To(true), BoundVolumeSnapshotContentName: ptr.To(content.Name)}
		},
		content: func() {
			content.Status = &snapshotv1.VolumeSnapshotContentStatus{ReadyToUse: ptr.To(true), SnapshotHandle: ptr.To("handle-2")}
		},
	}
	reader := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: namespace}}
	for _, o := range append(accessObjects(reader), snapshotClass(), content, vs, s.service()) {
		if err := api.Create(ctx, o); err != nil {
			return "", fmt.Errorf("create %T %s: %w", o, o.GetName(), err)
		}
		if set, ok := statuses[o]; ok {
			set()
			if err := api.Status().Update(ctx, o); err != nil {
				return "", fmt.Errorf("set status of %T %s: %w", o, o.GetName(), err)
			}
		}
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if err := api.SubResource("token").Create(ctx, reader, request); err != nil {
		return "", fmt.Errorf("request a token of service account %s/%s: %w", namespace, account, err)
	}
	return request.Status.Token, nil
}

// accessObjects are a namespace and a service account that may get snapshots in it.
func accessObjects(reader *corev1.ServiceAccount) []client.Object {
	return []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		reader,
		&rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: namespace},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{snapshotv1.GroupName}, Resources: []string{"volumesnapshots"}, Verbs: []string{"get"}}},
		},
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: namespace},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account, Namespace: namespace}},
		},
	}
}

func snapshotObjects() (*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotContent) {
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "content-2"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: server.DriverName, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr.To("handle-2")},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: namespace, Name: snapshot},
		},
	}
	return &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: snapshot, Namespace: namespace},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: ptr.To(class),
			Source:                  snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To(content.Name)},
		},
	}, content
}

// snapshotClass is where the sidecar looks for the driver's secrets.
func snapshotClass() *snapshotv1.VolumeSnapshotClass {
	return &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: class}, Driver: server.DriverName, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
	}
}

func (s *Sidecar) service() *servicev1beta1.SnapshotMetadataService {
	return &servicev1beta1.SnapshotMetadataService{
		ObjectMeta: metav1.ObjectMeta{Name: server.DriverName},
		Spec:       servicev1beta1.SnapshotMetadataServiceSpec{Audience: audience, Address: s.Address, CACert: s.CA},
	}
}
