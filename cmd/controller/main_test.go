package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

const (
	installedIn = "cbt-populator"
	driver      = "sample-csi.cbt-populator.test"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func noEnv(string) string { return "" }

func TestParse(t *testing.T) {
	env := map[string]string{"POPULATOR_IMAGE": "image:1", "POD_NAMESPACE": "ns"}
	for _, test := range []struct {
		name string
		args []string
		env  map[string]string
		bad  string
	}{
		{"environment", nil, env, ""},
		{"flags", []string{"--populator-image=i", "--populator-namespace=n", "--max-concurrent-populations=3"}, nil, ""},
		{"nothing", nil, nil, "populator.image"},
		{"no namespace", []string{"--populator-image=i"}, nil, "namespace"},
		{"bad number", []string{"--library-shards=-1"}, env, "library.shards"},
		{"unknown flag", []string{"--nonsense"}, env, "nonsense"},
		{"version needs nothing", []string{"--version"}, nil, ""},
		{"letting go needs no image", []string{"--let-go", "--populator-namespace=n"}, nil, ""},
		{"letting go needs a namespace", []string{"--let-go"}, nil, "--populator-namespace"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			o, err := parse(test.args, func(name string) string { return test.env[name] }, &out)
			if test.bad == "" && err != nil {
				t.Fatalf("unexpected error %v", err)
			}
			if test.bad != "" && (err == nil || !strings.Contains(out.String(), test.bad)) {
				t.Fatalf("error %v with output %q, want one about %q", err, out.String(), test.bad)
			}
			if err != nil || o.showVersion {
				return
			}
			if m := o.config.Machinery(); m.MaxConcurrentPerDriver != m.MaxConcurrent {
				t.Errorf("bound per driver %d, want %d", m.MaxConcurrentPerDriver, m.MaxConcurrent)
			}
		})
	}
}

func TestParseFile(t *testing.T) {
	const head = "apiVersion: config.cbt.storage.k8s.io/v1alpha1\nkind: ControllerConfiguration\n"
	env := func(name string) string {
		return map[string]string{"POPULATOR_IMAGE": "image:env", "POD_NAMESPACE": "from-env"}[name]
	}
	for _, test := range []struct {
		name, file string
		args       []string
		bad        []string
	}{
		{"file beats environment", "populator: {image: 'image:file'}\nconcurrency: {total: 7}\n", nil, nil},
		{"flag beats file", "populator: {image: 'image:other'}\nconcurrency: {total: 99}\n",
			[]string{"--populator-image=image:file", "--max-concurrent-populations=7"}, nil},
		{"a flag mends the file", "populator: {image: 'image:file'}\nconcurrency: {total: -1}\n", []string{"--max-concurrent-populations=7"}, nil},
		{"all bad values", "concurrency: {total: -1}\nretry: {baseDelay: soon}\n", []string{"--library-shards=0"},
			[]string{"concurrency.total", "retry.baseDelay", "library.shards"}},
		{"all unknown fields", "concurency: {}\nretry: {base: 1s}\n", nil, []string{"concurency", "retry.base", "controller.yaml"}},
		{"argument", "", []string{"stray"}, []string{"stray"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "controller.yaml")
			if err := os.WriteFile(path, []byte(head+test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			o, err := parse(append([]string{"--config=" + path}, test.args...), env, &out)
			if (err != nil) != (test.bad != nil) {
				t.Fatalf("error %v, output %s", err, out.String())
			}
			for _, want := range test.bad {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the output does not name %s:\n%s", want, out.String())
				}
			}
			if err != nil {
				return
			}
			if m := o.config.Machinery(); m.Pod.Image != "image:file" || m.MaxConcurrent != 7 || m.PopulatorNamespace != "from-env" {
				t.Errorf("image %q, %d at once, namespace %q", m.Pod.Image, m.MaxConcurrent, m.PopulatorNamespace)
			}
		})
	}
}

