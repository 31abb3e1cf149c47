// Command csidriver is a CSI driver for tests and demonstrations: Block and Filesystem volumes, snapshots and the
// SnapshotMetadata service on one Linux node, over sparse files and loop devices. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/driver"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/registration"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/socket"
)

const version = "1.0.0"

type options struct {
	endpoint        string
	registrationDir string
	metadataType    string
	verbose         bool
	driver          driver.Config
}

func parseFlags(args []string) (options, error) {
	o := options{driver: driver.Config{Version: version}}
	fs := flag.NewFlagSet("csidriver", flag.ContinueOnError)
	fs.StringVar(&o.endpoint, "endpoint", "unix:///run/csidriver/csi.sock", "the socket of the CSI services, unix:// and an absolute path")
	fs.StringVar(&o.driver.Name, "driver-name", "sample-csi.cbt-populator.test", "the driver's name")
	fs.StringVar(&o.driver.NodeID, "node-id", "", "the node's name (required)")
	fs.StringVar(&o.driver.StateDir, "state-dir", "/var/lib/csidriver", "the folder of volumes and snapshots")
	fs.StringVar(&o.registrationDir, "registration-dir", "", "the kubelet's plugins_registry folder; empty: do not register")
	fs.StringVar(&o.metadataType, "block-metadata-type", "FIXED_LENGTH", "style of SnapshotMetadata streams, FIXED_LENGTH (4 KiB) or VARIABLE_LENGTH")
	fs.IntVar(&o.driver.MaxEntriesPerMessage, "max-entries-per-message", 256, fmt.Sprintf("entries in a SnapshotMetadata message at most, 1 to %d", driver.MaxEntriesLimit))
	fs.DurationVar(&o.driver.StreamDelay, "stream-delay", 0, "wait before each SnapshotMetadata message, for tests of interrupted streams")
	fs.BoolVar(&o.driver.NoDelta, "no-delta", false, "answer GetMetadataDelta as a driver whose changed block tracking is off")
	fs.Int64Var(&o.driver.MaxVolumeBytes, "max-volume-bytes", 1<<40, "the largest volume; images are sparse")
	fs.Int64Var(&o.driver.MaxVolumesPerNode, "max-volumes-per-node", 0, "reported to the CO; 0: no limit")
	fs.BoolVar(&o.verbose, "verbose", false, "log every call, not only those that fail")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	path, ok := strings.CutPrefix(o.endpoint, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return o, fmt.Errorf("endpoint %q is not unix:// and an absolute path", o.endpoint)
	}
	o.endpoint = path
	o.driver.MetadataType = csi.BlockMetadataType(csi.BlockMetadataType_value[o.metadataType])
	if o.driver.MetadataType == csi.BlockMetadataType_UNKNOWN {
		return o, fmt.Errorf("block metadata type %q is neither FIXED_LENGTH nor VARIABLE_LENGTH", o.metadataType)
	}
	return o, nil
}

func main() {
	o, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "csidriver:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "csidriver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if os.Geteuid() != 0 {
		return errors.New("root is needed, for loop devices and mounts")
	}
	unlock, err := driver.LockStateDir(o.driver.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	d, err := driver.New(o.driver, log)
	if err != nil {
		return err
	}
	l, err := socket.Listen(o.endpoint)
	if err != nil {
		return err
	}
	log.Info("listening", "endpoint", o.endpoint, "driver", o.driver.Name, "node", o.driver.NodeID)
	return serve(ctx, o, d, l, log)
}

// serve runs both servers until ctx ends, one fails, or the kubelet refuses the driver.
func serve(ctx context.Context, o options, d *driver.Driver, l net.Listener, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	go func() { ended <- d.Serve(ctx, l) }()
	servers := 1
	var refused <-chan error
	if o.registrationDir != "" {
		reg := registration.NewServer(o.driver.Name, o.endpoint, log)
		refused = reg.Refused()
		rl, err := socket.Listen(registration.SocketPath(o.registrationDir, o.driver.Name))
		if err != nil {
			cancel()
			return errors.Join(err, <-ended)
		}
		s := grpc.NewServer()
		registerapi.RegisterRegistrationServer(s, reg)
		servers++
		go func() { ended <- socket.Serve(ctx, s, rl, nil) }()
	}
	var err error
	select {
	case err = <-ended:
		servers--
	case err = <-refused:
	}
	cancel()
	for range servers {
		err = errors.Join(err, <-ended)
	}
	return err
}
