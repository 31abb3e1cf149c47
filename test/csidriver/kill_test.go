package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/leftover"
)

// clients are the services of a driver that comes and goes behind one connection.
type clients struct {
	csi.ControllerClient
	csi.NodeClient
}

func capability(block bool) *csi.VolumeCapability {
	c := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	}
	if block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}
	return c
}

// retry repeats a call while the driver is dead, as a CO does.
func retry[T any](ctx context.Context, call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return v, err
		}
	}
}

// lifecycle takes a volume through its life: create, publish, write, snapshot, restore, compare, and all of it undone.
// Every call is repeated when the driver dies in it.
func (c clients) lifecycle(ctx context.Context, dir, name string, block bool, data []byte) error {
	v, err := retry(ctx, func() (*csi.CreateVolumeResponse, error) {
		return c.CreateVolume(ctx, &csi.CreateVolumeRequest{
			Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 4 * mib}, VolumeCapabilities: []*csi.VolumeCapability{capability(block)},
		})
	})
	if err != nil {
		return err
	}
	id := v.GetVolume().GetVolumeId()
	err = c.published(ctx, dir, id, block, func(path string) error { return os.WriteFile(path, data, 0o600) }, func() error {
		s, err := retry(ctx, func() (*csi.CreateSnapshotResponse, error) {
			return c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: id})
		})
		if err != nil {
			return err
		}
		return c.restored(ctx, dir, name, s.GetSnapshot().GetSnapshotId(), block, data)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = retry(ctx, func() (*csi.DeleteVolumeResponse, error) {
		return c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	})
	return err
}

// restored restores the snapshot, compares, and deletes both.
func (c clients) restored(ctx context.Context, dir, name, snapshot string, block bool, want []byte) error {
	v, err := retry(ctx, func() (*csi.CreateVolumeResponse, error) {
		return c.CreateVolume(ctx, &csi.CreateVolumeRequest{
			Name: name + "-restored", VolumeCapabilities: []*csi.VolumeCapability{capability(block)},
			VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
				Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
			}},
		})
	})
	if err != nil {
		return err
	}
	id := v.GetVolume().GetVolumeId()
	err = c.published(ctx, dir, id, block, func(path string) error {
		got, err := os.ReadFile(path)
		if err == nil && !bytes.HasPrefix(got, want) {
			err = errors.New("the restored data differs")
		}
		return err
	}, func() error { return nil })
	if err != nil {
		return err
	}
	if _, err := retry(ctx, func() (*csi.DeleteVolumeResponse, error) {
		return c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	}); err != nil {
		return err
	}
	_, err = retry(ctx, func() (*csi.DeleteSnapshotResponse, error) {
		return c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
	})
	return err
}

// published calls use with the device, or a file in the filesystem, of the published volume, and then also.
func (c clients) published(ctx context.Context, dir, id string, block bool, use func(path string) error, also func() error) error {
	staging, target := filepath.Join(dir, "staging-"+id), filepath.Join(dir, "target-"+id)
	_, err := retry(ctx, func() (*csi.NodeStageVolumeResponse, error) {
		return c.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability(block)})
	})
	if err != nil {
		return err
	}
	_, err = retry(ctx, func() (*csi.NodePublishVolumeResponse, error) {
		return c.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
			VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability(block),
		})
	})
	if err != nil {
		return err
	}
	path := target
	if !block {
		path = filepath.Join(target, "data")
	}
	err = use(path)
	if err == nil {
		err = also()
	}
	_, unpublishErr := retry(ctx, func() (*csi.NodeUnpublishVolumeResponse, error) {
		return c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	})
	_, unstageErr := retry(ctx, func() (*csi.NodeUnstageVolumeResponse, error) {
		return c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
	})
	return errors.Join(err, unpublishErr, unstageErr)
}

