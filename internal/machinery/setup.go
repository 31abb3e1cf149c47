package machinery

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
)

// recorderName is the reporting controller of this package's events.
const recorderName = "cbt-populator"

// Setup adds the machinery to the manager: the library, the watches that wake it, and the controllers that keep endpoint
// ConfigMaps current and release claims. The manager's scheme must know the core and storage groups, ChangedBlockRanges and
// SnapshotMetadataServices; its cache must hold claims and StorageClasses of all namespaces (see CacheOptions).
func Setup(mgr ctrl.Manager, cfg Config) error {
	cfg.Default()
	if err := cfg.check(); err != nil {
		return fmt.Errorf("configuration of the populator machinery: %w", err)
	}
	if err := registerIndexes(context.Background(), mgr.GetFieldIndexer()); err != nil {
		return err
	}

	gate := &gate{cache: mgr.GetCache(), namespace: cfg.PopulatorNamespace}
	queues := make([]*claimQueue, cfg.Shards)
	for i := range queues {
		queues[i] = newClaimQueue(i, cfg.Shards, workqueue.NewTypedDelayingQueue[any](), gate.admit)
	}
	queueOf := func(key string) *claimQueue { return queues[shardOf(key, cfg.Shards)] }
	wake := func(claim types.NamespacedName) {
		key := claimKey(claim)
		queueOf(key).Add(key)
	}

	fill := &filler{
		cfg:      &cfg,
		client:   mgr.GetClient(),
		live:     mgr.GetAPIReader(),
		slots:    newSlots(cfg.MaxConcurrent, cfg.MaxConcurrentPerDriver, wake),
		starts:   newStarts(),
		events:   newEvents(mgr.GetEventRecorder(recorderName)),
		refused:  newRefusals(clock.RealClock{}),
		clock:    clock.RealClock{},
		announce: func(key string, d time.Duration) { queueOf(key).waitFor(key, d) },
	}
	waker := &waker{
		informers: mgr.GetCache(),
		reader:    mgr.GetCache(),
		namespace: cfg.PopulatorNamespace,
		slots:     fill.slots,
		refused:   fill.refused,
		wake:      wake,
	}
	library := &library{
		queues: queues,
		cache:  mgr.GetCache(),
		settings: librarySettings{
			namespace:  cfg.PopulatorNamespace,
			kubeconfig: cfg.Kubeconfig,
			functions:  fill.functions(),
			mutators:   primeMutator(&cfg, mgr.GetCache()),
			recorder:   libraryRecorder{events: fill.events, refused: fill.refused},
		},
		watchKeys: waker.start,
	}
	if err := mgr.Add(library); err != nil {
		return fmt.Errorf("add the populator library to the manager: %w", err)
	}
	return setupControllers(mgr, &cfg, fill)
}

func setupControllers(mgr ctrl.Manager, cfg *Config, fill *filler) error {
	release := &releaser{
		client:    mgr.GetClient(),
		live:      mgr.GetAPIReader(),
		namespace: cfg.PopulatorNamespace,
		slots:     fill.slots,
		starts:    fill.starts,
		events:    fill.events,
		refused:   fill.refused,
	}
	if err := release.setup(mgr); err != nil {
		return err
	}
	endpoint := &endpointReconciler{client: mgr.GetClient(), namespace: cfg.PopulatorNamespace}
	return endpoint.setup(mgr)
}
