package main

import (
	"context"
	"fmt"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cbt-populator/cbt-populator/internal/machinery"
)

// letGoTimeout bounds the whole of it: a lease that its holder did not give back expires within seconds, and pods end within
// their grace period.
const letGoTimeout = 4 * time.Minute

// letGo waits until no controller holds the lease, and takes everything of this project off claims and ChangedBlockRanges.
func letGo(ctx context.Context, o *options) error {
	restConfig, scheme, err := connect(o)
	if err != nil {
		return err
	}
	live, err := client.New(restConfig, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make API client: %w", err)
	}
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        o.logger,
		LeaderElection:                o.config.LeaderElection.Enabled,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.config.Namespace,
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, letGoTimeout)
	defer cancel()
	done := false
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		if err := machinery.LetGo(log.IntoContext(ctx, o.logger), live, o.config.Namespace); err != nil {
			return err
		}
		done = true
		cancel()
		return nil
	})); err != nil {
		return fmt.Errorf("add the work to the manager: %w", err)
	}
	o.logger.Info("letting go", "populatorNamespace", o.config.Namespace)
	if err := mgr.Start(ctx); err != nil {
		return err
	}
	if !done {
		return fmt.Errorf("not done within %v: another controller holds the lease %s/%s, or see the log", letGoTimeout, o.config.Namespace, leaseName)
	}
	o.logger.Info("nothing of this project is left on claims and ChangedBlockRanges")
	return nil
}
