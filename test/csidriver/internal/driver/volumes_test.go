package driver_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/driver"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/leftover"
)

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSmallRequestsAreRoundedUp(t *testing.T) {
	h := newHarness(t, nil)
	for asked, want := range map[int64]int64{0: mib, 1: mib, mib: mib, mib + 1: mib + 4096, 10 * mib: 10 * mib} {
		if v := h.create(fmt.Sprint("v", asked), asked, mountCap(), nil); v.size != want {
			t.Errorf("asked for %d, got %d, want %d", asked, v.size, want)
		}
	}
	for name, r := range map[string]*csi.CapacityRange{
		"limit below the smallest":  {LimitBytes: 4096},
		"limit within a block":      {RequiredBytes: mib + 1, LimitBytes: mib + 2},
		"more than there is":        {RequiredBytes: h.cfg.MaxVolumeBytes + 1},
		"more than a number's size": {RequiredBytes: 1<<63 - 1},
	} {
		_, err := h.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
			Name: name, CapacityRange: r, VolumeCapabilities: []*csi.VolumeCapability{blockCap()},
		})
		if status.Code(err) != codes.OutOfRange {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSmallestFilesystemHoldsFiles(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("tiny", 1, mountCap(), nil)
	dir := v.publish()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 900<<10), 0o600); err != nil {
		t.Error(err)
	}
	err := os.WriteFile(filepath.Join(dir, "more"), make([]byte, 200<<10), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("1.1 MiB in a volume of 1 MiB: %v", err)
	}
}

func TestBlockRestore(t *testing.T) {
	h := newHarness(t, nil)
	r := newRand(t)
	v := h.create("v", 3*mib, blockCap(), nil)
	device := v.publish()
	writeBlocks(t, device, r, 0, 5, 767)
	want := readFile(t, device)
	s := v.snapshot("s")
	writeBlocks(t, device, r, 0, 6)

	same := h.create("same", 0, blockCap(), fromSnapshot(s))
	if got := readFile(t, same.publish()); !bytes.Equal(got, want) {
		t.Error("restored volume differs from the snapshot's moment")
	}
	larger := h.create("larger", 5*mib, blockCap(), fromSnapshot(s))
	if got := readFile(t, larger.publish()); !bytes.Equal(got, append(want, make([]byte, 2*mib)...)) {
		t.Error("larger restored volume differs")
	}
	// The snapshot does not depend on its source, nor a restored volume on the snapshot.
	v.unpublish()
	v.delete()
	late := h.create("late", 3*mib, blockCap(), fromSnapshot(s))
	if _, err := h.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: s}); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, late.publish()); !bytes.Equal(got, want) {
		t.Error("volume restored without its source differs")
	}
	clone := h.create("clone", 3*mib, blockCap(), &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: late.id},
	}})
	if got := readFile(t, clone.publish()); !bytes.Equal(got, want) {
		t.Error("clone differs")
	}
}

// What a writer wrote is in the snapshot also if the writer goes on and never synced.
func TestSnapshotOfADeviceThatIsOpen(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", mib, blockCap(), nil)
	f, err := os.OpenFile(v.publish(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(randomBytes(newRand(t), 3*4096), 5*4096); err != nil {
		t.Fatal(err)
	}
	got := h.mustAsk(request{target: v.snapshot("s")}).blocks()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []int64{5, 6, 7}) {
		t.Errorf("allocated %v", got)
	}
}

// A filesystem is snapshotted while it is written to; what was complete before is in the snapshot, and the larger volume
// that is restored has the larger filesystem.
func TestFilesystemRestore(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", 10*mib, mountCap(), nil)
	dir := v.publish()
	data := randomBytes(newRand(t), 300_000)
	if err := os.WriteFile(filepath.Join(dir, "data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				// The volume may fill up; only the load matters.
				_ = os.WriteFile(filepath.Join(dir, fmt.Sprint("noise", i%50)), data[:5000], 0o600)
			}
		}
	})
	s := v.snapshot("s")
	close(stop)
	wg.Wait()
	// The filesystem is not frozen any more.
	if err := os.WriteFile(filepath.Join(dir, "later"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{10 * mib, 200 * mib} {
		restored := h.create(fmt.Sprint("restored", size), size, mountCap(), fromSnapshot(s))
		at := restored.publish()
		if got := readFile(t, filepath.Join(at, "data")); !bytes.Equal(got, data) {
			t.Errorf("%d bytes: restored file differs", size)
		}
		if _, err := os.Stat(filepath.Join(at, "later")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%d bytes: a later file is in the snapshot: %v", size, err)
		}
		stats, err := h.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: restored.id, VolumePath: at})
		if err != nil || stats.GetUsage()[0].GetTotal() < size*9/10 {
			t.Errorf("%d bytes: usage %v, %v", size, stats.GetUsage(), err)
		}
	}
	// A block volume of a filesystem's snapshot is the image; the reverse needs a filesystem.
	h.create("raw", 0, blockCap(), fromSnapshot(s))
	blank := h.create("blank", mib, blockCap(), nil)
	_, err := h.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: "from blank", VolumeCapabilities: []*csi.VolumeCapability{mountCap()}, VolumeContentSource: fromSnapshot(blank.snapshot("b")),
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("mounted volume of a snapshot without a filesystem: %v", err)
	}
}

