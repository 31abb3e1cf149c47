package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/boot"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/config"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/pki"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/procs"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/supervise"
)

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show every component; exit code 1 if one does not run or does not work",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			status, err := connected(cmd.Context(), l)
			if err != nil {
				return err
			}
			printStatus(status)
			if status.Healthy() {
				return nil
			}
			return unhealthy(l, status)
		},
	}
}

// connected returns the supervisor's status, or says in what state a machine
// without one is.
func connected(ctx context.Context, l layout.Layout) (supervise.Status, error) {
	status, err := supervise.Connect(l.Control()).Status(ctx)
	if err == nil {
		return status, nil
	}
	if _, err := os.Lstat(l.State); err != nil {
		return status, errors.New("no cluster runs here; start one with `cluster up`")
	}
	left, listErr := procs.Cluster()
	if listErr != nil {
		return status, listErr
	}
	return status, fmt.Errorf("the supervisor does not run (%w); %d processes of the cluster do; run `cluster down`", err, len(left))
}

func printStatus(status supervise.Status) {
	fmt.Printf("%s, supervisor %d, started %s ago, ready after %.1f s\n", status.Phase, status.Pid,
		time.Since(status.Started).Round(time.Second), status.ReadyIn.Seconds())
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "COMPONENT\tSTATE\tPID\tAGE\tRESTARTS\t")
	for _, c := range status.Components {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%s\n", c.Name, c.State, c.Pid, time.Since(c.Since).Round(time.Second),
			c.Restarts, strings.Join(append([]string{c.End, c.Trouble}, c.Args...), " "))
	}
	_ = table.Flush()
}

// unhealthy tells everything there is to tell about what does not work.
func unhealthy(l layout.Layout, status supervise.Status) error {
	if status.Phase == supervise.Starting {
		return errors.New("the cluster is starting")
	}
	var b strings.Builder
	if status.Phase == supervise.Failed {
		fmt.Fprintf(&b, "the cluster did not start: %s", status.Failure)
	}
	for _, c := range status.Sick() {
		if status.Phase == supervise.Failed && strings.HasPrefix(status.Failure, c.Name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		what := "is " + c.State
		switch c.State {
		case supervise.Died:
			what = "has died:"
		case supervise.Running:
			what = "runs, but does not work: " + c.Trouble
		}
		fmt.Fprintf(&b, "%s %s %s; the end of its log %s:\n%s\n", c.Name, what, c.End, l.Log(c.Name), supervise.Tail(l.Log(c.Name), 10))
		fmt.Fprintf(&b, "start it again with `cluster restart %s`", c.Name)
	}
	return errors.New(b.String())
}

func logsCommand() *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use:   "logs COMPONENT",
		Short: "Print a component's log; `supervisor` has one, too",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			path := l.Log(args[0])
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("%s has no log; there are logs of %s", args[0], strings.Join(logNames(l), ", "))
			}
			tail := []string{"-n", strconv.Itoa(lines), path}
			if follow {
				tail = append([]string{"-F"}, tail...)
			}
			return passThrough(cmd.Context(), "tail", tail...)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing")
	cmd.Flags().IntVarP(&lines, "lines", "n", 200, "how many of the last lines to print")
	return cmd
}

func logNames(l layout.Layout) []string {
	files, err := filepath.Glob(l.Log("*"))
	if err != nil || len(files) == 0 {
		return []string{"nothing"}
	}
	for i, file := range files {
		files[i] = strings.TrimSuffix(filepath.Base(file), ".log")
	}
	slices.Sort(files)
	return files
}

func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl [--] ARGS…",
		Short:              "Run kubectl against the cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			if len(args) > 0 && args[0] == "--" {
				args = args[1:]
			}
			return passThrough(cmd.Context(), l.Bin("kubectl"), append([]string{"--kubeconfig=" + l.Kubeconfig()}, args...)...)
		},
	}
}

func enterCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "enter -- COMMAND [ARGS…]",
		Short: "Run a command inside the cluster's network and mount namespaces",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			status, err := connected(cmd.Context(), l)
			if err != nil {
				return err
			}
			for _, c := range status.Components {
				if c.Pid != 0 {
					return passThrough(cmd.Context(), "nsenter", append([]string{"--target=" + strconv.Itoa(c.Pid), "--net", "--mount", "--"}, args...)...)
				}
			}
			return errors.New("no component runs whose namespaces could be entered")
		},
	}
}

func passThrough(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitError(exit.ExitCode())
	}
	return err
}

