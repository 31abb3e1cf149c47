// Command cluster builds, starts and ends a real Kubernetes on this machine,
// with a kubelet, a CSI driver, snapshots and the snapshot-metadata sidecar,
// from Go modules and Debian packages only.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newCommand().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	var exit exitError
	if errors.As(err, &exit) {
		os.Exit(int(exit))
	}
	fmt.Fprintln(os.Stderr, "cluster:", err)
	os.Exit(1)
}

// exitError is the exit code of a program that ran in our place, such as
// kubectl, and has had its say already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes with a sample CSI driver on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		buildCommand(), upCommand(), downCommand(), statusCommand(), logsCommand(), kubectlCommand(),
		restartCommand(), killCommand(), rotateCommand(), enterCommand(), superviseCommand(),
	)
	return root
}
