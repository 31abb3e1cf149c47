package supervise

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// newSupervisor runs its components as plain processes and ends them with the test.
func newSupervisor(t *testing.T) (*Supervisor, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	dir := t.TempDir()
	s, starting := New(ctx, layout.Layout{State: dir})
	s.Launch((*exec.Cmd).Start)
	t.Cleanup(func() {
		for _, c := range s.Status(context.Background(), 0).Components {
			if err := s.Kill(c.Name, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		cancel()
	})
	return s, starting
}

func shell(name, script string) Component {
	return Component{Name: name, Binary: "/bin/sh", Args: []string{"-c", script, name}}
}

// sleeper is ready once its script has run as far as making a file.
func sleeper(t *testing.T, name string) Component {
	file := filepath.Join(t.TempDir(), "ready")
	c := shell(name, `echo "$@"; : > `+file+`; exec sleep 1000`)
	c.Ready = func(context.Context) error {
		_, err := os.Stat(file)
		return err
	}
	return c
}

func (s *Supervisor) only(t *testing.T) ComponentStatus {
	t.Helper()
	components := s.Status(context.Background(), 0).Components
	if len(components) != 1 {
		t.Fatalf("%d components", len(components))
	}
	return components[0]
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	err := kube.Until(ctx, func(context.Context) error {
		if !condition() {
			return errors.New(what)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDeathDuringTheStartTellsNameAndLog(t *testing.T) {
	s, ctx := newSupervisor(t)
	c := shell("etcd", "echo no space left; exit 3")
	c.Ready = func(context.Context) error { return errors.New("nobody answers") }
	err := s.Start(ctx, c)
	if err == nil {
		t.Fatal("it is ready")
	}
	for _, want := range []string{"etcd died (exit status 3", "no space left", s.layout.Log("etcd")} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	until(t, "the start goes on", func() bool { return context.Cause(ctx) != nil })
	if cause := context.Cause(ctx); !strings.Contains(cause.Error(), "etcd died") {
		t.Errorf("the others are told %v", cause)
	}
}

func TestLaterDeathIsReportedAndNotRepaired(t *testing.T) {
	s, ctx := newSupervisor(t)
	if err := s.Start(ctx, sleeper(t, "kubelet")); err != nil {
		t.Fatal(err)
	}
	s.Finish(nil)
	if status := s.Status(ctx, 0); !status.Healthy() {
		t.Fatalf("not healthy: %+v", status)
	}
	if err := syscall.Kill(s.only(t).Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the death is not noticed", func() bool { return s.only(t).State == Died })
	status := s.Status(ctx, 0)
	if status.Healthy() || len(status.Sick()) != 1 || !strings.Contains(status.Sick()[0].End, "killed") {
		t.Errorf("it is not said: %+v", status)
	}
	if ctx.Err() != nil {
		t.Error("a death after the start ends the start")
	}
}

func TestSidecarIsStartedAgainAndCounted(t *testing.T) {
	s, ctx := newSupervisor(t)
	c := sleeper(t, "csi-provisioner")
	c.Restarts = true
	if err := s.Start(ctx, c); err != nil {
		t.Fatal(err)
	}
	s.Finish(nil)
	first := s.only(t).Pid
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "it is not started again", func() bool {
		now := s.only(t)
		return now.State == Running && now.Pid != first && now.Restarts == 1
	})
}

func TestKilledOnRequestStaysStoppedUntilRestart(t *testing.T) {
	s, ctx := newSupervisor(t)
	c := sleeper(t, "csi-snapshot-metadata")
	c.Restarts = true
	if err := s.Start(ctx, c, "first"); err != nil {
		t.Fatal(err)
	}
	s.Finish(nil)
	if err := s.Kill("csi-snapshot-metadata", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if now := s.only(t); now.State != Stopped || now.Pid != 0 {
		t.Errorf("%+v", now)
	}
	if err := s.Restart(ctx, "csi-snapshot-metadata", syscall.SIGTERM, true, []string{"second", "third"}); err != nil {
		t.Fatal(err)
	}
	now := s.only(t)
	if now.State != Running || now.Restarts != 1 {
		t.Errorf("%+v", now)
	}
	if diff := cmp.Diff([]string{"second", "third"}, now.Args); diff != "" {
		t.Error(diff)
	}
	until(t, "the arguments do not arrive", func() bool {
		return strings.Contains(Tail(s.layout.Log("csi-snapshot-metadata"), 2), "\n    second third")
	})
	if err := s.Kill("nobody", syscall.SIGTERM); err == nil {
		t.Error("an unknown component is killed")
	}
}

func TestSocketTellsTheWholeStart(t *testing.T) {
	s, ctx := newSupervisor(t)
	if err := s.Serve(ctx, s.layout.Control()); err != nil {
		t.Fatal(err)
	}
	s.Say("before anybody listens")
	client := Connect(s.layout.Control())
	var got []Event
	err := client.Follow(ctx, func(e Event) {
		if got = append(got, e); len(got) == 1 {
			s.Say("meanwhile")
			s.Finish(errors.New("etcd died"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Event{{Line, "before anybody listens"}, {Line, "meanwhile"}, {Failed, "etcd died"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	status, err := client.Status(ctx)
	if err != nil || status.Phase != Failed || status.Failure != "etcd died" || status.Healthy() {
		t.Errorf("%+v, %v", status, err)
	}
	if err := client.Restart(ctx, Request{Name: "nobody", Signal: syscall.SIGTERM}); err == nil || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("the error does not arrive: %v", err)
	}
}
