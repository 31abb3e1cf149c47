package machinery

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// deadline bounds every wait of the tests. It is far below the machinery's safety net, so that what is reached within it
// was reached because a watch woke someone.
const deadline = 4 * time.Minute

// server is the API server of all tests of this package; it starts with the first test that needs one.
var server = sync.OnceValues(func() (*apiserver.Server, error) {
	serverStarted.Store(true)
	return apiserver.New()
})

var serverStarted atomic.Bool

func TestMain(m *testing.M) {
	flag.Parse()
	logger := logr.Discard()
	if testing.Verbose() {
		logger = textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(1)))
	}
	log.SetLogger(logger)
	klog.SetLogger(logger)
	code := m.Run()
	if serverStarted.Load() {
		if s, err := server(); err == nil {
			if err := s.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// world is a cluster in which the fake cluster plays kubelet, scheduler, provisioner and binder, and the world itself plays
// the reconciler of ChangedBlockRanges.
type world struct {
	*testing.T
	ctx       context.Context
	c         client.WithWatch
	scheme    *runtime.Scheme
	server    *apiserver.Server
	fake      *fakecluster.Cluster
	cfg       Config
	namespace string
	stop      func()
	// transport, if not nil, wraps the controller's connections.
	transport func(http.RoundTripper) http.RoundTripper

	// resolve and record switch the parts of the reconciler.
	resolve, record atomic.Bool
	poke            chan struct{}
}

var worlds atomic.Int32

// newWorld makes two fresh namespaces, the sample metadata service, and starts everything but the controller.
func newWorld(t *testing.T, kubelet fakecluster.Kubelet) *world {
	t.Helper()
	s, err := server()
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, smsv1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.NewWithWatch(s.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := worlds.Add(1)
	w := &world{
		T: t, ctx: ctx, c: c, scheme: scheme, server: s,
		namespace: fmt.Sprintf("user-%d", n),
		poke:      make(chan struct{}, 1),
		cfg: Config{
			PopulatorNamespace: fmt.Sprintf("populator-%d", n),
			Shards:             2,
			RetryBase:          time.Second,
			Pod:                PodConfig{Image: "populator:test"},
		},
	}
	w.resolve.Store(true)
	w.record.Store(true)
	for _, namespace := range []string{w.namespace, w.cfg.PopulatorNamespace} {
		w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	}
	service := sampleService()
	service.UID = ""
	if err := c.Create(ctx, service); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	if w.fake, err = fakecluster.Start(ctx, c, kubelet); err != nil {
		t.Fatal(err)
	}
	reconciled := make(chan error, 1)
	go func() { reconciled <- w.playReconciler() }()
	t.Cleanup(func() {
		w.leaveNothing()
		if w.stop != nil {
			w.stop()
		}
		err := w.fake.Stop()
		cancel()
		if err = errors.Join(err, <-reconciled); err != nil {
			t.Error(err)
		}
	})
	return w
}

// startController starts a manager with the machinery; stopController, or the end of the test, stops it.
func (w *world) startController() {
	w.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", w.server.Kubeconfig)
	if err != nil {
		w.Fatal(err)
	}
	config.QPS = -1
	if w.transport != nil {
		config.Wrap(w.transport)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:     w.scheme,
		Logger:     log.Log,
		Cache:      CacheOptions(w.cfg.PopulatorNamespace),
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	if err != nil {
		w.Fatal(err)
	}
	if err := Setup(mgr, w.cfg); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	w.stop = func() {
		w.Helper()
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("controller: %v", err)
		}
		w.stop = nil
	}
}

// eventually waits until check holds.
func (w *world) eventually(what string, check func() bool) {
	w.Helper()
	err := wait.PollUntilContextTimeout(w.ctx, 20*time.Millisecond, deadline, true, func(context.Context) (bool, error) {
		return check(), nil
	})
	if err != nil {
		w.Fatalf("%s: not within %v\n%s", what, deadline, w.dump())
	}
}

// leaveNothing deletes the claims and checks that everything that was made for them goes with them. The next test relies
// on it: the controller fills the claims of all namespaces.
func (w *world) leaveNothing() {
	w.Helper()
	if w.stop == nil {
		w.startController()
	}
	if err := w.c.DeleteAllOf(w.ctx, &corev1.PersistentVolumeClaim{}, client.InNamespace(w.namespace)); err != nil {
		w.Error(err)
	}
	left := func() (n int) {
		for _, namespace := range []string{w.namespace, w.cfg.PopulatorNamespace} {
			n += len(w.claims(namespace))
		}
		return n + len(w.pods())
	}
	err := wait.PollUntilContextTimeout(w.ctx, 20*time.Millisecond, deadline, true, func(context.Context) (bool, error) {
		return left() == 0, nil
	})
	if err != nil {
		w.Errorf("after the claims were deleted, something is left for %v\n%s", deadline, w.dump())
	}
	for _, namespace := range []string{w.namespace, w.cfg.PopulatorNamespace} {
		for _, claim := range w.claims(namespace) {
			claim.Finalizers = nil
			if err := w.c.Update(w.ctx, &claim); client.IgnoreNotFound(err) != nil {
				w.Error(err)
			}
			w.remove(&claim)
		}
	}
}

func (w *world) claims(namespace string) []corev1.PersistentVolumeClaim {
	var claims corev1.PersistentVolumeClaimList
	if err := w.c.List(w.ctx, &claims, client.InNamespace(namespace)); err != nil && w.ctx.Err() == nil {
		w.Error(err)
	}
	return claims.Items
}

// dump tells what there is, for a failed test.
func (w *world) dump() string {
	var b strings.Builder
	for _, namespace := range []string{w.namespace, w.cfg.PopulatorNamespace} {
		for _, c := range w.claims(namespace) {
			fmt.Fprintf(&b, "claim %s/%s phase=%s volume=%q finalizers=%v deleting=%v\n", c.Namespace, c.Name, c.Status.Phase, c.Spec.VolumeName, c.Finalizers, c.DeletionTimestamp)
		}
	}
	for _, p := range w.pods() {
		fmt.Fprintf(&b, "pod %s phase=%s deleting=%v annotations=%v\n", p.Name, p.Status.Phase, p.DeletionTimestamp, p.Annotations)
	}
	for _, e := range w.eventsOf("") {
		fmt.Fprintf(&b, "event %s %s: %s\n", e.Regarding.Name, e.Reason, e.Note)
	}
	return b.String()
}

func (w *world) waitRunning(claim *corev1.PersistentVolumeClaim) *corev1.Pod {
	w.Helper()
	var pod *corev1.Pod
	w.eventually("a populator pod runs for "+claim.Name, func() bool {
		pod = w.pod(claim)
		return pod != nil && pod.Status.Phase == corev1.PodRunning
	})
	return pod
}

// waitFilled waits until the claim is bound and released, and checks that it has its own prime claim's volume.
func (w *world) waitFilled(claim *corev1.PersistentVolumeClaim) {
	w.Helper()
	w.eventually(claim.Name+" is bound and released", func() bool {
		return w.get(claim) && claim.Status.Phase == corev1.ClaimBound && !hasFinalizer(claim)
	})
	w.checkNothingLeft(claim)
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName}}
	if !w.get(volume) {
		w.Fatalf("volume %s of %s does not exist", claim.Spec.VolumeName, claim.Name)
	}
	if got, want := volume.Annotations[libraryPrefix+"/populated-from"], w.namespace+"/"+claim.Spec.DataSourceRef.Name; got != want {
		w.Errorf("volume %s was populated from %q, want %q", volume.Name, got, want)
	}
	if got, want := volume.Annotations[v1alpha1.AnnotationPopulatedFor], string(claim.UID); got != want {
		w.Errorf("volume %s was populated for %q, want %q", volume.Name, got, want)
	}
	if other, told := claim.Annotations[v1alpha1.AnnotationOtherVolume]; told {
		w.Errorf("claim %s, which was filled, is said to have the volume %s of somebody else", claim.Name, other)
	}
}

// waitGone deletes the claim and waits until it is gone.
func (w *world) waitGone(claim *corev1.PersistentVolumeClaim) {
	w.Helper()
	w.eventually(claim.Name+" is gone", func() bool { return !w.get(claim.DeepCopy()) })
	w.checkNothingLeft(claim)
}

// checkNothingLeft checks that no temporary object of a released claim exists: they are to be gone before the claim is
// released, so there is nothing to wait for.
func (w *world) checkNothingLeft(claim *corev1.PersistentVolumeClaim) {
	w.Helper()
	if pod := w.pod(claim); pod != nil {
		w.Errorf("pod %s is left although %s is released", pod.Name, claim.Name)
	}
	if prime := w.prime(claim); prime != nil {
		w.Errorf("prime claim %s is left although %s is released", prime.Name, claim.Name)
	}
}

func (w *world) eventsOf(claim string) []eventsv1.Event {
	var events eventsv1.EventList
	if err := w.c.List(w.ctx, &events, client.InNamespace(w.namespace)); err != nil && w.ctx.Err() == nil {
		w.Error(err)
	}
	if claim == "" {
		return events.Items
	}
	return slices.DeleteFunc(events.Items, func(e eventsv1.Event) bool { return e.Regarding.Name != claim })
}
