package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	mib = 1 << 20
	// asDriver makes the test's binary the driver.
	asDriver   = "CSIDRIVER_TEST_AS_DRIVER"
	driverName = "sample-csi.cbt-populator.test"
)

func TestMain(m *testing.M) {
	if os.Getenv(asDriver) != "" {
		main()
		return
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "These tests must run as root: they attach loop devices and mount filesystems.")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// process is a driver as a process of its own.
type process struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	output *bytes.Buffer
	// ended delivers what Wait returned.
	ended chan error
}

func socketPath(dir string) string { return filepath.Join(dir, "csi.sock") }

func regSocketPath(dir string) string {
	return filepath.Join(dir, "registry", driverName+"-reg.sock")
}

func startProcess(t *testing.T, dir string, more ...string) *process {
	t.Helper()
	p := &process{t: t, dir: dir, output: &bytes.Buffer{}, ended: make(chan error, 1)}
	args := append([]string{
		"--endpoint", "unix://" + socketPath(dir), "--node-id", "node-1",
		"--state-dir", filepath.Join(dir, "state"), "--registration-dir", filepath.Join(dir, "registry"),
	}, more...)
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), asDriver+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		if err := p.cmd.Process.Kill(); err == nil {
			<-p.ended
		} else if !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	})
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal: %v\n%s", err, p.output)
	}
}

// wait returns the exit error of the process.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(30 * time.Second):
		p.t.Fatalf("the driver does not end")
		return nil
	}
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	if err := p.wait(); err == nil {
		p.t.Fatal("the driver had ended by itself")
	}
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// within bounds a call, which waits until the driver listens.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRegistersAndStops(t *testing.T) {
	dir := t.TempDir()
	// Left behind by a driver that was killed.
	for _, path := range []string{socketPath(dir), regSocketPath(dir)} {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p := startProcess(t, dir)
	info, err := csi.NewIdentityClient(dial(t, socketPath(dir))).GetPluginInfo(within(t), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != driverName {
		t.Fatalf("%v, %v", info, err)
	}
	reg := registerapi.NewRegistrationClient(dial(t, regSocketPath(dir)))
	who, err := reg.GetInfo(within(t), &registerapi.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if who.GetType() != registerapi.CSIPlugin || who.GetName() != driverName || who.GetEndpoint() != socketPath(dir) || len(who.GetSupportedVersions()) == 0 {
		t.Errorf("registers as %v", who)
	}
	if _, err := reg.NotifyRegistrationStatus(within(t), &registerapi.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Error(err)
	}
	// A second driver must not take the first one's state or sockets.
	second := startProcess(t, dir)
	if err := second.wait(); err == nil || !strings.Contains(second.output.String(), "another driver") {
		t.Errorf("second driver: %v\n%s", err, second.output)
	}
	p.signal(syscall.SIGTERM)
	if err := p.wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.output)
	}
	for _, path := range []string{socketPath(dir), regSocketPath(dir)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestEndsWhenTheKubeletRefuses(t *testing.T) {
	dir := t.TempDir()
	p := startProcess(t, dir)
	_, err := registerapi.NewRegistrationClient(dial(t, regSocketPath(dir))).
		NotifyRegistrationStatus(within(t), &registerapi.RegistrationStatus{Error: "name is taken"})
	if err != nil {
		t.Error(err)
	}
	if err := p.wait(); err == nil || !strings.Contains(p.output.String(), "name is taken") {
		t.Errorf("ended with %v\n%s", err, p.output)
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--endpoint", "tcp://127.0.0.1:1"},
		{"--endpoint", "unix://relative"},
		{"--block-metadata-type", "UNKNOWN"},
		{"--block-metadata-type", "fixed"},
		{"--no-such-flag"},
		{"argument"},
	} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("accepted %q", args)
		}
	}
	o, err := parseFlags([]string{"--node-id", "n", "--block-metadata-type", "VARIABLE_LENGTH", "--stream-delay", "10ms"})
	if err != nil || o.driver.MetadataType != csi.BlockMetadataType_VARIABLE_LENGTH || o.driver.StreamDelay != 10*time.Millisecond {
		t.Errorf("%+v, %v", o, err)
	}
}

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
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, socketPath(dir))
	c := clients{csi.NewControllerClient(conn), csi.NewNodeClient(conn)}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
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
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(time.Duration(r.IntN(120)) * time.Millisecond):
			p.kill()
			kills++
			p = startProcess(t, dir)
		}
	}
	t.Logf("killed %d times", kills)
	checkState(t, c, dir)
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
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(dir+"/")) {
		t.Errorf("mounts left below %s, %v:\n%s", dir, err, mounts)
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range backing {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			t.Errorf("left attached: %s", b)
		}
	}
}

// A driver that is killed while it has a filesystem frozen would leave every writer stuck for good.
func TestKilledWhileFrozen(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, socketPath(dir))
	c := clients{csi.NewControllerClient(conn), csi.NewNodeClient(conn)}
	p := startProcess(t, dir)
	v, err := c.CreateVolume(within(t), &csi.CreateVolumeRequest{
		Name: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: 400 * mib}, VolumeCapabilities: []*csi.VolumeCapability{capability(false)},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := v.GetVolume().GetVolumeId()
	record := filepath.Join(dir, "state", "volumes", id, "record.json")
	err = c.published(within(t), dir, id, false, func(path string) error {
		if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 300*mib), 0o600); err != nil {
			return err
		}
		go func() {
			// Fails, as the driver is killed meanwhile.
			_, _ = c.CreateSnapshot(within(t), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id})
		}()
		waitFor(t, "the freeze", func() bool {
			b, err := os.ReadFile(record)
			return err == nil && bytes.Contains(b, []byte(`"freezing"`)) && stuck(path)
		})
		p.kill()
		p = startProcess(t, dir)
		if _, err := c.ListVolumes(within(t), &csi.ListVolumesRequest{}); err != nil {
			return err
		}
		if stuck(path) {
			return errors.New("the filesystem is still frozen")
		}
		return nil
	}, func() error { return nil })
	if err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteVolume(within(t), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Error(err)
	}
	checkState(t, c, dir)
}

// stuck says whether a write next to path does not end soon. A writer that is stuck goes on when it can.
func stuck(path string) bool {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(path+"-probe", []byte("x"), 0o600) }()
	select {
	case <-done:
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
