package teardown

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/config"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/isolate"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/procs"
)

// supervisorRecord names one process for good.
type supervisorRecord struct {
	Pid   int
	Start uint64
}

// RecordSupervisor writes down that this process is the supervisor.
func RecordSupervisor(l layout.Layout) error {
	start, err := procs.StartTime(os.Getpid())
	if err != nil {
		return err
	}
	return writeJSON(l.SupervisorRecord(), supervisorRecord{Pid: os.Getpid(), Start: start})
}

// Supervisor returns the pid of the recorded supervisor if that very process
// still runs, and 0 otherwise.
func Supervisor(l layout.Layout) (int, error) {
	var r supervisorRecord
	err := readJSON(l.SupervisorRecord(), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	// The process may be gone, and another one may have its number now.
	if start, err := procs.StartTime(r.Pid); err == nil && start == r.Start {
		return r.Pid, nil
	}
	return 0, nil
}

// hostRecord is what the cluster changes on the host outside its state
// folder and its namespaces.
type hostRecord struct {
	// Folders were made, innermost first, for others to be mounted on.
	Folders []string
	// Sysctls are values that the kubelet changes, by their path in /proc/sys.
	Sysctls map[string]string
}

// kubeletSysctls are the kernel's settings that every kubelet sets.
var kubeletSysctls = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// RecordHost makes the host folders that masks are mounted on and writes down
// what there is to undo.
func RecordHost(l layout.Layout, masks map[string]string) error {
	record := hostRecord{Sysctls: map[string]string{}}
	for host := range masks {
		made, err := isolate.MakeFolder(host)
		if err != nil {
			return err
		}
		record.Folders = append(record.Folders, made...)
	}
	for _, name := range kubeletSysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("kernel setting: %w", err)
		}
		record.Sysctls[name] = strings.TrimSpace(string(value))
	}
	return writeJSON(l.HostRecord(), record)
}

// restoreHost undoes what RecordHost wrote down. Folders that hold something
// by now belong to somebody else.
func restoreHost(l layout.Layout) error {
	var record hostRecord
	if err := readJSON(l.HostRecord(), &record); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for name, value := range record.Sysctls {
		path := filepath.Join("/proc/sys", name)
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("kernel setting: %w", err))
		}
	}
	for _, dir := range record.Folders {
		removeEmpty(dir)
	}
	return errors.Join(errs...)
}

// removeEmpty removes a folder unless somebody has put something into it.
func removeEmpty(dir string) { _ = os.Remove(dir) }

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return config.Write(path, append(data, '\n'), 0o600)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
