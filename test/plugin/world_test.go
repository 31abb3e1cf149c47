// Package plugin runs the commands of `kubectl cbr` that talk to a cluster against a real API server, with its admission,
// its permissions and its tokens. The test plays the controller and the snapshot controller; the metadata service is the
// fault server, which reviews tokens at the API server as the sidecar does.
package plugin

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/cli"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
	"github.com/cbt-populator/cbt-populator/test/fakes"
)

const (
	deadline = time.Minute
	capacity = 10 << 20
	audience = "cbt-test"
)

func TestMain(m *testing.M) {
	kubeaccess.Silence()
	os.Exit(apiserver.Main(m))
}

// world is a namespace with two snapshots of a volume, on a driver of its own with a metadata service.
type world struct {
	*testing.T
	client.Client
	server  *apiserver.Server
	service *fakes.Server
	ns      string
	driver  string
}

func newWorld(t *testing.T) *world {
	t.Parallel()
	t.Helper()
	server := apiserver.Shared(t)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, storagev1.AddToScheme, rbacv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme,
		v1alpha1.AddToScheme, snapshotv1.AddToScheme, metadatav1.AddToScheme,
	} {
		utilruntime.Must(add(scheme))
	}
	admin, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "plugin-"}}
	if err := admin.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Client: admin, server: server, ns: ns.Name, driver: ns.Name + ".csi.example"}
	w.create(&corev1.ServiceAccount{ObjectMeta: w.meta("default")})
	w.allow("default", "system:serviceaccount:"+w.ns+":default", rbacv1.PolicyRule{
		APIGroups: []string{"snapshot.storage.k8s.io"}, Resources: []string{"volumesnapshots"}, Verbs: []string{"get"},
	})
	w.snapshot("monday", "monday-handle")
	w.snapshot("tuesday", "tuesday-handle")
	w.serve(fakes.Config{})
	return w
}

// serve starts the driver's metadata service.
func (w *world) serve(cfg fakes.Config) {
	w.Helper()
	cfg.Admit = w.admit
	cfg.Volume = volume(w.ns)
	server, err := fakes.Start(cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(server.Stop)
	w.service = server
	w.create(&metadatav1.SnapshotMetadataService{
		ObjectMeta: metav1.ObjectMeta{Name: w.driver},
		Spec:       metadatav1.SnapshotMetadataServiceSpec{Address: server.Address(), CACert: server.CA(), Audience: audience},
	})
}

// volume has 300 changed blocks, more than one message holds.
func volume(ns string) fakes.Volume {
	v := fakes.Volume{Namespace: ns, Target: "tuesday", Base: "monday-handle", Capacity: capacity, Fixed: true}
	for i := range int64(capacity / 4096) {
		e := fakes.Extent{Offset: i * 4096, Size: 4096}
		v.Allocated = append(v.Allocated, e)
		if i%8 < 1 && i/8 < 300 {
			v.Delta = append(v.Delta, e)
		}
	}
	return v
}

// admit reviews a token and its owner's permission, as the sidecar does.
func (w *world) admit(ctx context.Context, token, namespace string) error {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}}}
	if err := w.Create(ctx, review); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if !review.Status.Authenticated {
		return status.Error(codes.Unauthenticated, "unauthenticated user")
	}
	access := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: review.Status.User.Username, Groups: review.Status.User.Groups,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "get", Group: snapshotv1.GroupName, Resource: "volumesnapshots"},
	}}
	if err := w.Create(ctx, access); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if !access.Status.Allowed {
		return status.Error(codes.PermissionDenied, "user does not have permissions to perform action")
	}
	return nil
}

func (w *world) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: w.ns, Name: name}
}

func (w *world) create(objects ...client.Object) {
	w.Helper()
	for _, o := range objects {
		if err := w.Create(w.Context(), o); err != nil {
			w.Fatalf("create %T %s: %v", o, o.GetName(), err)
		}
	}
}

func (w *world) writeStatus(o client.Object) {
	w.Helper()
	if err := w.Status().Update(w.Context(), o); err != nil {
		w.Fatalf("write status of %T %s: %v", o, o.GetName(), err)
	}
}

// snapshot makes a VolumeSnapshot that is ready.
func (w *world) snapshot(name, handle string) {
	w.Helper()
	s := &snapshotv1.VolumeSnapshot{
		ObjectMeta: w.meta(name),
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("data")}},
	}
	w.create(s)
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: w.ns + "-" + name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: w.driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr.To("volume")},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: w.ns, Name: name, UID: s.UID},
		},
	}
	w.create(content)
	content.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr.To(handle), RestoreSize: ptr.To[int64](capacity), ReadyToUse: ptr.To(true)}
	w.writeStatus(content)
	s.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr.To(content.Name), ReadyToUse: ptr.To(true)}
	w.writeStatus(s)
}

