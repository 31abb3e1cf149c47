package machinery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
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

	settling := newSettling(clock.RealClock{})
	gate := newGate(mgr.GetCache(), cfg.PopulatorNamespace, cfg.References, settling)
	queues := newClaimQueues(cfg.Shards, gate)
	settling.later = queues.addAfter

	fill := &filler{
		cfg:      &cfg,
		client:   mgr.GetClient(),
		live:     mgr.GetAPIReader(),
		slots:    newSlots(cfg.MaxConcurrent, cfg.MaxConcurrentPerDriver, queues.add),
		starts:   newStarts(),
		events:   newEvents(mgr.GetEventRecorder(recorderName), cfg.Tracer),
		refused:  newRefusals(clock.RealClock{}, cfg.Shards),
		clock:    clock.RealClock{},
		settling: settling,
		announce: queues.waitFor,
	}
	fill.deletes = newDeletes(fill.client, fill.events, fill.clock)
	waker := &waker{
		informers: mgr.GetCache(),
		reader:    mgr.GetCache(),
		namespace: cfg.PopulatorNamespace,
		slots:     fill.slots,
		refused:   fill.refused,
		wake:      queues.add,
		wakeAfter: queues.addLater,
	}
	metrics := newLibraryMetrics()
	if err := metrics.register(cfg.Metrics); err != nil {
		return err
	}
	connection, err := openConnection(mgr.GetConfig())
	if err != nil {
		return fmt.Errorf("connect the populator library: %w", err)
	}
	library := &library{
		queues:  queues,
		foreign: cfg.References.Ready(),
		cache:   mgr.GetCache(),
		settings: librarySettings{
			namespace:  cfg.PopulatorNamespace,
			connection: connection,
			functions:  fill.functions(),
			mutators:   primeMutator(&cfg, mgr.GetCache(), settling),
			recorder:   libraryRecorder{events: fill.events, refused: fill.refused, settling: settling, later: queues.addAfter, wait: queues.waitFor},
			metrics:    metrics,
		},
		watchKeys: waker.start,
		end:       gate.end,
	}
	if err := mgr.Add(library); err != nil {
		return fmt.Errorf("add the populator library to the manager: %w", err)
	}
	if err := mgr.AddHealthzCheck("library", alive(queues.all())); err != nil {
		return fmt.Errorf("add the health check of the populator library: %w", err)
	}
	return setupControllers(mgr, &cfg, fill, queues)
}

// stuckAfter is how long one sync may run. The API client gives up long before that.
const stuckAfter = 5 * time.Minute

// alive is the check behind /healthz that has the kubelet restart a controller in which a sync hangs.
func alive(queues []*claimQueue) healthz.Checker {
	return func(*http.Request) error {
		var errs []error
		for _, q := range queues {
			errs = append(errs, q.stuck(stuckAfter))
		}
		return errors.Join(errs...)
	}
}

func setupControllers(mgr ctrl.Manager, cfg *Config, fill *filler, queues *claimQueues) error {
	release := &releaser{
		client:    mgr.GetClient(),
		live:      mgr.GetAPIReader(),
		namespace: cfg.PopulatorNamespace,
		slots:     fill.slots,
		starts:    fill.starts,
		events:    fill.events,
		refused:   fill.refused,
		deletes:   fill.deletes,

		references: cfg.References,
	}
	if err := release.setup(mgr); err != nil {
		return err
	}
	foreign := &foreignClaims{client: mgr.GetClient(), references: cfg.References, events: fill.events, namespace: cfg.PopulatorNamespace, wake: queues.add}
	if err := foreign.setup(mgr); err != nil {
		return err
	}
	endpoint := &endpointReconciler{client: mgr.GetClient(), namespace: cfg.PopulatorNamespace}
	return endpoint.setup(mgr)
}