// The driver is killed again and again at random moments while volumes go through their lives. Nothing is lost, doubled
// or left behind.
func TestKilledAtAnyMoment(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := cleanDir(t)
	conn := dial(t, socketPath(dir))
	c := clients{csi.NewControllerClient(conn), csi.NewNodeClient(conn)}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	p := startProcess(t, dir)

	done := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range 3 {
		data := bytes.Repeat([]byte{byte(worker + 1)}, mib)
		wg.Go(func() {
			for round := range 4 {
				name := fmt.Sprintf("w%d-%d", worker, round)
				if err := c.lifecycle(ctx, dir, name, (worker+round)%2 == 0, data); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	kills := 0
	// A driver lives longer each time: on a loaded machine the first are dead before they listen, and one must get through.
	for longest, running := 150*time.Millisecond, true; running; longest += longest / 10 {
		select {
		case <-done:
			running = false
		case <-time.After(longest/6 + time.Duration(r.Int64N(int64(longest)))):
			p.kill()
			kills++
			p = startProcess(t, dir)
		}
	}
	t.Logf("killed %d times", kills)
	checkState(t, c, dir)
}

// cleanDir returns a folder in which nothing may be mounted or attached when the test ends.
func cleanDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if found, err := leftover.Clean(dir); err != nil || len(found) > 0 {
			t.Errorf("left behind: %v, %v", found, err)
		}
	})
	return dir
}

// checkState makes sure that nothing is left after everything was deleted.
func checkState(t *testing.T, c clients, dir string) {
	t.Helper()
	volumes, err := c.ListVolumes(within(t), &csi.ListVolumesRequest{})
	if err != nil || len(volumes.GetEntries()) != 0 {
		t.Errorf("volumes left: %v, %v", volumes, err)
	}
	snapshots, err := c.ListSnapshots(within(t), &csi.ListSnapshotsRequest{})
	if err != nil || len(snapshots.GetEntries()) != 0 {
		t.Errorf("snapshots left: %v, %v", snapshots, err)
	}
	if images := leftover.Attached(dir); len(images) > 0 {
		t.Errorf("left attached: %v", images)
	}
}

// A driver that was killed while it had a filesystem frozen would leave every writer stuck for good, if the next one did
// not thaw it.
func TestKilledWhileFrozen(t *testing.T) {
	dir := cleanDir(t)
	conn := dial(t, socketPath(dir))
	c := clients{csi.NewControllerClient(conn), csi.NewNodeClient(conn)}
	p := startProcess(t, dir)
	v, err := c.CreateVolume(within(t), &csi.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csi.VolumeCapability{capability(false)}})
	if err != nil {
		t.Fatal(err)
	}
	id := v.GetVolume().GetVolumeId()
	err = c.published(within(t), dir, id, false, func(path string) error {
		p.kill()
		if err := markFrozen(filepath.Join(dir, "state", "volumes", id, "record.json"), filepath.Dir(path)); err != nil {
			return err
		}
		if out, err := exec.Command("fsfreeze", "--freeze", filepath.Dir(path)).CombinedOutput(); err != nil {
			return fmt.Errorf("fsfreeze: %w: %s", err, out)
		}
		p = startProcess(t, dir)
		written := make(chan error, 1)
		go func() { written <- os.WriteFile(path, []byte("x"), 0o600) }()
		select {
		case err := <-written:
			return err
		case <-time.After(time.Minute):
			// The writer cannot be ended, nor the volume unmounted, before it is thawed.
			out, err := exec.Command("fsfreeze", "--unfreeze", filepath.Dir(path)).CombinedOutput()
			return errors.Join(fmt.Errorf("the filesystem is still frozen; fsfreeze: %s", out), err)
		}
	}, func() error { return nil })
	if err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteVolume(within(t), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Error(err)
	}
	checkState(t, c, dir)
}

// markFrozen does to a volume's record what the driver does before it freezes the filesystem at path.
func markFrozen(record, path string) error {
	b, err := os.ReadFile(record)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	fields["freezing"] = path
	if b, err = json.Marshal(fields); err != nil {
		return err
	}
	return os.WriteFile(record, b, 0o600)
}
