// Package procs finds the cluster's processes among all others by what they
// cannot shed: their network namespace and their cgroup.
package procs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// StartTime returns when a process started, in the kernel's ticks since
// boot. Together with its number it names one process for good.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return parseStartTime(string(data))
}

// parseStartTime reads field 22 of proc_pid_stat(5). The second field is the
// program's name in parentheses and may hold anything, parentheses too.
func parseStartTime(stat string) (uint64, error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("process status %q has no program name", stat)
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("process status %q is too short", stat)
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process status: start time: %w", err)
	}
	return ticks, nil
}

// Process is one process of the cluster.
type Process struct {
	Pid     int
	Command string
}

// Cluster returns the processes that are in the cluster's network namespace
// or in its cgroups; never this one.
func Cluster() ([]Process, error) {
	netns, err := inode(layout.NetnsFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("processes of the cluster: %w", err)
	}
	own, err := inode("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("processes of the cluster: %w", err)
	}
	if netns == own {
		return nil, fmt.Errorf("processes of the cluster: %s is the host's own network namespace", layout.NetnsFile)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("processes of the cluster: %w", err)
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == 1 {
			continue
		}
		if belongs(pid, netns) {
			found = append(found, Process{Pid: pid, Command: command(pid)})
		}
	}
	return found, nil
}

// belongs says no for a process that ends while it is looked at.
func belongs(pid int, netns uint64) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if stat, err := os.ReadFile(filepath.Join(dir, "stat")); err != nil || isZombie(string(stat)) {
		return false
	}
	if ns, err := inode(filepath.Join(dir, "ns", "net")); err == nil && netns != 0 && ns == netns {
		return true
	}
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	return err == nil && inCgroup(string(groups), "/"+layout.Cgroup)
}

// isZombie: a process that has ended and waits for its parent to notice.
func isZombie(stat string) bool {
	end := strings.LastIndexByte(stat, ')')
	return end >= 0 && strings.HasPrefix(strings.TrimSpace(stat[end+1:]), "Z")
}

// inCgroup reads proc_pid_cgroup(5): lines of "number:controllers:path".
func inCgroup(groups, path string) bool {
	for _, line := range strings.Split(groups, "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) == 3 && (parts[2] == path || strings.HasPrefix(parts[2], path+"/")) {
			return true
		}
	}
	return false
}

func inode(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s has no inode number", path)
	}
	return stat.Ino, nil
}

func command(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " "))
}
