// Package boot starts the cluster, in the order in which its components need
// each other, and as much as possible at once.
package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/config"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/images"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/isolate"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/supervise"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/teardown"
)

// Options are what a cluster can be told at its start.
type Options struct {
	Layout layout.Layout
	// FeatureGates go to every Kubernetes component.
	FeatureGates string
	// DriverArgs go to the sample CSI driver.
	DriverArgs []string
}

// masked are host folders that components have compiled in. Inside, their
// place is taken by folders of the state folder.
var masked = map[string]string{
	"/run/containerd":     "run-containerd",
	"/var/lib/cni":        "var-lib-cni",
	"/var/lib/kubelet":    "var-lib-kubelet",
	"/var/log/containers": "var-log-containers",
}

// Supervise is the supervisor's process: it starts the cluster and serves the
// control socket until it is told to end. The components outlive it; `down`
// ends them.
func Supervise(opts Options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP)
	if err := teardown.RecordSupervisor(opts.Layout); err != nil {
		return err
	}
	sup, starting := supervise.New(ctx, opts.Layout)
	if err := sup.Serve(ctx, opts.Layout.Control()); err != nil {
		return err
	}
	err := start(ctx, starting, opts, sup)
	if cause := context.Cause(starting); err != nil && cause != nil && ctx.Err() == nil {
		// The first death ends everybody else's wait; it is the one to tell.
		err = cause
	}
	sup.Finish(err)
	// After a failure, too: `status` and `logs` still have something to say.
	<-ctx.Done()
	return nil
}

// start runs all steps. Steps end with the context starting; what lives on,
// the forwarding and the registry, ends with ctx.
func start(ctx, starting context.Context, opts Options, sup *supervise.Supervisor) error {
	s, creds, err := prepare(ctx, opts, sup)
	if err != nil {
		return err
	}
	phase, wait := errgroup.WithContext(starting)
	phase.Go(func() error {
		if err := sup.Start(wait, s.etcd()); err != nil {
			return err
		}
		return sup.Start(wait, s.apiserver())
	})
	phase.Go(func() error { return sup.Start(wait, s.containerd()) })
	phase.Go(func() error { return sup.Start(wait, s.driver(), opts.DriverArgs...) })
	phase.Go(func() error {
		return sup.Step("images", func() error { return images.Push(wait, layout.Registry, s.Bin("pause"), s.Bin("kubectl")) })
	})
	if err := phase.Wait(); err != nil {
		return err
	}
	phase, wait = errgroup.WithContext(starting)
	for _, c := range []supervise.Component{s.kubelet(), s.controllerManager(), s.scheduler(), s.proxy()} {
		phase.Go(func() error { return sup.Start(wait, c) })
	}
	phase.Go(func() error { return s.storage(wait, sup, creds) })
	if err := phase.Wait(); err != nil {
		return err
	}
	return s.settle(starting, sup)
}

// storage applies the cluster's objects and starts those who need them: kinds
// to watch, and roles without which their first look-ups fail and back off.
func (s set) storage(ctx context.Context, sup *supervise.Supervisor, creds *credentials) error {
	if err := sup.Step("objects", func() error { return s.apply(ctx, creds.metadataCA.Cert) }); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range []supervise.Component{s.snapshotController(), s.snapshotter(), s.provisioner(), s.metadataSidecar()} {
		g.Go(func() error { return sup.Start(ctx, c) })
	}
	return g.Wait()
}

// settle waits until the cluster takes pods and volumes.
func (s set) settle(ctx context.Context, sup *supervise.Supervisor) error {
	for _, last := range []struct {
		what  string
		check func(context.Context) error
	}{
		{"CSI driver registered,", s.client.DriverRegistered},
		{"node " + layout.NodeName, s.client.NodeReady},
		{"default service account", s.client.DefaultAccount},
	} {
		if err := sup.Step(last.what, func() error { return s.until(ctx, last.check) }); err != nil {
			return err
		}
	}
	return nil
}

func (s set) until(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, supervise.ReadyTimeout)
	defer cancel()
	return kube.Until(ctx, check)
}

