package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"

	"k8s.io/klog/v2/textlogger"

	"github.com/cbt-populator/cbt-populator/internal/config"
)

// parse reads the command line, the configuration file that it names, and the environment. A flag beats the file, the file
// beats the environment. Every bad value is written to output.
func parse(args []string, env func(string) string, output io.Writer) (*options, error) {
	o := &options{config: config.Default()}
	if err := o.parseFlags(args, env, output); err != nil {
		return nil, err
	}
	if o.configFile != "" && !o.showVersion {
		loaded, err := config.Load(o.configFile)
		if err != nil {
			return nil, report(output, err)
		}
		// Once more, for the flags that are given to replace what is in the file.
		o = &options{config: loaded}
		if err := o.parseFlags(args, env, output); err != nil {
			return nil, err
		}
	}
	c := o.config
	c.Populator.Image = cmp.Or(c.Populator.Image, env("POPULATOR_IMAGE"))
	c.Namespace = cmp.Or(c.Namespace, env("POD_NAMESPACE"))
	o.logger = textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(c.Logging.Verbosity)))
	if o.showVersion {
		return o, nil
	}
	var errs []error
	if o.letGo {
		// No more is needed than to know where.
		if c.Namespace == "" {
			errs = append(errs, errors.New("--let-go needs --populator-namespace"))
		}
	} else {
		for _, err := range c.Validate() {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, report(output, errors.Join(errs...))
	}
	return o, nil
}

// parseFlags reads the command line over o.config, whose values are the defaults of the flags.
func (o *options) parseFlags(args []string, env func(string) string, output io.Writer) error {
	c := o.config
	fs := flag.NewFlagSet("controller", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.StringVar(&o.configFile, "config", "", "configuration file (docs/configuration.md); flags that are given replace what it says")
	fs.StringVar(&o.kubeconfig, "kubeconfig", env("KUBECONFIG"), "kubeconfig file (env KUBECONFIG); empty: the pod's service account")
	fs.StringVar(&c.Populator.Image, "populator-image", c.Populator.Image, "image of the populator (env POPULATOR_IMAGE); required")
	fs.StringVar(&c.Namespace, "populator-namespace", c.Namespace, "namespace of populator pods and prime claims (env POD_NAMESPACE); required")
	fs.StringVar(&c.Populator.ServiceAccountName, "worker-service-account", c.Populator.ServiceAccountName, "service account of populator pods")
	fs.IntVar(&c.Concurrency.Total, "max-concurrent-populations", c.Concurrency.Total, "populator pods that run at once, in all")
	fs.IntVar(&c.Concurrency.PerDriver, "max-concurrent-populations-per-driver", c.Concurrency.PerDriver, "populator pods that run at once for one CSI driver; 0: no bound of its own")
	fs.BoolVar(&c.CrossNamespace.Enabled, "cross-namespace", c.CrossNamespace.Enabled, "fill claims that refer to a ChangedBlockRange of another namespace, where a ReferenceGrant permits it")
	fs.IntVar(&c.Library.Shards, "library-shards", c.Library.Shards, "instances of the populator library; each makes up to 5 requests/s")
	fs.BoolVar(&c.LeaderElection.Enabled, "leader-elect", c.LeaderElection.Enabled, "run only while holding the lease "+leaseName)
	fs.StringVar(&c.HealthProbe.BindAddress, "health-probe-bind-address", c.HealthProbe.BindAddress, "address of /healthz and /readyz; 0: none")
	fs.StringVar(&c.Metrics.BindAddress, "metrics-bind-address", c.Metrics.BindAddress, "address of /metrics; 0: none")
	fs.StringVar(&c.Profiling.BindAddress, "profiling-bind-address", c.Profiling.BindAddress, "address of Go's profiles, /debug/pprof/; 0: none")
	fs.IntVar(&c.Logging.Verbosity, "v", c.Logging.Verbosity, "verbosity of the log; 1 also tells what each claim waits for")
	fs.BoolVar(&o.letGo, "let-go", false, "when no controller runs any more, take everything of this project off claims and ChangedBlockRanges, and exit: for uninstalling")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return report(output, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	return nil
}

// report writes err to output, as the flag package does with its own errors, and returns it.
func report(output io.Writer, err error) error {
	if _, failed := fmt.Fprintln(output, err); failed != nil {
		return errors.Join(err, failed)
	}
	return err
}
