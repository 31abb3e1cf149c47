// Package teardown ends a cluster and removes everything that it made. It
// needs no supervisor and no record of what was started: processes are known
// by their network namespace and cgroup, mounts and loop devices by where
// they lie. Each step can be repeated.
package teardown

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/isolate"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/mounts"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/procs"
)

// patience bounds the wait for what the kernel finishes by itself, such as
// a process that is killed while it writes, or a file system's last flush.
const patience = 30 * time.Second

// Down ends the cluster. say is told what was found. It goes on after an
// error and returns all of them; the state folder stays if there are any.
func Down(ctx context.Context, l layout.Layout, say func(format string, args ...any)) error {
	var errs []error
	for _, step := range []struct {
		what string
		run  func(context.Context, layout.Layout) (int, error)
	}{
		{"processes ended", endProcesses},
		{"mounts undone", unmount},
		{"loop devices detached", detachLoops},
		{"network namespaces removed", removeNetns},
		{"cgroups removed", removeCgroups},
	} {
		n, err := step.run(ctx, l)
		if n > 0 {
			say("%s: %d", step.what, n)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := restoreHost(l); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return fmt.Errorf("the cluster is not all gone, and %s stays: %w", l.State, errors.Join(errs...))
	}
	return removeState(l, say)
}

// endProcesses kills the supervisor first, so that it starts nothing again,
// and then all others until none is left.
func endProcesses(ctx context.Context, l layout.Layout) (int, error) {
	ended := map[int]bool{}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := kube.Until(ctx, func(context.Context) error {
		pid, err := Supervisor(l)
		if err != nil {
			return err
		}
		if pid != 0 {
			kill(pid, ended)
		}
		left, err := procs.Cluster()
		if err != nil {
			return err
		}
		for _, p := range left {
			kill(p.Pid, ended)
		}
		if pid != 0 {
			return fmt.Errorf("process %d, the supervisor, does not end", pid)
		}
		if len(left) > 0 {
			return fmt.Errorf("%d processes do not end, among them %d (%s)", len(left), left[0].Pid, left[0].Command)
		}
		return nil
	})
	return len(ended), err
}

// kill signals a process that has just been seen to be the cluster's. That
// it has ended meanwhile is what is wanted.
func kill(pid int, ended map[int]bool) {
	if syscall.Kill(pid, syscall.SIGKILL) == nil {
		ended[pid] = true
	}
}

// unmount undoes what the cluster mounted on the host: nothing, as its
// mounts lie in a namespace that ended with its processes, unless somebody
// has mounted something there by hand.
func unmount(_ context.Context, l layout.Layout) (int, error) {
	all, err := mounts.Self()
	if err != nil {
		return 0, err
	}
	var errs []error
	points := mounts.Below(all, l.State)
	for _, point := range points {
		if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return len(points), errors.Join(errs...)
}

func removeNetns(context.Context, layout.Layout) (int, error) {
	if _, err := os.Lstat(layout.NetnsFile); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	// Not mounted any more after an interrupted `down`: EINVAL.
	if err := unix.Unmount(layout.NetnsFile, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return 0, fmt.Errorf("network namespace %s: %w", layout.Netns, err)
	}
	if err := os.Remove(layout.NetnsFile); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", layout.Netns, err)
	}
	removeEmpty(filepath.Dir(layout.NetnsFile))
	return 1, nil
}

// removeCgroups removes the cluster's folder from every hierarchy, innermost
// first. The kernel frees a cgroup a moment after its last process.
func removeCgroups(ctx context.Context, _ layout.Layout) (int, error) {
	roots, err := isolate.CgroupRoots()
	if err != nil {
		return 0, err
	}
	var errs []error
	removed := 0
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, root := range roots {
		top := filepath.Join(root.Point, layout.Cgroup)
		err := kube.Until(ctx, func(context.Context) error {
			n, err := removeCgroup(top)
			removed += n
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("cgroup: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}

func removeCgroup(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	removed := 0
	for _, e := range entries {
		if e.IsDir() {
			n, err := removeCgroup(filepath.Join(dir, e.Name()))
			removed += n
			if err != nil {
				return removed, err
			}
		}
	}
	// rmdir, and never a recursive removal: the files in there are not files.
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return removed, fmt.Errorf("remove %s: %w", dir, err)
	}
	return removed + 1, nil
}

// removeState comes last and only when nothing is mounted below.
func removeState(l layout.Layout, say func(string, ...any)) error {
	if _, err := os.Lstat(l.State); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	all, err := mounts.Self()
	if err != nil {
		return err
	}
	if points := mounts.Below(all, l.State); len(points) > 0 {
		return fmt.Errorf("%s is not removed, because %s is mounted there", l.State, points[0])
	}
	if err := os.RemoveAll(l.State); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	say("removed %s", l.State)
	return nil
}