func restartCommand() *cobra.Command {
	var args []string
	var reset bool
	var signal string
	cmd := &cobra.Command{
		Use:   "restart COMPONENT",
		Short: "End a component, start it again and wait until it works",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			q := supervise.Request{Name: names[0], ReplaceArgs: reset || len(args) > 0, Args: args}
			return operate(cmd.Context(), q, signal, (*supervise.Client).Restart, "restarted")
		},
	}
	cmd.Flags().StringArrayVar(&args, "arg", nil, "argument beside the component's own, in place of earlier ones; repeatable")
	cmd.Flags().BoolVar(&reset, "reset-args", false, "drop arguments that were given earlier")
	cmd.Flags().StringVar(&signal, "signal", "TERM", "how to end it, such as KILL")
	return cmd
}

func killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:   "kill COMPONENT",
		Short: "End a component and leave it ended until `cluster restart`",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			return operate(cmd.Context(), supervise.Request{Name: names[0]}, signal, (*supervise.Client).Kill, "ended")
		},
	}
	cmd.Flags().StringVar(&signal, "signal", "KILL", "how to end it, such as TERM")
	return cmd
}

func operate(ctx context.Context, q supervise.Request, signal string, do func(*supervise.Client, context.Context, supervise.Request) error, done string) error {
	l, err := layout.Find()
	if err != nil {
		return err
	}
	q.Signal = unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(signal), "SIG"))
	if q.Signal == 0 {
		return fmt.Errorf("signal %q is unknown", signal)
	}
	if q.Signal != syscall.SIGKILL && q.Signal != syscall.SIGTERM && q.Signal != syscall.SIGINT && q.Signal != syscall.SIGQUIT {
		return fmt.Errorf("signal %s does not end a process; use TERM, INT, QUIT or KILL", signal)
	}
	if _, err := connected(ctx, l); err != nil {
		return err
	}
	started := time.Now()
	if err := do(supervise.Connect(l.Control()), ctx, q); err != nil {
		return err
	}
	fmt.Printf("%s %s %.1f s\n", q.Name, done, time.Since(started).Seconds())
	return nil
}

func rotateCommand() *cobra.Command {
	var newCA bool
	cmd := &cobra.Command{
		Use:   "rotate-cert",
		Short: "Give the snapshot-metadata sidecar a new serving certificate",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := layout.Find()
			if err != nil {
				return err
			}
			return rotate(cmd.Context(), l, newCA)
		},
	}
	cmd.Flags().BoolVar(&newCA, "new-ca", false, "sign it by a new authority, the only one that the SnapshotMetadataService names from then on")
	return cmd
}

// rotate writes the new certificate, restarts the sidecar so that it is used
// from now on, and publishes the authority.
func rotate(ctx context.Context, l layout.Layout, newCA bool) error {
	if _, err := connected(ctx, l); err != nil {
		return err
	}
	ca, err := pki.LoadAuthority(l.PKI("metadata-ca"))
	if newCA {
		if ca, err = pki.NewAuthority("cbt-cluster snapshot metadata " + time.Now().Format(time.RFC3339Nano)); err == nil {
			err = pki.WritePair(l.PKI("metadata-ca"), ca.Pair)
		}
	}
	if err != nil {
		return err
	}
	if err := boot.ServingCertificate(l, ca); err != nil {
		return err
	}
	sidecar := supervise.Request{Name: "csi-snapshot-metadata", Signal: syscall.SIGTERM}
	if err := supervise.Connect(l.Control()).Restart(ctx, sidecar); err != nil {
		return err
	}
	if err := publish(ctx, l, ca); err != nil {
		return err
	}
	fmt.Printf("the sidecar at %s has a new certificate, and the SnapshotMetadataService names its authority\n", layout.MetadataService)
	return nil
}

func publish(ctx context.Context, l layout.Layout, ca *pki.Authority) error {
	apiCA, err := pki.LoadAuthority(l.PKI("ca"))
	if err != nil {
		return err
	}
	admin, err := apiCA.Client("cbt-cluster-admin", "system:masters")
	if err != nil {
		return err
	}
	client, err := kube.New(apiCA.Cert, admin, (&net.Dialer{}).DialContext)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(l.Source, "test/cluster/manifests/metadata-service.yaml"))
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	docs, err := config.Render(string(text), ca.Cert)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for _, doc := range docs {
		if err := client.Apply(ctx, doc); err != nil {
			return err
		}
	}
	return nil
}