// prepare makes everything that is there before the first component.
func prepare(ctx context.Context, opts Options, sup *supervise.Supervisor) (*set, *credentials, error) {
	l := opts.Layout
	masks := map[string]string{}
	for host, own := range masked {
		masks[host] = l.Path("masked", own)
	}
	if err := teardown.RecordHost(l, masks); err != nil {
		return nil, nil, err
	}
	if err := isolate.MakeCgroups(); err != nil {
		return nil, nil, err
	}
	if err := isolate.JoinCgroup(); err != nil {
		return nil, nil, err
	}
	ns, err := isolate.Enter(masks)
	if err != nil {
		return nil, nil, err
	}
	sup.Launch(ns.Start)
	creds, err := makeCredentials(l)
	if err != nil {
		return nil, nil, err
	}
	client, err := kube.New(creds.ca.Cert, creds.admin, ns.Dial)
	if err != nil {
		return nil, nil, err
	}
	s := &set{Layout: l, ns: ns, client: client, gates: gates(opts.FeatureGates)}
	if err := s.writeFiles(); err != nil {
		return nil, nil, err
	}
	if err := s.serve(ctx); err != nil {
		return nil, nil, err
	}
	return s, creds, nil
}

// serve opens the registry in both namespaces and the API server's port on the host.
func (s set) serve(ctx context.Context) error {
	outside, err := net.Listen("tcp", layout.Registry)
	if err != nil {
		return fmt.Errorf("registry: %w (does another program use this port?)", err)
	}
	inside, err := s.ns.Listen(layout.Registry)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	images.Serve(s.Path("registry"), outside, inside)
	return s.ns.Forward(ctx, layout.Loopback+":"+layout.APIPort)
}

// writeFiles writes the components' configuration and makes the folders that
// they expect.
func (s set) writeFiles() error {
	featureGates, err := s.gates.parse()
	if err != nil {
		return err
	}
	for _, dir := range []string{s.RegistrationDir(), s.Kubelet("plugins", layout.Driver), s.DriverState(), s.Path("registry")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
	}
	for path, render := range map[string]func() ([]byte, error){
		s.ConfigFile("containerd.toml"):                            func() ([]byte, error) { return config.Containerd(s.Layout) },
		s.Path("containerd", "certs.d", "docker.io", "hosts.toml"): func() ([]byte, error) { return config.RegistryHosts(), nil },
		s.Path("cni", "conf", "10-cbt.conflist"):                   func() ([]byte, error) { return config.CNI(s.Layout) },
		s.ConfigFile("kubelet.json"):                               func() ([]byte, error) { return config.Kubelet(s.Layout, featureGates) },
		s.ConfigFile("audit.json"):                                 func() ([]byte, error) { return config.Audit(layout.Audited) },
		s.ConfigFile("resolv.conf"):                                func() ([]byte, error) { return config.ResolvConf(), nil },
	} {
		data, err := render()
		if err != nil {
			return err
		}
		if err := config.Write(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// apply applies the custom resource definitions and, once these are served,
// everything else.
func (s set) apply(ctx context.Context, metadataCA []byte) error {
	crds, err := config.CRDs(ctx, s.Layout, s.gates.crossNamespace())
	if err != nil {
		return err
	}
	manifests, err := config.Manifests(s.Layout, metadataCA)
	if err != nil {
		return err
	}
	for _, doc := range crds {
		if err := s.client.Apply(ctx, doc); err != nil {
			return err
		}
	}
	for _, doc := range crds {
		if err := s.until(ctx, func(ctx context.Context) error { return s.client.Established(ctx, doc) }); err != nil {
			return err
		}
	}
	for _, doc := range manifests {
		if err := s.applyOnceServed(ctx, doc); err != nil {
			return err
		}
	}
	return nil
}

// applyOnceServed waits for the kind to be served: a definition is served a
// moment after it is established. Any other refusal is final.
func (s set) applyOnceServed(ctx context.Context, doc config.Document) error {
	var refused error
	err := s.until(ctx, func(ctx context.Context) error {
		err := s.client.Apply(ctx, doc)
		var status *kube.StatusError
		if errors.As(err, &status) && status.Code != http.StatusNotFound {
			refused = err
			return nil
		}
		return err
	})
	return errors.Join(err, refused)
}
