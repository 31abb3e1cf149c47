// Command kubectl-cbr puts lists of changed blocks into the hands of backup tools: as the kubectl plugin `kubectl cbr`
// and as a plain command. docs/kubectl-cbr.md describes its commands and exit codes.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cbt-populator/cbt-populator/internal/cli"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
	"github.com/cbt-populator/cbt-populator/internal/version"
)

func main() {
	kubeaccess.Silence()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	// A reader of standard output that goes away shall be an error that the command can clean up after.
	signal.Ignore(syscall.SIGPIPE)
	streams := cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	os.Exit(cli.Execute(ctx, streams, version.Get().String(), os.Args[1:]))
}
