// Command controller watches ChangedBlockRanges and fills the claims that refer to them. See docs/controller.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/go-logr/logr"
	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/config"
	"github.com/cbt-populator/cbt-populator/internal/controller"
	"github.com/cbt-populator/cbt-populator/internal/machinery"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/internal/tracing"
	"github.com/cbt-populator/cbt-populator/internal/version"
)

// leaseName is the lease for which the replicas compete, in the populator namespace.
const leaseName = "cbt-populator-controller"

type options struct {
	config                 *config.ControllerConfiguration
	configFile, kubeconfig string
	showVersion            bool
	letGo                  bool
	logger                 logr.Logger
	controllers            ctrlconfig.Controller // tests run more than one in a process
}

func main() {
	opts, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2)
	case opts.showVersion:
		fmt.Println(version.Get())
		return
	}
	ctrl.SetLogger(opts.logger)
	klog.SetLogger(opts.logger)
	work := run
	if opts.letGo {
		work = letGo
	}
	if err := work(ctrl.SetupSignalHandler(), opts); err != nil {
		opts.logger.Error(err, "controller failed")
		os.Exit(1)
	}
}

// connect returns how to reach the API server, and the types that it is asked for.
func connect(o *options) (*rest.Config, *runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(
		clientgoscheme.AddToScheme(scheme), snapshotv1.AddToScheme(scheme),
		smsv1beta1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
	); err != nil {
		return nil, nil, fmt.Errorf("build scheme: %w", err)
	}
	restConfig, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("configure API client: %w", err)
	}
	// The API server limits by priority and fairness; a limit of our own would only add delay.
	restConfig.QPS = -1
	return restConfig, scheme, nil
}

func run(ctx context.Context, o *options) error {
	restConfig, scheme, err := connect(o)
	if err != nil {
		return err
	}
	fill := o.config.Machinery()
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        o.logger,
		Cache:                         machinery.CacheOptions(fill.PopulatorNamespace),
		LeaderElection:                o.config.LeaderElection.Enabled,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       fill.PopulatorNamespace,
		LeaderElectionReleaseOnCancel: true,
		HealthProbeBindAddress:        o.config.HealthProbe.BindAddress,
		PprofBindAddress:              o.config.Profiling.BindAddress,
		Metrics:                       metricsserver.Options{BindAddress: o.config.Metrics.BindAddress},
		Controller:                    o.controllers,
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	if o.config.CrossNamespace.Enabled {
		if fill.References, err = reference.New(restConfig); err != nil {
			return fmt.Errorf("follow references to other namespaces: %w", err)
		}
		if err := mgr.Add(fill.References); err != nil {
			return fmt.Errorf("add the watch of ReferenceGrants to the manager: %w", err)
		}
	}
	if c := o.config.Tracing; c.Endpoint != "" {
		if fill.Tracer, err = tracing.New(ctx, c.Endpoint, c.Plain); err != nil {
			return err
		}
		if err := mgr.Add(fill.Tracer); err != nil {
			return fmt.Errorf("add the exporter of traces to the manager: %w", err)
		}
	}
	if err := errors.Join(
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("caches", synced(mgr.GetCache())),
		controller.Setup(mgr, controller.Config{PopulatorNamespace: fill.PopulatorNamespace, References: fill.References, Tracer: fill.Tracer}), //nolint:contextcheck // set up before there is anything to cancel
		machinery.Setup(mgr, fill), //nolint:contextcheck // set up before there is anything to cancel
	); err != nil {
		return err
	}
	o.logger.Info("starting", "version", version.Get().String(), "populatorNamespace", fill.PopulatorNamespace, "image", fill.Pod.Image)
	return mgr.Start(ctx)
}
