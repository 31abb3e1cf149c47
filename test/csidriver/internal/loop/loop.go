// Package loop attaches image files to loop devices. It keeps no state: which device serves a file is asked from the
// kernel each time, so that a driver that was killed finds everything again.
package loop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	controlPath = "/dev/loop-control"
	sysBlock    = "/sys/block"
	// attachTries bounds the race with other users of loop devices: between the question for a free device and
	// its configuration somebody else may take it.
	attachTries = 200
	pollEvery   = 5 * time.Millisecond
	// detachWait bounds how long Detach waits for other holders of the device, such as a prober, to close it.
	detachWait = 5 * time.Second
)

// ErrBusy says that a device is still open elsewhere. The kernel detaches it at the last close.
var ErrBusy = errors.New("loop device is still in use")

// Device is a loop device, /dev/loop<Number>.
type Device struct {
	Number int
}

// Path returns the device's node.
func (d Device) Path() string { return "/dev/loop" + strconv.Itoa(d.Number) }

// Find returns the device that serves the image file; ok is false if none does. The path must be absolute and free of
// symbolic links, as the kernel reports it that way.
func Find(image string) (d Device, ok bool, err error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return Device{}, false, fmt.Errorf("list block devices: %w", err)
	}
	for _, e := range entries {
		n, isLoop := number(e.Name())
		if !isLoop {
			continue
		}
		d = Device{Number: n}
		backing, err := d.backingFile()
		if err != nil {
			return Device{}, false, err
		}
		if backing == image {
			return d, true, nil
		}
	}
	return Device{}, false, nil
}

func number(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "loop")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// backingFile returns the path that d serves, "" if it serves none.
func (d Device) backingFile() (string, error) {
	b, err := os.ReadFile(filepath.Join(sysBlock, "loop"+strconv.Itoa(d.Number), "loop", "backing_file"))
	// ENXIO and ENODEV come from a device that is detached or removed while its attribute is read.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the backing file of %s: %w", d.Path(), err)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// Attach returns the device that serves the image file, and attaches one if there is none. A file is never attached
// twice: two devices would have two caches that know nothing of each other. Calls for one file must not run
// concurrently.
func Attach(ctx context.Context, image string) (Device, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return Device{}, fmt.Errorf("attach image: %w", err)
	}
	defer func() { _ = f.Close() }() // The kernel holds its own reference.
	for range attachTries {
		d, ok, err := Find(image)
		if err != nil {
			return Device{}, fmt.Errorf("attach %s: %w", image, err)
		}
		if ok {
			err = d.keep()
		} else {
			d, err = attachFree(f, image)
		}
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EAGAIN) {
			return Device{}, fmt.Errorf("attach %s: %w", image, err)
		}
		if err := pause(ctx); err != nil {
			return Device{}, fmt.Errorf("attach %s: %w", image, err)
		}
	}
	return Device{}, fmt.Errorf("attach %s: no free loop device could be taken in %d tries", image, attachTries)
}

func attachFree(image *os.File, path string) (Device, error) {
	ctl, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return Device{}, fmt.Errorf("ask for a free loop device: %w", err)
	}
	defer func() { _ = ctl.Close() }() // Only asked.
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return Device{}, fmt.Errorf("ask for a free loop device: %w", err)
	}
	d := Device{Number: n}
	if err := d.ensureNode(); err != nil {
		return Device{}, err
	}
	dev, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		return Device{}, fmt.Errorf("open loop device: %w", err)
	}
	defer func() { _ = dev.Close() }() // Only configured.
	conf := unix.LoopConfig{Fd: uint32(image.Fd())}
	// The kernel's own record of the name is 64 bytes; sysfs reports the whole path.
	copy(conf.Info.File_name[:len(conf.Info.File_name)-1], path)
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &conf); err != nil {
		return Device{}, fmt.Errorf("configure %s: %w", d.Path(), err)
	}
	return d, nil
}

// ensureNode makes the device's node where no devtmpfs made it, as in a container with a /dev of its own.
func (d Device) ensureNode() error {
	if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := os.ReadFile(filepath.Join(sysBlock, "loop"+strconv.Itoa(d.Number), "dev"))
	if err != nil {
		return fmt.Errorf("make %s: %w", d.Path(), err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("make %s: parse its number %q: %w", d.Path(), b, err)
	}
	err = unix.Mknod(d.Path(), unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w", d.Path(), err)
	}
	return nil
}

// keep takes back a detach that is pending until the last holder closes the device.
func (d Device) keep() error {
	return d.with(os.O_RDWR, func(fd int) error {
		info, err := unix.IoctlLoopGetStatus64(fd)
		if err != nil {
			return fmt.Errorf("query %s: %w", d.Path(), err)
		}
		if info.Flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
			return nil
		}
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		if err := unix.IoctlLoopSetStatus64(fd, info); err != nil {
			return fmt.Errorf("keep %s attached: %w", d.Path(), err)
		}
		return nil
	})
}

// Detach frees the device that serves the image file; without one it does nothing. It returns ErrBusy if the device is
// still open elsewhere after a few seconds.
func Detach(ctx context.Context, image string) error {
	ctx, cancel := context.WithTimeout(ctx, detachWait)
	defer cancel()
	for {
		d, ok, err := Find(image)
		if err != nil {
			return fmt.Errorf("detach %s: %w", image, err)
		}
		if !ok {
			return nil
		}
		err = d.with(os.O_RDONLY, func(fd int) error { return unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0) })
		if err != nil && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("detach %s from %s: %w", image, d.Path(), err)
		}
		if _, ok, err = Find(image); err != nil || !ok {
			return err
		}
		if pause(ctx) != nil {
			return fmt.Errorf("detach %s from %s: %w", image, d.Path(), ErrBusy)
		}
	}
}

// Flush brings everything that was written to the device into its image file.
func (d Device) Flush() error {
	return d.with(os.O_RDONLY, func(fd int) error {
		if err := unix.Fsync(fd); err != nil {
			return fmt.Errorf("sync %s: %w", d.Path(), err)
		}
		return nil
	})
}

// Resize gives the device the size that its image file has now.
func (d Device) Resize() error {
	return d.with(os.O_RDONLY, func(fd int) error {
		if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
			return fmt.Errorf("resize %s: %w", d.Path(), err)
		}
		return nil
	})
}

func (d Device) with(mode int, do func(fd int) error) error {
	f, err := os.OpenFile(d.Path(), mode, 0)
	if err != nil {
		return fmt.Errorf("open loop device: %w", err)
	}
	defer func() { _ = f.Close() }() // Nothing is written through this descriptor.
	return do(int(f.Fd()))
}

func pause(ctx context.Context) error {
	t := time.NewTimer(pollEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
