package machinery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	populator "github.com/kubernetes-csi/lib-volume-populator/v3/populator-machinery"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// stopTimeout bounds the wait for syncs that run when the controller stops. A sync makes a handful of API calls.
const stopTimeout = 20 * time.Second

// library runs the instances of lib-volume-populator, one for each queue. It is a leader-elected Runnable of the manager.
//
// The library was written to be the only thing in its process, so running it takes some care:
//
//   - It ends the process with klog.Fatalf when it cannot start. klog.OsExit is replaced so that this becomes an error.
//   - It installs a signal handler of its own and, on SIGTERM or SIGINT, closes the stop channel that it was given; if
//     that is closed already it panics. So the channel is closed here only once no signal can reach the library any more.
//   - When the stop channel closes it does not wait for the sync that runs. The queue does.
//   - It lists and watches the whole cluster once per instance. It is given the manager's informers instead, and of
//     ChangedBlockRanges, for which it makes an informer that cannot be replaced, no more than their names (connection).
type library struct {
	queues *claimQueues
	// foreign is closed when the instances for claims that refer to other namespaces may start; nil: never.
	foreign   <-chan struct{}
	cache     cache.Informers
	settings  librarySettings
	watchKeys func(context.Context) (stop func(), err error)
	// end is called when the manager stops.
	end func()
}

// librarySettings is what every instance is given.
type librarySettings struct {
	namespace  string
	connection *connection
	functions  populator.ProviderFunctionConfig
	mutators   populator.MutatorConfig
	recorder   record.EventRecorder
	metrics    *libraryMetrics
	// crossNamespace has the library follow references to other namespaces, by ReferenceGrants that it watches itself. It
	// waits for these to be served before it does anything.
	crossNamespace bool
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*library) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable. It returns when ctx has ended and no sync runs any more, or with an error when an
// instance gave up.
func (l *library) Start(ctx context.Context) error {
	logger := log.FromContext(ctx).WithName("library")
	defer l.settings.connection.close()
	context.AfterFunc(ctx, l.end)
	catchFatal()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	shared, err := newSharedInformers(ctx, l.cache)
	if err != nil {
		return err
	}
	// The watches come first: whatever they add waits in the queues.
	stopWatching, err := l.watchKeys(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer stopWatching()

	ended := make(chan error, len(l.queues.own)+len(l.queues.foreign))
	running := l.start(l.queues.own, l.settings, shared, ended)
	logger.Info("library is running", "shards", len(running))
	foreign := l.foreign
	for stopping := false; !stopping; {
		select {
		case <-foreign:
			foreign = nil
			settings := l.settings
			settings.crossNamespace = true
			running = append(running, l.start(l.queues.foreign, settings, shared, ended)...)
			logger.Info("library follows references to other namespaces", "shards", len(l.queues.foreign))
		case <-ctx.Done():
			stopping, err = true, nil
		case err = <-ended:
			stopping = true
			if err == nil && len(signals) == 0 {
				err = errors.New("lib-volume-populator ended by itself")
			}
		}
	}
	return errors.Join(err, stopAll(logger, l.queues.all(), running, signals)) //nolint:contextcheck // ctx has ended; stopping has a deadline of its own
}

// start starts an instance for each queue.
func (l *library) start(queues []*claimQueue, settings librarySettings, shared sharedInformers, ended chan<- error) []*instance {
	var started []*instance
	for _, queue := range queues {
		i := &instance{
			queue:     queue,
			shard:     shardLabel(queue, settings.crossNamespace),
			stop:      make(chan struct{}),
			done:      make(chan struct{}),
			injection: injection{informers: shared, registered: make(chan struct{})},
		}
		i.options = []informers.SharedInformerOption{i.injection.option()}
		started = append(started, i)
		go i.run(settings, ended)
		// One after the other: instances share state of the process while they start.
		select {
		case <-i.injection.registered:
		case <-i.done:
		}
	}
	return started
}

// stopAll ends all instances: first no new syncs, then the end of those that run, then the instances.
func stopAll(logger logr.Logger, queues []*claimQueue, running []*instance, signals chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	for _, q := range queues {
		if err := q.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("shard %d: wait for the sync that runs: %w", q.shard, err))
		}
	}
	// From here on no signal is delivered to anyone in this process. A signal that was delivered before is also in
	// `signals`, and the library closes its channels by itself.
	signal.Reset(os.Interrupt, syscall.SIGTERM)
	if len(signals) == 0 {
		for _, i := range running {
			close(i.stop)
		}
	}
	for _, i := range running {
		select {
		case <-i.done:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("shard %d: %w", i.queue.shard, ctx.Err()))
		}
	}
	logger.Info("library has stopped")
	return errors.Join(errs...)
}

// instance is one run of the library.
type instance struct {
	queue     *claimQueue
	shard     string
	stop      chan struct{}
	done      chan struct{}
	injection injection
	// options are in the instance, and not in the call only, so that they stay reachable as long as the library runs. It needs them
	// just at its start, but Go 1.26 finds them on its stack again later, after they were freed, and then ends the process with
	// "found pointer to free object".
	options []informers.SharedInformerOption
}

// run blocks until the library returns. A fatal error of the library is sent as an error.
func (i *instance) run(settings librarySettings, ended chan<- error) {
	var err error
	defer close(i.done)
	defer func() { ended <- err }()
	defer func() {
		switch p := recover().(type) {
		case nil:
		case fatalExit:
			err = fmt.Errorf("lib-volume-populator gave up with exit code %d; its reason is in the log", p.code)
		default:
			panic(p)
		}
	}()
	defer settings.metrics.close(i.shard)
	populator.RunControllerWithConfig(populator.VolumePopulatorConfig{
		HttpEndpoint:           settings.metrics.open(i.shard),
		MetricsPath:            libraryMetricsPath,
		MasterURL:              settings.connection.url(),
		Namespace:              settings.namespace,
		Prefix:                 libraryPrefix,
		Gk:                     schema.GroupKind{Group: v1alpha1.GroupName, Kind: v1alpha1.Kind},
		Gvr:                    v1alpha1.GroupVersion.WithResource(v1alpha1.Resource),
		ProviderFunctionConfig: &settings.functions,
		MutatorConfig:          &settings.mutators,
		SharedInformerOptions:  i.options,
		StopCh:                 i.stop,
		Workqueue:              i.queue,
		Recorder:               settings.recorder,
		CrossNamespace:         settings.crossNamespace,
	})
}

// fatalExit is the panic that stands for klog's exit of the process.
type fatalExit struct{ code int }

var catchFatalOnce sync.Once

// catchFatal turns the process exit of klog.Fatal into a panic, which run recovers. In any other goroutine it still ends
// the process.
func catchFatal() {
	catchFatalOnce.Do(func() {
		klog.OsExit = func(code int) { panic(fatalExit{code}) }
	})
}
