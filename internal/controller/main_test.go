package controller

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2/textlogger"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// populatorNamespace is the namespace that config/manager makes.
const populatorNamespace = "cbt-populator"

// deadline bounds every wait. Nothing in the reconciler works by the clock, so whatever happens within it was woken.
const deadline = 2 * time.Minute

func TestMain(m *testing.M) {
	ctrl.SetLogger(textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(os.Stderr))))
	code := apiserver.Main(m)
	os.Exit(code)
}

func testScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, storagev1.AddToScheme, eventsv1.AddToScheme, v1alpha1.AddToScheme, snapshotv1.AddToScheme, metadatav1.AddToScheme,
	} {
		utilruntime.Must(add(scheme))
	}
	return scheme
}

// cluster is a namespace of its own on an API server, on which the manifests of config/default are installed. The
// reconciler runs there with exactly the permissions that they give it.
type cluster struct {
	*testing.T
	client.Client
	server    *apiserver.Server
	namespace string
}

// populatorSays is what every populator answers whose pod has the address 127.0.0.1.
var populatorSays atomic.Pointer[outcome.Progress]

func answerProgress(w http.ResponseWriter, _ *http.Request) {
	data, err := populatorSays.Load().Marshal()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(data) // the poller asks again
}

// installed installs the manifests and starts the reconciler, once for all tests.
var installed sync.Once

func aCluster(t *testing.T) *cluster {
	t.Helper()
	server := apiserver.Shared(t)
	admin, err := client.New(server.Config, client.Options{Scheme: testScheme()})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{T: t, Client: admin, server: server}
	installed.Do(c.install)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "app-"}}
	c.create(namespace)
	c.namespace = namespace.Name
	return c
}

func (c *cluster) install() {
	manifests := c.kubectl("", "kustomize", "../../config/default")
	c.kubectl(manifests, "apply", "--server-side", "--force-conflicts", "-f", "-")

	config := rest.CopyConfig(c.server.Config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + populatorNamespace + ":cbt-populator-controller",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + populatorNamespace, "system:authenticated"},
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:  testScheme(),
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {Namespaces: map[string]cache.Config{populatorNamespace: {}}},
		}},
	})
	if err != nil {
		c.Fatal(err)
	}
	populator := httptest.NewServer(http.HandlerFunc(answerProgress))
	c.server.BeforeStop(populator.Close)
	if err := Setup(mgr, Config{PopulatorNamespace: populatorNamespace, ProgressPort: portOf(c.T, populator)}); err != nil {
		c.Fatal(err)
	}
	// It ends with the server, not with the first test.
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := mgr.Start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "manager:", err)
			os.Exit(1)
		}
	}()
	c.server.BeforeStop(func() {
		stop()
		<-ended
	})
}

// kubectl runs the kubectl beside the API server's binary.
func (c *cluster) kubectl(stdin string, args ...string) string {
	c.Helper()
	dir := os.Getenv(apiserver.AssetsVariable)
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	cmd := exec.Command(filepath.Join(dir, "kubectl"), append([]string{"--kubeconfig", c.server.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func (c *cluster) create(object client.Object) {
	c.Helper()
	if err := c.Create(c.Context(), object); err != nil {
		c.Fatalf("create %T: %v", object, err)
	}
}

// change reads an object afresh, changes it and writes it; status says which part.
func change[T client.Object](c *cluster, object T, status bool, edit func(T)) {
	c.Helper()
	if err := c.Get(c.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		c.Fatal(err)
	}
	base := object.DeepCopyObject().(client.Object)
	edit(object)
	var err error
	if status {
		err = c.Status().Patch(c.Context(), object, client.MergeFrom(base))
	} else {
		err = c.Patch(c.Context(), object, client.MergeFrom(base))
	}
	if err != nil {
		c.Fatalf("change %T %s: %v", object, object.GetName(), err)
	}
}

// remove asks for the deletion of an object.
func (c *cluster) remove(object client.Object) {
	c.Helper()
	if err := c.Delete(c.Context(), object); client.IgnoreNotFound(err) != nil {
		c.Fatal(err)
	}
}

// until waits until holds says "", and fails with what it says otherwise.
func (c *cluster) until(what string, holds func(ctx context.Context) string) {
	c.Helper()
	missing := "never looked"
	err := wait.PollUntilContextTimeout(c.Context(), 20*time.Millisecond, deadline, true, func(ctx context.Context) (bool, error) {
		missing = holds(ctx)
		return missing == "", nil
	})
	if err != nil {
		c.Fatalf("%s: %v: %s", what, err, missing)
	}
}
