// Command controller watches ChangedBlockRanges and fills the claims that refer to them. See docs/controller.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/go-logr/logr"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/errors"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/controller"
	"github.com/cbt-populator/cbt-populator/internal/machinery"
	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
)

// leaseName is the lease for which the replicas compete, in the populator namespace.
const leaseName = "cbt-populator-controller"

type options struct {
	machinery                machinery.Config
	leaderElect, showVersion bool
	probeAddr, metricsAddr   string
	logger                   logr.Logger
	controllers              config.Controller // tests run more than one in a process
}

func main() {
	opts, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	switch {
	case err == flag.ErrHelp:
		return
	case err != nil:
		os.Exit(2)
	case opts.showVersion:
		fmt.Println(version())
		return
	}
	ctrl.SetLogger(opts.logger)
	klog.SetLogger(opts.logger)
	if err := run(ctrl.SetupSignalHandler(), opts); err != nil {
		opts.logger.Error(err, "controller failed")
		os.Exit(1)
	}
}

func parse(args []string, env func(string) string, output io.Writer) (*options, error) {
	var o options
	o.machinery.Default()
	m := &o.machinery
	fs := flag.NewFlagSet("controller", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.StringVar(&m.Pod.Image, "populator-image", env("POPULATOR_IMAGE"), "image of the populator (env POPULATOR_IMAGE); required")
	fs.StringVar(&m.PopulatorNamespace, "populator-namespace", env("POD_NAMESPACE"), "namespace of populator pods and prime claims (env POD_NAMESPACE); required")
	fs.StringVar(&m.Pod.ServiceAccount, "worker-service-account", m.Pod.ServiceAccount, "service account of populator pods")
	fs.StringVar(&m.Kubeconfig, "kubeconfig", env("KUBECONFIG"), "kubeconfig file (env KUBECONFIG); empty: the pod's service account")
	fs.IntVar(&m.MaxConcurrent, "max-concurrent-populations", m.MaxConcurrent, "populator pods that run at once, in all")
	fs.IntVar(&m.MaxConcurrentPerDriver, "max-concurrent-populations-per-driver", 0, "populator pods that run at once for one CSI driver (0: no bound of its own)")
	fs.IntVar(&m.Shards, "library-shards", m.Shards, "instances of the populator library; each makes up to 5 requests/s")
	fs.BoolVar(&o.leaderElect, "leader-elect", true, "run only while holding the lease "+leaseName)
	fs.StringVar(&o.probeAddr, "health-probe-bind-address", ":8081", "address of /healthz and /readyz")
	fs.StringVar(&o.metricsAddr, "metrics-bind-address", ":8080", "address of /metrics; 0: none")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	logConfig := textlogger.NewConfig()
	fs.Func("v", "verbosity of the log; 1 also tells what each claim waits for", logConfig.Verbosity().Set)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if m.MaxConcurrentPerDriver == 0 {
		m.MaxConcurrentPerDriver = m.MaxConcurrent
	}
	o.logger = textlogger.NewLogger(logConfig)
	if err := m.Validate(); err != nil && !o.showVersion {
		fmt.Fprintln(output, err)
		return nil, err
	}
	return &o, nil
}

func run(ctx context.Context, o *options) error {
	scheme := runtime.NewScheme()
	if err := errors.NewAggregate([]error{
		clientgoscheme.AddToScheme(scheme), snapshotv1.AddToScheme(scheme),
		smsv1beta1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
	}); err != nil {
		return fmt.Errorf("build scheme: %w", err)
	}
	// The same way in which the library makes its client.
	restConfig, err := clientcmd.BuildConfigFromFlags("", o.machinery.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configure API client: %w", err)
	}
	// The API server limits by priority and fairness; a limit of our own would only add delay.
	restConfig.QPS = -1
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        o.logger,
		Cache:                         machinery.CacheOptions(o.machinery.PopulatorNamespace),
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.machinery.PopulatorNamespace,
		LeaderElectionReleaseOnCancel: true,
		HealthProbeBindAddress:        o.probeAddr,
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddr},
		Controller:                    o.controllers,
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	if err := errors.NewAggregate([]error{
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("ping", healthz.Ping),
		controller.Setup(mgr, controller.Config{PopulatorNamespace: o.machinery.PopulatorNamespace}),
		machinery.Setup(mgr, o.machinery),
	}); err != nil {
		return err
	}
	o.logger.Info("starting", "version", version(), "populatorNamespace", o.machinery.PopulatorNamespace, "image", o.machinery.Pod.Image)
	return mgr.Start(ctx)
}

// version is the module's version and the commit that the go command recorded in the binary.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v
}
