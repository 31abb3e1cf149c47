// Package ext4 makes, grows and freezes the filesystem of a volume. It runs e2fsprogs.
package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// journalFromBytes is the volume size from which on a filesystem gets a journal, of the smallest size that there is: a
// journal's own blocks change with every write and take a large part of a small volume.
const journalFromBytes = 64 << 20

// Format makes a filesystem on the image file or device at path, which must be all zeros and size bytes long. Its blocks
// are as large as the blocks of the changed-block lists, and next to nothing is written that is not needed, now or in the
// background after mounting.
func Format(ctx context.Context, path string, size int64) error {
	args := []string{
		"-q", "-F", "-b", "4096", "-m", "0", "-I", "256", "-i", "16384",
		"-E", "nodiscard,lazy_itable_init=0,assume_storage_prezeroed=1",
	}
	if size < journalFromBytes {
		args = append(args, "-O", "^has_journal")
	} else {
		args = append(args, "-J", "size=4")
	}
	return run(ctx, 0, "mkfs.ext4", append(args, path)...)
}

// Grow grows the filesystem in the image file or on the device at path, which is not mounted, to the size of the file or
// device.
func Grow(ctx context.Context, path string) error {
	// resize2fs insists on a check. Exit code 1 says that something was repaired.
	if err := run(ctx, 1, "e2fsck", "-f", "-p", path); err != nil {
		return err
	}
	return run(ctx, 0, "resize2fs", path)
}

// GrowMounted grows the mounted filesystem on the device to the size of the device. The kernel allows that to processes
// with CAP_SYS_RESOURCE, which root lacks on some machines.
func GrowMounted(ctx context.Context, device string) error {
	if err := run(ctx, 0, "resize2fs", device); err != nil {
		return fmt.Errorf("grow a mounted filesystem, for which CAP_SYS_RESOURCE is needed: %w", err)
	}
	return nil
}

// run runs a program of e2fsprogs, which fails with an exit code above maxCode.
func run(ctx context.Context, maxCode int, name string, args ...string) error {
	path, err := lookPath(name)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() && exit.ExitCode() <= maxCode {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, bytes.TrimSpace(out))
	}
	return nil
}

// lookPath also finds programs for administrators when PATH has no sbin folders, as for a plain user's shell.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(dir + name)
	}
	if err != nil {
		return "", fmt.Errorf("find %s (package e2fsprogs): %w", name, err)
	}
	return path, nil
}

// Linux's FIFREEZE and FITHAW, _IOWR('X', 119|120, int), from include/uapi/linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Freeze brings everything that was written to the filesystem mounted at path onto its device and holds writers until
// Thaw. It returns false if somebody else has frozen the filesystem already.
func Freeze(path string) (frozen bool, err error) {
	err = ioctl(path, fiFreeze)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("freeze %s: %w", path, err)
	}
	return true, nil
}

// Thaw ends Freeze. A filesystem that is not frozen is left as it is.
func Thaw(path string) error {
	if err := ioctl(path, fiThaw); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("thaw %s: %w", path, err)
	}
	return nil
}

func ioctl(path string, request uint) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // A folder opened for reading.
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}

// Bytes returns the size of the filesystem in the image or on the device at path; ok is false if there is none of the ext
// family.
func Bytes(path string) (bytes int64, ok bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = f.Close() }() // Opened for reading.
	// The superblock starts at byte 1024 (https://docs.kernel.org/filesystems/ext4/super.html).
	var sb [1024]byte
	if _, err := f.ReadAt(sb[:], 1024); err != nil {
		return 0, false, fmt.Errorf("read the superblock of %s: %w", path, err)
	}
	le := binary.LittleEndian
	if magic := le.Uint16(sb[0x38:]); magic != 0xef53 {
		return 0, false, nil
	}
	blocks := uint64(le.Uint32(sb[0x4:])) | uint64(le.Uint32(sb[0x150:]))<<32
	return int64(blocks << (10 + le.Uint32(sb[0x18:]))), true, nil
}
