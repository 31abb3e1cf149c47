// Command bench measures cbt-populator beside its peers in one run and writes docs/performance.md. See `make bench`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/extents"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/peers"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// What controller-runtime would log is in the errors that it returns.
	log.SetLogger(logr.Discard())
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run runs a command line. The bench starts itself again with a command as the first word, for its child processes.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "serve":
			return serve(ctx, args[1:])
		case "peer":
			return peer(ctx, args[1:], stdout)
		}
	}
	return bench(ctx, args, stdout, stderr)
}

// serve streams a list until ctx ends.
func serve(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	config := f.String("config", "{}", "server.Config as JSON")
	dir := f.String("endpoint-dir", "", "folder for address and CA: serve what a sidecar serves")
	socket := f.String("csi-socket", "", "socket to listen on: serve what a CSI driver serves")
	if err := f.Parse(args); err != nil {
		return err
	}
	var cfg server.Config
	if err := json.Unmarshal([]byte(*config), &cfg); err != nil {
		return fmt.Errorf("read --config: %w", err)
	}
	if *socket != "" {
		return server.ServeDriver(ctx, cfg, *socket)
	}
	return server.ServeTLS(ctx, cfg, *dir)
}

// peer consumes one stream and prints what that took.
func peer(ctx context.Context, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("peer", flag.ContinueOnError)
	name := f.String("name", "", "which peer")
	dir := f.String("endpoint-dir", "", "folder with the server's address and CA")
	target := f.String("target", "", "file with a peers.Target as JSON, instead of --endpoint-dir")
	output := f.String("output", "", "file that the peer writes to")
	compare := f.Int64("compare", 0, "compare what was received with the list of so many extents")
	if err := f.Parse(args); err != nil {
		return err
	}
	p, err := peers.Find(*name)
	if err != nil {
		return err
	}
	t, err := findTarget(*dir, *target)
	if err != nil {
		return fmt.Errorf("find the server: %w", err)
	}
	var list *extents.List
	if *compare > 0 {
		list = extents.New(*compare)
	}
	result, err := p.Run(ctx, t, *output, list)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}

// findTarget reads the target from a file, if there is one, or from an endpoint folder.
func findTarget(dir, file string) (t peers.Target, err error) {
	if file == "" {
		return peers.ReadTarget(dir)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal(data, &t)
}