// TestControllerFillsClaim runs the whole controller against a real API server, with no more permissions than config/rbac
// grants, leader election included. The fake cluster plays kubelet, scheduler, provisioner and binder.
func TestControllerFillsClaim(t *testing.T) {
	server := apiserver.Start(t)
	c := newClient(t, server)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	install(ctx, t, c)

	fake := startFake(ctx, t, c)
	ended := startController(ctx, t, server)

	// The claim comes first, then its ChangedBlockRange, then the snapshots.
	create(ctx, t, c, claim("list"))
	create(ctx, t, c, &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "monday"},
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: "from", ToVolumeSnapshotName: "to"},
	})
	createSnapshot(ctx, t, c, "from")
	createSnapshot(ctx, t, c, "to")
	var cbr v1alpha1.ChangedBlockRange
	var filled corev1.PersistentVolumeClaim
	eventually(ctx, t, "the claim is bound and released, and the ChangedBlockRange is ready", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the controller ended: %v", err)
		default:
		}
		get(ctx, t, c, "default", "monday", &cbr)
		get(ctx, t, c, "default", "list", &filled)
		return filled.Status.Phase == corev1.ClaimBound && len(filled.Finalizers) == 1 && len(cbr.Finalizers) == 0 &&
			meta.IsStatusConditionTrue(cbr.Status.Conditions, v1alpha1.ConditionReady) && cbr.Status.PopulatedClaims == 1
	})
	if got := ptr.Deref(cbr.Status.EntryCount, -1); got != 3 {
		t.Errorf("the ChangedBlockRange tells of %d entries, want 3", got)
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(installedIn)); err != nil || len(pods.Items) != 0 {
		t.Errorf("%d pods are left, error %v", len(pods.Items), err)
	}
	if err := c.Delete(ctx, &cbr); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := errors.Join(<-ended, fake.Stop()); err != nil {
		t.Error(err)
	}
}

// TestControllerFollowsGrants fills a claim of another namespace with no more permissions than the component adds.
func TestControllerFollowsGrants(t *testing.T) {
	server := apiserver.Start(t)
	c := newClient(t, server)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	install(ctx, t, c, "components/cross-namespace/role.yaml")
	fake := startFake(ctx, t, c)
	ended := startController(ctx, t, server, "--cross-namespace")

	foreign := claim("list")
	foreign.Namespace, foreign.Spec.DataSourceRef.Namespace = "kube-public", ptr.To("default")
	create(ctx, t, c, foreign)
	create(ctx, t, c, &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "monday"},
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: "from", ToVolumeSnapshotName: "to"},
	})
	createSnapshot(ctx, t, c, "from")
	createSnapshot(ctx, t, c, "to")
	if err := server.InstallReferenceGrants(); err != nil {
		t.Fatal(err)
	}
	create(ctx, t, c, &gatewayv1beta1.ReferenceGrant{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "backups"},
		Spec: gatewayv1beta1.ReferenceGrantSpec{
			From: []gatewayv1beta1.ReferenceGrantFrom{{Kind: "PersistentVolumeClaim", Namespace: "kube-public"}},
			To:   []gatewayv1beta1.ReferenceGrantTo{{Group: v1alpha1.GroupName, Kind: v1alpha1.Kind}},
		},
	})
	var cbr v1alpha1.ChangedBlockRange
	eventually(ctx, t, "the claim of another namespace is bound and counted", func() bool {
		get(ctx, t, c, "default", "monday", &cbr)
		get(ctx, t, c, foreign.Namespace, foreign.Name, foreign)
		return foreign.Status.Phase == corev1.ClaimBound && len(foreign.Finalizers) == 1 && cbr.Status.PopulatedClaims == 1
	})
	cancel()
	if err := errors.Join(<-ended, fake.Stop()); err != nil {
		t.Error(err)
	}
}