// allow gives user a role in the namespace.
func (w *world) allow(name, user string, rules ...rbacv1.PolicyRule) {
	w.Helper()
	w.create(
		&rbacv1.Role{ObjectMeta: w.meta(name), Rules: rules},
		&rbacv1.RoleBinding{
			ObjectMeta: w.meta(name), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
		})
}

// result is what a command left.
type result struct {
	code           int
	stdout, stderr string
}

// cbr runs a command as the administrator, in the namespace.
func (w *world) cbr(args ...string) result {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), deadline)
	defer cancel()
	return w.cbrWithin(ctx, args...)
}

func (w *world) cbrWithin(ctx context.Context, args ...string) result {
	return w.cbrHeard(ctx, &listener{}, args...)
}

func (w *world) cbrHeard(ctx context.Context, errs *listener, args ...string) result {
	var out bytes.Buffer
	args = append(args, "--kubeconfig", w.server.Kubeconfig, "-n", w.ns)
	code := cli.Execute(ctx, cli.Streams{In: strings.NewReader(""), Out: &out, Err: errs}, "test", args)
	return result{code, out.String(), errs.String()}
}

// listener keeps what is written to it, and closes heard once that contains word.
type listener struct {
	bytes.Buffer
	word  string
	heard chan struct{}
}

func (l *listener) Write(p []byte) (int, error) {
	n, err := l.Buffer.Write(p)
	if l.heard != nil && strings.Contains(l.String(), l.word) {
		close(l.heard)
		l.heard = nil
	}
	return n, err
}

// must fails the test unless the command succeeded.
func (r result) must(t *testing.T) result {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return r
}

// refused fails the test unless the command failed with that code and words.
func (r result) refused(t *testing.T, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("%q is missing from:\n%s", word, r.stderr)
		}
	}
}

// newRange makes a ChangedBlockRange.
func (w *world) newRange(name string, change ...func(*v1alpha1.ChangedBlockRange)) *v1alpha1.ChangedBlockRange {
	w.Helper()
	cbr := &v1alpha1.ChangedBlockRange{
		ObjectMeta: w.meta(name),
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: "monday", ToVolumeSnapshotName: "tuesday"},
	}
	for _, c := range change {
		c(cbr)
	}
	w.create(cbr)
	return cbr
}

// resolved writes what the controller finds.
func (w *world) resolved(cbr *v1alpha1.ChangedBlockRange) {
	w.Helper()
	cbr.Status.Driver, cbr.Status.FromSnapshotHandle, cbr.Status.ToSnapshotHandle = w.driver, "monday-handle", "tuesday-handle"
	cbr.Status.FromRestoreSizeBytes, cbr.Status.ToRestoreSizeBytes = ptr.To[int64](capacity), ptr.To[int64](capacity)
	w.condition(cbr, v1alpha1.ConditionSnapshotsResolved, metav1.ConditionTrue, v1alpha1.ReasonResolved, "everything was found")
}

// condition sets a condition and writes the status.
func (w *world) condition(cbr *v1alpha1.ChangedBlockRange, kind string, is metav1.ConditionStatus, reason, message string) {
	w.Helper()
	meta.SetStatusCondition(&cbr.Status.Conditions, metav1.Condition{Type: kind, Status: is, Reason: reason, Message: message, ObservedGeneration: cbr.Generation})
	cbr.Status.ObservedGeneration = cbr.Generation
	w.writeStatus(cbr)
}

// clusterMeta names an object of the cluster after the namespace.
func (w *world) clusterMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: w.ns + "-" + name}
}

func (w *world) get(name string, o client.Object) {
	w.Helper()
	if err := w.Get(w.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, o); err != nil {
		w.Fatalf("get %T %s: %v", o, name, err)
	}
}

// token makes a token of a service account.
func (w *world) token(account, audience string) string {
	w.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if err := w.SubResource("token").Create(w.Context(), &corev1.ServiceAccount{ObjectMeta: w.meta(account)}, request); err != nil {
		w.Fatal(err)
	}
	return request.Status.Token
}

func (w *world) readSnapshot(name string) *snapshotv1.VolumeSnapshot {
	w.Helper()
	var s snapshotv1.VolumeSnapshot
	w.get(name, &s)
	return &s
}

func quantity(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