// Whoever froze the filesystem before, such as a backup hook, also thaws it.
func TestSnapshotOfAFrozenFilesystem(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", 10*mib, mountCap(), nil)
	dir := v.publish()
	command(t, "fsfreeze", "--freeze", dir)
	v.snapshot("s")
	command(t, "fsfreeze", "--unfreeze", dir) // Fails if it is not frozen any more.
}

func TestExpandWhileNotInUse(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", 10*mib, mountCap(), nil)
	resp, err := h.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: v.id, CapacityRange: &csi.CapacityRange{RequiredBytes: 50 * mib},
	})
	if err != nil || !resp.GetNodeExpansionRequired() {
		t.Fatalf("%v, %v", resp, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(v.publish(), &st); err != nil || int64(st.Blocks)*st.Bsize < 45*mib {
		t.Errorf("filesystem of %d bytes, %v", int64(st.Blocks)*st.Bsize, err)
	}
}

func TestReadOnlyPublication(t *testing.T) {
	h := newHarness(t, nil)
	v := h.create("v", 10*mib, mountCap(), nil)
	v.publish()
	req := &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging(), TargetPath: filepath.Join(h.dir, "read-only"), VolumeCapability: v.cap, Readonly: true,
	}
	for range 2 {
		if _, err := h.NodePublishVolume(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(req.TargetPath, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	req.Readonly = false
	if _, err := h.NodePublishVolume(t.Context(), req); status.Code(err) != codes.AlreadyExists {
		t.Errorf("published there with another mode: %v", err)
	}
	for name, call := range map[string]func() error{
		"delete": func() error {
			_, err := h.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v.id})
			return err
		},
		"unstage": func() error {
			_, err := h.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging()})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s of a volume in use: %v", name, err)
		}
	}
	if _, err := h.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: req.TargetPath}); err != nil {
		t.Fatal(err)
	}
}

func TestManyVolumesAtOnce(t *testing.T) {
	h := newHarness(t, nil)
	const n = 40
	volumes := make([]*volume, n)
	for i := range volumes {
		c := blockCap()
		if i%2 == 0 {
			c = mountCap()
		}
		volumes[i] = h.create(fmt.Sprint("v", i), mib, c, nil)
	}
	errs := make(chan error, n)
	for _, v := range volumes {
		v.target = filepath.Join(h.dir, "target-"+v.id)
		go func() {
			_, err := h.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
				VolumeId: v.id, StagingTargetPath: v.staging(), VolumeCapability: v.cap,
			})
			if err == nil {
				_, err = h.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
					VolumeId: v.id, StagingTargetPath: v.staging(), TargetPath: v.target, VolumeCapability: v.cap,
				})
			}
			errs <- err
		}()
	}
	for range volumes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := len(leftover.Attached(h.dir)); got != n {
		t.Errorf("%d devices attached, want %d", got, n)
	}
}

// A driver that starts anew goes on with volumes that are published.
func TestRestart(t *testing.T) {
	h := newHarness(t, nil)
	r := newRand(t)
	raw := h.create("raw", 2*mib, blockCap(), nil)
	device := raw.publish()
	writeBlocks(t, device, r, 1)
	one := raw.snapshot("one")
	fs := h.create("fs", 10*mib, mountCap(), nil)
	dir := fs.publish()

	h.restart()
	writeBlocks(t, device, r, 2)
	two := raw.snapshot("two")
	a := h.mustAsk(request{base: one, target: two})
	if got := a.blocks(); len(got) != 1 || got[0] != 2 {
		t.Errorf("delta across the restart: %v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if again := raw.publish(); again != device {
		t.Errorf("published at %s", again)
	}
	resp, err := h.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "raw", VolumeCapabilities: []*csi.VolumeCapability{raw.cap}})
	if err != nil || resp.GetVolume().GetVolumeId() != raw.id {
		t.Errorf("created twice: %s and %v, %v", raw.id, resp, err)
	}
}

func TestNewRefusesABadConfiguration(t *testing.T) {
	good := driver.Config{
		Name: "d.example", NodeID: "n", StateDir: t.TempDir(), MetadataType: csi.BlockMetadataType_FIXED_LENGTH,
		MaxEntriesPerMessage: 1, MaxVolumeBytes: driver.MinVolumeBytes,
	}
	if _, err := driver.New(good, nil); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*driver.Config){
		"name":         func(c *driver.Config) { c.Name = "not a name" },
		"node":         func(c *driver.Config) { c.NodeID = "" },
		"state":        func(c *driver.Config) { c.StateDir = "" },
		"type":         func(c *driver.Config) { c.MetadataType = csi.BlockMetadataType_UNKNOWN },
		"no entries":   func(c *driver.Config) { c.MaxEntriesPerMessage = 0 },
		"many entries": func(c *driver.Config) { c.MaxEntriesPerMessage = driver.MaxEntriesLimit + 1 },
		"delay":        func(c *driver.Config) { c.StreamDelay = -1 },
		"size":         func(c *driver.Config) { c.MaxVolumeBytes = 1 },
		"volumes":      func(c *driver.Config) { c.MaxVolumesPerNode = -1 },
	} {
		c := good
		spoil(&c)
		if _, err := driver.New(c, nil); err == nil {
			t.Errorf("accepted a bad %s", name)
		}
	}
}
