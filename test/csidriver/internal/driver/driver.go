// Package driver is the CSI driver: volumes are sparse image files on loop devices, snapshots are copies of them, and
// the SnapshotMetadata service compares the copies.
//
// The records on disk say what exists; what is attached and mounted is asked from the kernel each time. So the driver may
// be killed and started again at any moment, with volumes in use.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/ext4"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/image"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

const (
	// MinVolumeBytes is what smaller requests are rounded up to: a filesystem of this size still holds files.
	MinVolumeBytes = 1 << 20
	// MaxEntriesLimit bounds Config.MaxEntriesPerMessage so that a message stays below gRPC's default limit of
	// 4 MiB: an entry takes up to 24 bytes.
	MaxEntriesLimit = 100_000
)

// Config is what the driver is told at start.
type Config struct {
	// Name is the CSI driver's name.
	Name string
	// Version is the vendor version that GetPluginInfo reports.
	Version string
	NodeID  string
	// StateDir holds everything that must survive a restart.
	StateDir string
	// MetadataType is the style of the SnapshotMetadata streams.
	MetadataType csi.BlockMetadataType
	// MaxEntriesPerMessage bounds the entries of a SnapshotMetadata message, whatever the request asks for.
	MaxEntriesPerMessage int
	// NoDelta makes the driver one whose changed block tracking is off: it lists allocated blocks only.
	NoDelta bool
	// StreamDelay is waited before each SnapshotMetadata message.
	StreamDelay time.Duration
	// MaxVolumeBytes is the largest volume.
	MaxVolumeBytes int64
	// MaxVolumesPerNode is told to the CO; 0 leaves it to decide.
	MaxVolumesPerNode int64
}

// nameRule is the CSI specification's, for GetPluginInfoResponse.name.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?$`)

func (c Config) validate() error {
	switch {
	case !nameRule.MatchString(c.Name):
		return fmt.Errorf("driver name %q is not a CSI plugin name", c.Name)
	case c.NodeID == "":
		return errors.New("node ID is missing")
	case c.StateDir == "":
		return errors.New("state folder is missing")
	case c.MetadataType != csi.BlockMetadataType_FIXED_LENGTH && c.MetadataType != csi.BlockMetadataType_VARIABLE_LENGTH:
		return fmt.Errorf("block metadata type %s is neither FIXED_LENGTH nor VARIABLE_LENGTH", c.MetadataType)
	case c.MaxEntriesPerMessage < 1 || c.MaxEntriesPerMessage > MaxEntriesLimit:
		return fmt.Errorf("%d entries per message are not between 1 and %d", c.MaxEntriesPerMessage, MaxEntriesLimit)
	case c.StreamDelay < 0:
		return fmt.Errorf("stream delay %s is negative", c.StreamDelay)
	case c.MaxVolumeBytes < MinVolumeBytes:
		return fmt.Errorf("largest volume of %d bytes is below the smallest of %d", c.MaxVolumeBytes, MinVolumeBytes)
	case c.MaxVolumesPerNode < 0:
		return fmt.Errorf("%d volumes per node are less than none", c.MaxVolumesPerNode)
	}
	return nil
}

// Driver implements the CSI services.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedSnapshotMetadataServer

	cfg   Config
	log   *slog.Logger
	store *store.Store
	locks keyedLocks

	// life ends with the driver. Copies run under it rather than under their request: a request that timed out is
	// repeated, and finds the copy made.
	life    context.Context
	endLife context.CancelFunc
}

// New opens the state folder and repairs what a killed driver left behind.
func New(cfg Config, log *slog.Logger) (*Driver, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := makeStateDir(dir); err != nil {
		return nil, err
	}
	// The kernel reports backing files without symbolic links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	st, err := store.Open(dir)
	if err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, log: log, store: st}
	d.life, d.endLife = context.WithCancel(context.Background())
	for _, v := range st.Volumes.List() {
		if v.Freezing == "" {
			continue
		}
		if err := d.thaw(v); err != nil {
			return nil, err
		}
		log.Info("thawed a filesystem that was frozen for a snapshot", "volume", v.ID, "path", v.Freezing)
	}
	return d, nil
}

// thaw ends the freeze that v's record announces.
func (d *Driver) thaw(v store.Volume) error {
	mounted, err := isMountPoint(v.Freezing)
	if err != nil {
		return err
	}
	if mounted {
		if err := ext4.Thaw(v.Freezing); err != nil {
			return err
		}
	}
	v.Freezing = ""
	return d.store.Volumes.Update(v)
}

// Register adds the driver's services to a gRPC server.
func (d *Driver) Register(s grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	csi.RegisterSnapshotMetadataServer(s, d)
}

// Close ends copies that are running; their requests then fail. Volumes stay attached and mounted.
func (d *Driver) Close() { d.endLife() }

// failed turns an error of the store, the kernel or a tool into a status; a status stays as it is.
func failed(err error, format string, args ...any) error {
	what, cause := fmt.Sprintf(format, args...), err.Error()
	code := codes.Internal
	var own interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &own):
		code = own.GRPCStatus().Code()
		if _, direct := err.(interface{ GRPCStatus() *status.Status }); direct { // One that is wrapped has more to say.
			cause = own.GRPCStatus().Message()
		}
	case errors.Is(err, store.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = codes.ResourceExhausted
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Unavailable
	}
	return status.Errorf(code, "%s: %s", what, cause)
}

// keyedLocks serializes operations on the same object.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits until no other holder of key remains. It fails with ABORTED, the CSI code for a pending operation on the
// same object, when ctx ends first.
func (l *keyedLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[string]chan struct{}{}
		}
		released, taken := l.held[key]
		if !taken {
			mine := make(chan struct{})
			l.held[key] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
			return nil, status.Errorf(codes.Aborted, "another operation on %s is pending", key)
		}
	}
}

// roundUp rounds a size up to whole blocks.
func roundUp(bytes int64) int64 {
	return (bytes + image.BlockBytes - 1) / image.BlockBytes * image.BlockBytes
}
