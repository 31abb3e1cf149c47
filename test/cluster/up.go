package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/boot"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/build"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/host"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/supervise"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/teardown"
)

func buildCommand() *cobra.Command {
	var only []string
	var force bool
	cmd := &cobra.Command{
		Use:   "build [component…]",
		Short: "Build the binaries into bin; one is reused until its pinned version changes",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			return buildComponents(cmd.Context(), l, append(only, args...), force)
		},
	}
	cmd.Flags().StringSliceVar(&only, "only", nil, "components to build, as beside the command")
	cmd.Flags().BoolVar(&force, "force", false, "build again what is current")
	return cmd
}

func buildComponents(ctx context.Context, l layout.Layout, names []string, force bool) error {
	components, err := build.Select(names)
	if err != nil {
		return err
	}
	_, err = unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	progress := &build.Progress{Out: os.Stdout, Terminal: err == nil}
	return build.Builder{Layout: l, Progress: progress, Force: force}.Build(ctx, components)
}

func upCommand() *cobra.Command {
	var opts boot.Options
	var skipBuild bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Install what is missing, build, start the cluster and wait until it is ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			opts.Layout = l
			if env := os.Getenv("CBT_CLUSTER_DRIVER_ARGS"); env != "" {
				opts.DriverArgs = append(strings.Fields(env), opts.DriverArgs...)
			}
			if err := errors.Join(host.Check(), boot.CheckGates(opts.FeatureGates)); err != nil {
				return err
			}
			return up(cmd.Context(), opts, skipBuild)
		},
	}
	cmd.Flags().StringVar(&opts.FeatureGates, "feature-gates", os.Getenv("CBT_CLUSTER_FEATURE_GATES"), "feature gates of the Kubernetes components, as NAME=true,… (env CBT_CLUSTER_FEATURE_GATES)")
	cmd.Flags().StringArrayVar(&opts.DriverArgs, "driver-arg", nil, "argument for the sample CSI driver; repeatable (env CBT_CLUSTER_DRIVER_ARGS, separated by spaces)")
	cmd.Flags().BoolVar(&skipBuild, "skip-build", false, "start the binaries in bin as they are")
	return cmd
}

func up(ctx context.Context, opts boot.Options, skipBuild bool) error {
	l := opts.Layout
	if running, err := alreadyUp(ctx, l); running || err != nil {
		return err
	}
	if err := host.Prepare(ctx, func(line string) { fmt.Println(line) }); err != nil {
		return err
	}
	if !skipBuild {
		if err := buildComponents(ctx, l, nil, false); err != nil {
			return err
		}
	}
	supervisor, err := spawn(opts)
	if err != nil {
		return err
	}
	return follow(ctx, l, supervisor)
}

// alreadyUp reports a cluster that runs, one that is starting, or the
// remains of one. It repairs nothing.
func alreadyUp(ctx context.Context, l layout.Layout) (bool, error) {
	if _, err := os.Lstat(l.State); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	client := supervise.Connect(l.Control())
	status, err := client.Status(ctx)
	if err != nil {
		return true, fmt.Errorf("%s holds the remains of a cluster whose supervisor does not run; run `cluster down`, then `cluster up`", l.State)
	}
	if status.Phase == supervise.Starting {
		fmt.Println("another `cluster up` is starting the cluster; following it")
		return true, follow(ctx, l, nil)
	}
	if !status.Healthy() {
		return true, unhealthy(l, status)
	}
	fmt.Printf("the cluster runs already, for %s\n", time.Since(status.Started).Round(time.Second))
	usage(l)
	return true, nil
}

// spawn starts the supervisor, detached from this terminal. Making the state
// folder is what decides between two that try at once.
func spawn(opts boot.Options) (*exec.Cmd, error) {
	l := opts.Layout
	if err := os.Mkdir(l.State, 0o755); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := os.Mkdir(l.Path("logs"), 0o755); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	log, err := os.OpenFile(l.Log("supervisor"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("supervisor: %w", err), log.Close())
	}
	args := []string{"supervise", "--feature-gates=" + opts.FeatureGates}
	for _, arg := range opts.DriverArgs {
		args = append(args, "--driver-arg="+arg)
	}
	cmd := exec.Command(exe, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	// The Go tool and its caches are looked up through the environment; PATH gains the system's folders.
	cmd.Env = append(os.Environ(), "CBT_CLUSTER_DIR="+l.State, "PATH="+os.Getenv("PATH")+":"+host.Path())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What our caller had open, such as a lock or a pipe that somebody reads to its end, is not the cluster's to keep.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("supervisor: mark open files: %w", err), log.Close())
	}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	return cmd, nil
}

// follow prints the start's progress until it is over. supervisor is nil for
// one that somebody else has spawned.
func follow(ctx context.Context, l layout.Layout, supervisor *exec.Cmd) error {
	died := make(chan error, 1)
	if supervisor != nil {
		go func() { died <- supervisor.Wait() }()
	}
	client := supervise.Connect(l.Control())
	connect, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := kube.Until(connect, func(ctx context.Context) error {
		select {
		case err := <-died:
			cancel()
			return fmt.Errorf("the supervisor ended (%w):\n%s", err, supervise.Tail(l.Log("supervisor"), 10))
		default:
		}
		_, err := client.Status(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var last supervise.Event
	err = client.Follow(ctx, func(e supervise.Event) {
		last = e
		if e.Kind != supervise.Failed {
			fmt.Println(e.Text)
		}
	})
	if ctx.Err() != nil {
		return errors.New("interrupted; the start goes on in the background: see `cluster status`, or end it with `cluster down`")
	}
	if err != nil {
		return err
	}
	if last.Kind == supervise.Failed {
		return fmt.Errorf("the cluster did not start: %s\nlook around with `cluster status` and `cluster logs COMPONENT`, then run `cluster down`", last.Text)
	}
	usage(l)
	return nil
}

func usage(l layout.Layout) {
	fmt.Printf(`
Use it:
  export KUBECONFIG=%s
  export KO_DOCKER_REPO=%s/cbt-populator KO_DEFAULTBASEIMAGE=%s/base   # ko … --insecure-registry
  %s get nodes,storageclasses,volumesnapshotclasses,snapshotmetadataservices
  %s status | logs COMPONENT | restart COMPONENT | down
`, l.Kubeconfig(), layout.Registry, layout.Registry, l.Bin("kubectl"), l.Bin("cluster"))
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the cluster and remove everything that it made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := host.Check(); err != nil {
				return err
			}
			l, err := layout.Find()
			if err != nil {
				return err
			}
			found := false
			started := time.Now()
			err = teardown.Down(cmd.Context(), l, func(format string, args ...any) {
				found = true
				fmt.Printf(format+"\n", args...)
			})
			if err != nil {
				return err
			}
			if !found {
				fmt.Println("no cluster runs here, and nothing is left of one")
				return nil
			}
			fmt.Printf("the cluster is gone %.1f s\n", time.Since(started).Seconds())
			return nil
		},
	}
}

func superviseCommand() *cobra.Command {
	var opts boot.Options
	cmd := &cobra.Command{
		Use:    "supervise",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			opts.Layout = l
			return boot.Supervise(opts)
		},
	}
	cmd.Flags().StringVar(&opts.FeatureGates, "feature-gates", "", "")
	cmd.Flags().StringArrayVar(&opts.DriverArgs, "driver-arg", nil, "")
	return cmd
}
