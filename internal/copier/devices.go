//go:build linux

package copier

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// loopDepth bounds how many loop devices may stand on each other.
const loopDepth = 8

// deviceNumber returns a block device's number as the kernel's files write it, and whether path is a block device.
func deviceNumber(path string) (string, bool, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return "", false, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", false, nil
	}
	return fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev)), true, nil
}

// sysfs returns the kernel's folder of a device; empty if it does not show one.
func sysfs(number string) string {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return ""
	}
	return dir
}

// related says in what way writing to a changes b; empty if it does not.
func related(a, b string) (string, error) {
	a, b = behindLoops(a), behindLoops(b)
	infoA, err := os.Stat(a)
	if err != nil {
		return "", err
	}
	infoB, err := os.Stat(b)
	if err != nil {
		return "", err
	}
	if os.SameFile(infoA, infoB) {
		return "are the same", nil
	}
	numberA, blockA, err := deviceNumber(a)
	if err != nil {
		return "", err
	}
	numberB, blockB, err := deviceNumber(b)
	if err != nil || !blockA || !blockB {
		return "", err
	}
	if numberA == numberB {
		return "are the same device", nil
	}
	dirA, dirB := sysfs(numberA)+"/", sysfs(numberB)+"/"
	if dirA != "/" && dirB != "/" && (strings.HasPrefix(dirA, dirB) || strings.HasPrefix(dirB, dirA)) {
		return "are a disk and a part of it", nil
	}
	return "", nil
}

// behindLoops returns the file or device under path's loop devices, or path. In a container, the file may be out of
// sight: then the loop device is as far as it goes.
func behindLoops(path string) string {
	for range loopDepth {
		number, block, err := deviceNumber(path)
		if err != nil || !block {
			return path
		}
		backing, err := os.ReadFile("/sys/dev/block/" + number + "/loop/backing_file")
		if err != nil {
			return path
		}
		below := strings.TrimSuffix(string(backing), "\n")
		if _, err := os.Stat(below); err != nil {
			return path
		}
		path = below
	}
	return path
}

// inUse says who uses a target; empty if nobody is known to. Who has mounted a device in another namespace is not seen
// here, but when it is opened.
func inUse(path string, info fs.FileInfo) (string, error) {
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for line := range strings.Lines(string(swaps)) {
		fields := strings.Fields(line)
		if len(fields) > 0 && strings.HasPrefix(fields[0], "/") {
			if same, err := related(path, fields[0]); err == nil && same != "" {
				return "it is swap space", nil
			}
		}
	}
	number, block, err := deviceNumber(path)
	if err != nil {
		return "", err
	}
	if !block {
		return loopOver(info)
	}
	mounts, err := mountsOf(number)
	if err != nil {
		return "", err
	}
	if len(mounts) > 0 {
		return "it is mounted at " + mounts[0].point, nil
	}
	if holders, err := os.ReadDir("/sys/dev/block/" + number + "/holders"); err == nil && len(holders) > 0 {
		return "it is part of " + holders[0].Name(), nil
	}
	return "", nil
}

// loopOver says whether a loop device makes a disk of the file: what uses the disk must not see it change.
func loopOver(file fs.FileInfo) (string, error) {
	found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, at := range found {
		backing, err := os.ReadFile(at)
		if err != nil {
			continue // detached since
		}
		if info, err := os.Stat(strings.TrimSuffix(string(backing), "\n")); err == nil && os.SameFile(info, file) {
			return fmt.Sprintf("loop device /dev/%s is attached to it; write to the device, or detach it", strings.Split(at, "/")[3]), nil
		}
	}
	return "", nil
}

// mount is a line of the mount table.
type mount struct {
	point    string
	writable bool
}

// mountsOf returns where in this mount namespace the device is mounted.
func mountsOf(number string) ([]mount, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(table, func(entryNumber, source string) bool {
		if entryNumber == number {
			return true
		}
		// Some file systems (btrfs) have numbers of their own; their source names the device.
		if !strings.HasPrefix(source, "/dev/") {
			return false
		}
		n, block, err := deviceNumber(source)
		return err == nil && block && n == number
	}), nil
}

// parseMounts returns the mounts whose device number or source is wanted: "36 35 98:0 /root /point rw,noatime shared:1 -
// ext4 /dev/root rw,errors=continue".
func parseMounts(table []byte, wanted func(number, source string) bool) []mount {
	var mounts []mount
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+4 || !wanted(fields[2], fields[dash+2]) {
			continue
		}
		writable := slices.Contains(strings.Split(fields[5], ","), "rw") &&
			slices.Contains(strings.Split(fields[dash+3], ","), "rw")
		mounts = append(mounts, mount{point: fields[4], writable: writable})
	}
	return mounts
}

// mountedForWriting returns where v's device is mounted for writing; empty if it is not.
func mountedForWriting(v *volume) (string, error) {
	number, block, err := deviceNumber(v.path)
	if err != nil || !block {
		return "", err
	}
	mounts, err := mountsOf(number)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.writable {
			return m.point, nil
		}
	}
	return "", nil
}

// identity tells v from every other volume that may ever have its name: a file by its inode and time of birth, a device
// by the number that the kernel gave it when it was attached, in this boot. Empty if the system does not tell.
func (v *volume) identity() string {
	if !v.block {
		var stat unix.Statx_t
		err := unix.Statx(int(v.buffered.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &stat)
		if err != nil || stat.Mask&unix.STATX_INO == 0 || stat.Mask&unix.STATX_BTIME == 0 {
			return ""
		}
		return fmt.Sprintf("file %d of %d.%09d", stat.Ino, stat.Btime.Sec, stat.Btime.Nsec)
	}
	number, _, err := deviceNumber(v.path)
	if err != nil {
		return ""
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	dir := sysfs(number)
	sequence, err := os.ReadFile(dir + "/diskseq")
	if err != nil {
		sequence, err = os.ReadFile(filepath.Dir(dir) + "/diskseq") // of a partition's disk
	}
	if err != nil {
		return ""
	}
	return fmt.Sprintf("device %s, disk %s of boot %s", number, bytes.TrimSpace(sequence), bytes.TrimSpace(boot))
}

// version tells a source from every other that may have its name, and a file from what it was before it was changed. A device
// that was written to does not show it. Empty if the system does not tell.
func (v *volume) version() string {
	identity := v.identity()
	if v.block || identity == "" {
		return identity
	}
	var stat unix.Statx_t
	err := unix.Statx(int(v.buffered.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_CTIME, &stat)
	if err != nil || stat.Mask&unix.STATX_CTIME == 0 {
		return ""
	}
	return fmt.Sprintf("%s, changed %d.%09d", identity, stat.Ctime.Sec, stat.Ctime.Nsec)
}
