package driver_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/driver"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/leftover"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/socket"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "These tests must run as root: they attach loop devices and mount filesystems.")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const mib = 1 << 20

// harness is a driver that serves on a real socket.
type harness struct {
	t   *testing.T
	cfg driver.Config
	dir string

	csi.ControllerClient
	csi.NodeClient
	csi.IdentityClient
	csi.SnapshotMetadataClient

	conn *grpc.ClientConn
	stop func()
}

// newHarness starts a driver in a folder of its own. When the test ends it is stopped, and the test fails if a mount or a
// loop device remains.
func newHarness(t *testing.T, change func(*driver.Config)) *harness {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, dir: dir, cfg: driver.Config{
		Name:                 "sample-csi.cbt-populator.test",
		Version:              "test",
		NodeID:               "node-1",
		StateDir:             filepath.Join(dir, "state"),
		MetadataType:         csi.BlockMetadataType_FIXED_LENGTH,
		MaxEntriesPerMessage: 256,
		MaxVolumeBytes:       1 << 40,
	}}
	if change != nil {
		change(&h.cfg)
	}
	t.Cleanup(func() { checkNothingLeft(t, dir) })
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *harness) socketPath() string { return filepath.Join(h.dir, "csi.sock") }

func (h *harness) start() {
	h.t.Helper()
	d, err := driver.New(h.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := socket.Listen(h.socketPath())
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, l) }()
	h.conn, err = grpc.NewClient("unix://"+h.socketPath(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		h.t.Fatal(err)
	}
	h.ControllerClient = csi.NewControllerClient(h.conn)
	h.NodeClient = csi.NewNodeClient(h.conn)
	h.IdentityClient = csi.NewIdentityClient(h.conn)
	h.SnapshotMetadataClient = csi.NewSnapshotMetadataClient(h.conn)
	h.stop = func() {
		if err := h.conn.Close(); err != nil {
			h.t.Error(err)
		}
		cancel()
		if err := <-served; err != nil {
			h.t.Error(err)
		}
	}
}

// restart replaces the driver by another on the same state, with volumes left as they are.
func (h *harness) restart() {
	h.t.Helper()
	h.stop()
	h.start()
}

func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	found, err := leftover.Clean(dir)
	if err != nil || len(found) > 0 {
		t.Errorf("left behind: %v, %v", found, err)
	}
}

func blockCap() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func mountCap() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// volume is a volume that the harness made.
type volume struct {
	h    *harness
	id   string
	size int64
	cap  *csi.VolumeCapability
	// target is where it is published.
	target string
}

func (h *harness) create(name string, size int64, c *csi.VolumeCapability, source *csi.VolumeContentSource) *volume {
	h.t.Helper()
	resp, err := h.CreateVolume(h.t.Context(), &csi.CreateVolumeRequest{
		Name:                name,
		CapacityRange:       &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities:  []*csi.VolumeCapability{c},
		VolumeContentSource: source,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	v := &volume{h: h, id: resp.GetVolume().GetVolumeId(), size: resp.GetVolume().GetCapacityBytes(), cap: c}
	h.t.Cleanup(v.delete)
	return v
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
	}}
}

func (v *volume) staging() string { return filepath.Join(v.h.dir, "staging-"+v.id) }

// publish stages and publishes the volume and returns where.
func (v *volume) publish() string {
	v.h.t.Helper()
	v.target = filepath.Join(v.h.dir, "target-"+v.id)
	_, err := v.h.NodeStageVolume(v.h.t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging(), VolumeCapability: v.cap,
	})
	if err != nil {
		v.h.t.Fatal(err)
	}
	_, err = v.h.NodePublishVolume(v.h.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging(), TargetPath: v.target, VolumeCapability: v.cap,
	})
	if err != nil {
		v.h.t.Fatal(err)
	}
	return v.target
}

func (v *volume) unpublish() {
	v.h.t.Helper()
	if v.target == "" {
		return
	}
	// Also called when the test, and so its context, has ended.
	ctx := context.Background()
	_, err := v.h.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: v.target})
	if err != nil {
		v.h.t.Error(err)
	}
	_, err = v.h.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging()})
	if err != nil {
		v.h.t.Error(err)
	}
	v.target = ""
}

func (v *volume) delete() {
	v.h.t.Helper()
	v.unpublish()
	if _, err := v.h.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: v.id}); err != nil {
		v.h.t.Error(err)
	}
}

func (v *volume) snapshot(name string) string {
	v.h.t.Helper()
	resp, err := v.h.CreateSnapshot(v.h.t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: v.id})
	if err != nil {
		v.h.t.Fatal(err)
	}
	if !resp.GetSnapshot().GetReadyToUse() || resp.GetSnapshot().GetSizeBytes() != v.size {
		v.h.t.Fatalf("snapshot %v, want it ready and of %d bytes", resp.GetSnapshot(), v.size)
	}
	return resp.GetSnapshot().GetSnapshotId()
}

// writeBlocks writes random data, never zeros, at the 4 KiB blocks of a published block volume, through the page cache as
// dd does, without syncing.
func writeBlocks(t *testing.T, path string, r *rand.Rand, blocks ...int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, b := range blocks {
		if _, err := f.WriteAt(randomBytes(r, 4096), b*4096); err != nil {
			t.Fatal(err)
		}
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + r.UintN(255))
	}
	return b
}

// newRand returns a random source whose seed the test prints.
func newRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, bytes.TrimSpace(out))
	}
}