// startController runs the controller as its service account until ctx ends.
func startController(ctx context.Context, t *testing.T, server *apiserver.Server, args ...string) (ended chan error) {
	t.Helper()
	opts, err := parse(append(args,
		"--populator-image=populator:test", "--populator-namespace="+installedIn, "--kubeconfig="+serviceAccountConfig(t, server),
		"--health-probe-bind-address=127.0.0.1:0", "--metrics-bind-address=0",
	), noEnv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	opts.controllers.SkipNameValidation = ptr.To(true)
	ended = make(chan error, 1)
	go func() { ended <- run(ctx, opts) }()
	return ended
}

// startFake starts the rest of the cluster, in which every populator succeeds.
func startFake(ctx context.Context, t *testing.T, c client.WithWatch) *fakecluster.Cluster {
	t.Helper()
	message, err := outcome.Result{
		Reason: outcome.Populated, Mode: "Delta", EntryCount: 3, ChangedBytes: 12288, NumBytesWritten: 512,
		ListDigest: "sha256:" + strings.Repeat("0", 64), BlockMetadataType: "FIXED_LENGTH", BlockSize: 4096, VolumeCapacityBytes: 10 << 20,
	}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	fake, err := fakecluster.Start(ctx, c, func(*corev1.Pod) *fakecluster.End {
		return &fakecluster.End{Phase: corev1.PodSucceeded, Message: string(message)}
	})
	if err != nil {
		t.Fatal(err)
	}
	return fake
}

func newClient(t *testing.T, server *apiserver.Server) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, v1alpha1.AddToScheme, smsv1beta1.AddToScheme, snapshotv1.AddToScheme, gatewayv1beta1.Install,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.NewWithWatch(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// install creates the namespace, the permissions of config/rbac and of more manifests in config, and the driver's metadata
// service.
func install(ctx context.Context, t *testing.T, c client.Client, more ...string) {
	t.Helper()
	create(ctx, t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: installedIn}})
	for _, name := range append(more, "rbac/role.yaml", "rbac/controller_bindings.yaml") {
		file, err := os.Open(filepath.Join("..", "..", "config", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := file.Close(); err != nil {
				t.Error(err)
			}
		}()
		for documents := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
			var o unstructured.Unstructured
			if err := documents.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if len(o.Object) > 0 {
				create(ctx, t, c, &o)
			}
		}
	}
	create(ctx, t, c, &smsv1beta1.SnapshotMetadataService{
		ObjectMeta: metav1.ObjectMeta{Name: driver},
		Spec:       smsv1beta1.SnapshotMetadataServiceSpec{Audience: "a", Address: "metadata.example:443", CACert: []byte("ca")},
	})
}

// serviceAccountConfig returns the path of a kubeconfig that acts as the controller's service account.
func serviceAccountConfig(t *testing.T, server *apiserver.Server) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(server.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate = "system:serviceaccount:" + installedIn + ":cbt-populator-controller"
		user.ImpersonateGroups = []string{"system:serviceaccounts", "system:authenticated"}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func claim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(fakecluster.Class),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")}},
			DataSourceRef:    &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "monday"},
		},
	}
}

// createSnapshot creates a snapshot that is ready.
func createSnapshot(ctx context.Context, t *testing.T, c client.Client, name string) {
	t.Helper()
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "content-" + name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr.To("volume")},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: "default", Name: name},
		},
	}
	snapshot := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("data")}},
	}
	create(ctx, t, c, snapshot)
	content.Spec.VolumeSnapshotRef.UID = snapshot.UID
	create(ctx, t, c, content)
	content.Status = &snapshotv1.VolumeSnapshotContentStatus{
		SnapshotHandle: ptr.To("handle-" + name), RestoreSize: ptr.To[int64](10 << 20), ReadyToUse: ptr.To(true),
	}
	snapshot.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content.Name, ReadyToUse: ptr.To(true)}
	if err := errors.Join(c.Status().Update(ctx, content), c.Status().Update(ctx, snapshot)); err != nil {
		t.Fatal(err)
	}
}

func create(ctx context.Context, t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	if err := c.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
}

func get(ctx context.Context, t *testing.T, c client.Client, namespace, name string, o client.Object) {
	t.Helper()
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		t.Fatal(err)
	}
}

func eventually(ctx context.Context, t *testing.T, what string, check func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, 4*time.Minute, true, func(context.Context) (bool, error) { return check(), nil })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
