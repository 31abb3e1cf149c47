package lives

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/controller"
	"github.com/cbt-populator/cbt-populator/internal/machinery"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// world is a cluster without claims, in which the fake cluster and the lives play everything but the controller.
type world struct {
	*testing.T
	c      client.WithWatch
	seen   cache.Cache
	config *rest.Config
	scheme *runtime.Scheme
	fake   *fakecluster.Cluster
	cfg    machinery.Config
	// references is set if claims may refer to other namespaces.
	references bool
	// stop ends the controller; nil while none runs.
	stop func()

	mu    sync.Mutex
	lives map[string]*life // by namespace
}

var worlds atomic.Int32

func newWorld(t *testing.T) *world {
	t.Helper()
	server := apiserver.Shared(t)
	w := &world{
		T: t, config: unlimited(server.Config), scheme: newScheme(t), lives: map[string]*life{},
		cfg: machinery.Config{
			PopulatorNamespace: fmt.Sprintf("populator-%d", worlds.Add(1)),
			Shards:             32,
			MaxConcurrent:      1000,
			RetryBase:          50 * time.Millisecond,
			RetryMax:           time.Second,
			Pod:                machinery.PodConfig{Image: "populator:test"},
		},
	}
	var err error
	if w.c, err = client.NewWithWatch(w.config, client.Options{Scheme: w.scheme}); err != nil {
		t.Fatal(err)
	}
	if err := w.c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.cfg.PopulatorNamespace}}); err != nil {
		t.Fatal(err)
	}
	// What watches ends before the server does, and after the test's own context.
	ctx, cancel := context.WithCancel(context.Background())
	stopLooking := w.startLooking(ctx)
	if w.fake, err = fakecluster.Start(ctx, w.c, w.kubelet); err != nil {
		t.Fatal(err)
	}
	w.fake.SetHolds(fakecluster.Holds{Provision: w.holdsVolume, Bind: w.holdsBinding, Lose: w.holdsLoss})
	t.Cleanup(func() {
		w.stopController()
		err := w.fake.Stop()
		cancel()
		if err := errors.Join(err, stopLooking()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// unlimited is config without a limit of the client's own.
func unlimited(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.QPS = -1
	return config
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, v1alpha1.AddToScheme, smsv1beta1.AddToScheme, snapshotv1.AddToScheme, gatewayv1beta1.Install,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// startLooking follows what the lives look at, so that hundreds of them can look without asking the API server.
func (w *world) startLooking(ctx context.Context) (stop func() error) {
	w.Helper()
	var err error
	if w.seen, err = cache.New(w.config, cache.Options{Scheme: w.scheme, DefaultTransform: cache.TransformStripManagedFields()}); err != nil {
		w.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.seen.Start(ctx) }()
	wake := func(o any) {
		if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if l := w.lifeOf(o.(client.Object)); l != nil {
			l.wake()
		}
	}
	for _, object := range []client.Object{&corev1.PersistentVolumeClaim{}, &corev1.Pod{}, &corev1.PersistentVolume{}, &v1alpha1.ChangedBlockRange{}} {
		informer, err := w.seen.GetInformer(ctx, object)
		if err != nil {
			w.Fatal(err)
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: wake, UpdateFunc: func(_, o any) { wake(o) }, DeleteFunc: wake,
		}); err != nil {
			w.Fatal(err)
		}
	}
	return func() error { return <-ended }
}

// lifeOf returns the life that an object belongs to, or nil.
func (w *world) lifeOf(o client.Object) *life {
	namespace := o.GetNamespace()
	if claimed, ok := o.GetAnnotations()[v1alpha1.AnnotationClaimNamespace]; ok {
		namespace = claimed
	}
	if volume, ok := o.(*corev1.PersistentVolume); ok {
		namespace = volume.Spec.StorageClassName
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lives[namespace]
}

// startController starts the controller as cmd/controller does, but for leader election and the endpoints.
func (w *world) startController() {
	w.Helper()
	mgr, err := ctrl.NewManager(w.config, ctrl.Options{
		Scheme:     w.scheme,
		Logger:     log.Log,
		Cache:      machinery.CacheOptions(w.cfg.PopulatorNamespace),
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	if err != nil {
		w.Fatal(err)
	}
	cfg := w.cfg
	if w.references {
		if cfg.References, err = reference.New(w.config); err != nil {
			w.Fatal(err)
		}
		if err := mgr.Add(cfg.References); err != nil {
			w.Fatal(err)
		}
	}
	if err := errors.Join(
		controller.Setup(mgr, controller.Config{PopulatorNamespace: cfg.PopulatorNamespace, References: cfg.References}),
		machinery.Setup(mgr, cfg),
	); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
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

// stopController stops the controller if one runs.
func (w *world) stopController() {
	w.Helper()
	if w.stop != nil {
		w.stop()
	}
}

// atOnce bounds the lives that go on at the same time, so that each gets on quickly.
const atOnce = 16

// each lets all lives take a step, many at the same time, and returns those that came through it.
func (w *world) each(lives []*life, step func(*life) error) []*life {
	w.Helper()
	errs := make([]error, len(lives))
	var all sync.WaitGroup
	turns := make(chan struct{}, atOnce)
	for i, l := range lives {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			errs[i] = step(l)
		})
	}
	all.Wait()
	var left []*life
	for i, l := range lives {
		if errs[i] != nil {
			w.Errorf("%s: %v", l, errs[i])
			continue
		}
		left = append(left, l)
	}
	return left
}
