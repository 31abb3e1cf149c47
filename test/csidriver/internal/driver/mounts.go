package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
func unmount(path string) error {
	for {
		mounted, err := isMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Mounts are made by system calls of this process, not by mount(8): a child would outlive a driver that is killed, and
// mount after the next driver has looked. Each is made by one call, so that no mount is ever there with half its options.

// mountFlags are the options of mount(8) that are flags of mount(2); other options are the filesystem's own.
var mountFlags = map[string]uintptr{
	"defaults":    0,
	"rw":          0,
	"ro":          unix.MS_RDONLY,
	"nosuid":      unix.MS_NOSUID,
	"nodev":       unix.MS_NODEV,
	"noexec":      unix.MS_NOEXEC,
	"sync":        unix.MS_SYNCHRONOUS,
	"dirsync":     unix.MS_DIRSYNC,
	"noatime":     unix.MS_NOATIME,
	"nodiratime":  unix.MS_NODIRATIME,
	"relatime":    unix.MS_RELATIME,
	"strictatime": unix.MS_STRICTATIME,
	"lazytime":    unix.MS_LAZYTIME,
}

// mountFilesystem mounts the filesystem on the device at path.
func mountFilesystem(dev loop.Device, path string, options []string) error {
	var flags uintptr
	var own []string
	for _, o := range options {
		if f, ok := mountFlags[o]; ok {
			flags |= f
		} else {
			own = append(own, o)
		}
	}
	if err := unix.Mount(dev.Path(), path, fsType, flags, strings.Join(own, ",")); err != nil {
		return fmt.Errorf("mount %s at %s with options %q: %w", dev.Path(), path, options, err)
	}
	return nil
}

// bindMount mounts source, a folder or a device node, at target too. Options of the filesystem, source has already.
func bindMount(source, target string, readOnly bool) (err error) {
	fail := func(err error) error { return fmt.Errorf("bind-mount %s at %s: %w", source, target, err) }
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	// An error of Close would be one of a descriptor that is gone in any case; the mount is what counts.
	defer func() { _ = unix.Close(tree) }()
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fail(err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(err)
	}
	return nil
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
