package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
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
			if err := p.wait(); err == nil {
				t.Error("the driver had ended by itself")
			}
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
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
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
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
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
