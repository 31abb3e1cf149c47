package teardown

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

func TestOwnedLoops(t *testing.T) {
	all := []loop{
		{number: 4, backing: "/", on: 2}, // over a volume, its path lost with the namespace
		{number: 0, backing: "/home/somebody/disk.img", on: -1},
		{number: 1, backing: "/", on: 0}, // over a stranger's device
		{number: 2, backing: "/var/lib/cbt-cluster/csidriver/v1/image", on: -1},
		{number: 3, backing: "/var/lib/cbt-cluster-2/image", on: -1},
		{number: 5, backing: "/dev/loop4", on: 4}, // two storeys up
	}
	var got []int
	for _, d := range owned(all, "/var/lib/cbt-cluster") {
		got = append(got, d.number)
	}
	if diff := cmp.Diff([]int{5, 4, 2}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSupervisorIsOneProcess(t *testing.T) {
	l := layout.Layout{State: t.TempDir()}
	if pid, err := Supervisor(l); pid != 0 || err != nil {
		t.Errorf("without a record: %d, %v", pid, err)
	}
	if err := RecordSupervisor(l); err != nil {
		t.Fatal(err)
	}
	if pid, err := Supervisor(l); pid != os.Getpid() || err != nil {
		t.Errorf("its own record: %d, %v", pid, err)
	}
	// The same number, but another process: started at another time.
	if err := writeJSON(l.SupervisorRecord(), supervisorRecord{Pid: os.Getpid(), Start: 1}); err != nil {
		t.Fatal(err)
	}
	if pid, err := Supervisor(l); pid != 0 || err != nil {
		t.Errorf("a reused number: %d, %v", pid, err)
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(l.SupervisorRecord(), supervisorRecord{Pid: ended.Process.Pid, Start: 1}); err != nil {
		t.Fatal(err)
	}
	if pid, err := Supervisor(l); pid != 0 || err != nil {
		t.Errorf("an ended process: %d, %v", pid, err)
	}
}

func TestHostFoldersAreRemovedOnlyIfEmpty(t *testing.T) {
	state, host := t.TempDir(), t.TempDir()
	l := layout.Layout{State: state}
	empty, used := filepath.Join(host, "a", "empty"), filepath.Join(host, "b", "used")
	if err := RecordHost(l, map[string]string{empty: "x", used: "y"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(used, "somebody's"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := restoreHost(l); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host, "a")); !os.IsNotExist(err) {
		t.Errorf("the folders that were made stay: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("a folder in use is gone: %v", err)
	}
}
