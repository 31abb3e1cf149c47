package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/loop"
)

// isMountPoint also tells bind mounts and mounts on files. A path that does not exist is none.
func isMountPoint(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a mount at %s: %w", path, err)
	}
	return mounted, nil
}

// deviceMounts returns where the device is in use: the mount points of its filesystem, and the files on which its node is
// bind-mounted.
func deviceMounts(dev loop.Device) (filesystems, nodes []string, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dev.Path(), &st); err != nil {
		return nil, nil, fmt.Errorf("look for mounts of %s: %w", dev.Path(), err)
	}
	major, minor := int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev))
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("look for mounts of %s: %w", dev.Path(), err)
	}
	for _, m := range mounts {
		if m.Major == major && m.Minor == minor {
			filesystems = append(filesystems, m.Mountpoint)
		} else if filepath.Base(m.Root) == filepath.Base(dev.Path()) && isNodeOf(m.Mountpoint, st.Rdev) {
			nodes = append(nodes, m.Mountpoint)
		}
	}
	return filesystems, nodes, nil
}

func isNodeOf(path string, rdev uint64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == rdev
}

// isMountOf says whether the device's filesystem or node is mounted at path.
func isMountOf(dev loop.Device, path string) (bool, error) {
	filesystems, nodes, err := deviceMounts(dev)
	if err != nil {
		return false, err
	}
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a mount at %s: %w", path, err)
	}
	return slices.Contains(filesystems, resolved) || slices.Contains(nodes, resolved), nil
}

// unmount unmounts whatever is mounted at path, also if that was done more than once.
func (d *Driver) unmount(path string) error {
	for {
		mounted, err := isMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		if err := d.mounter.Unmount(path); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// removeTarget removes the empty folder or file that a publication made. It never removes anything that has content.
func removeTarget(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() && (!info.Mode().IsRegular() || info.Size() != 0) {
		return fmt.Errorf("%s is not an empty file or folder", path)
	}
	return os.Remove(path)
}
