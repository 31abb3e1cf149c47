package isolate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/mounts"
)

// MakeCgroups makes the cluster's folder in every cgroup hierarchy that the
// kubelet uses: it insists on its root being there.
func MakeCgroups() error {
	roots, err := CgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range usedByKubelet(roots) {
		dir := filepath.Join(root.Point, layout.Cgroup)
		if err := os.MkdirAll(filepath.Join(root.Point, layout.SystemCgroup), 0o755); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if slices.Contains(root.SuperOptions, "cpuset") {
			if err := inheritCPUSet(root.Point, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// usedByKubelet leaves out the controller-less v2 hierarchy of a hybrid system.
func usedByKubelet(roots []mounts.Mount) []mounts.Mount {
	v1 := slices.DeleteFunc(slices.Clone(roots), func(m mounts.Mount) bool { return m.Type != "cgroup" })
	if len(v1) > 0 {
		return v1
	}
	return roots
}

// CgroupRoots returns the mounted cgroup hierarchies.
func CgroupRoots() ([]mounts.Mount, error) {
	all, err := mounts.Self()
	if err != nil {
		return nil, err
	}
	roots := slices.DeleteFunc(all, func(m mounts.Mount) bool { return m.Type != "cgroup" && m.Type != "cgroup2" })
	if len(roots) == 0 {
		return nil, errors.New("cgroup: no hierarchy is mounted; mount one at /sys/fs/cgroup")
	}
	return roots, nil
}

// inheritCPUSet fills in what version 1 of the cpuset controller leaves
// empty in a new folder; no process can join one that is empty.
func inheritCPUSet(parent, child string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		for _, dir := range []string{child, filepath.Join(child, filepath.Base(layout.SystemCgroup))} {
			if err := os.WriteFile(filepath.Join(dir, name), bytes.TrimSpace(value), 0o644); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
	}
	return nil
}

// JoinCgroup moves this process into the cluster's cgroup in one hierarchy.
// What it starts is born there, and so `down` can tell the cluster's
// processes from all others even when nobody is left who knows their pids.
func JoinCgroup() error {
	roots, err := CgroupRoots()
	if err != nil {
		return err
	}
	used := usedByKubelet(roots)
	root := used[0]
	for _, r := range used {
		// Membership means nothing but membership in these.
		if slices.Contains(r.SuperOptions, "pids") || slices.Contains(r.SuperOptions, "name=systemd") {
			root = r
			break
		}
	}
	path := filepath.Join(root.Point, layout.SystemCgroup, "cgroup.procs")
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}
