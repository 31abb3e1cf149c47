package teardown

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/mounts"
)

// loopMajor is the device number of all loop devices.
const loopMajor = 7

// loop is an attached loop device.
type loop struct {
	number int
	// backing is the path of the file that it shows.
	backing string
	// on is the number of the loop device that it lies on, -1 for none: the
	// kubelet puts one over each Block volume. Such a device's path is lost
	// with the mount namespace in which it was made; this number is not.
	on int
}

// detachLoops detaches the loop devices over files below the state folder
// and those that lie on them, and no others. A device that a dying mount
// still uses goes away with it.
func detachLoops(ctx context.Context, l layout.Layout) (int, error) {
	detached := map[int]bool{}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := kube.Until(ctx, func(context.Context) error {
		all, err := attachedLoops(l.State)
		if err != nil {
			return err
		}
		ours := owned(all, l.State)
		for _, device := range ours {
			if err := detach(device); err != nil {
				return err
			}
			detached[device.number] = true
		}
		if len(ours) > 0 {
			return fmt.Errorf("loop device %d is still in use", ours[0].number)
		}
		return nil
	})
	return len(detached), err
}

// owned returns the devices over files below dir and those on top of them,
// the upper ones first.
func owned(all []loop, dir string) []loop {
	var ours []loop
	for _, d := range all {
		if mounts.Within(d.backing, dir) {
			ours = append(ours, d)
		}
	}
	// Each pass finds the devices on those of the pass before.
	for grown := true; grown; {
		grown = false
		for _, d := range all {
			has := func(n int) bool { return slices.ContainsFunc(ours, func(o loop) bool { return o.number == n }) }
			if d.on >= 0 && has(d.on) && !has(d.number) {
				ours, grown = append(ours, d), true
			}
		}
	}
	slices.Reverse(ours)
	return ours
}

// attachedLoops describes the attached devices, except those that show a
// regular file outside of dir: opening a stranger's device could disturb him.
func attachedLoops(dir string) ([]loop, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	var all []loop
	for _, file := range files {
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		number, err := strconv.Atoi(strings.TrimPrefix(name, "loop"))
		if err != nil {
			return nil, fmt.Errorf("loop device %s: %w", name, err)
		}
		if strange(file, dir) {
			continue
		}
		f, err := os.Open("/dev/" + name)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		device, attached, err := inspect(f, number)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("loop device %s: %w", name, err)
		}
		if attached {
			all = append(all, device)
		}
	}
	return all, nil
}

// strange says whether the device, whose path is in the given file of the
// kernel, is surely none of ours.
func strange(file, dir string) bool {
	path, err := os.ReadFile(file)
	if err != nil {
		return true // detached just now
	}
	backing := strings.TrimRight(string(path), "\n")
	info, err := os.Stat(backing)
	return err == nil && info.Mode().IsRegular() && !mounts.Within(backing, dir)
}

// inspect describes an open device. Nobody can give it to another file as
// long as it is open.
func inspect(f *os.File, number int) (loop, bool, error) {
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return loop{}, false, nil
	}
	if err != nil {
		return loop{}, false, err
	}
	backing, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", number))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return loop{}, false, nil
	}
	if err != nil {
		return loop{}, false, err
	}
	device := loop{number: number, on: -1}
	device.backing = strings.TrimSuffix(strings.TrimRight(string(backing), "\n"), " (deleted)")
	if unix.Major(info.Rdevice) == loopMajor {
		device.on = int(unix.Minor(info.Rdevice))
	}
	return device, true, nil
}

// detach detaches the device if it still is what it was.
func detach(device loop) error {
	f, err := os.Open(fmt.Sprintf("/dev/loop%d", device.number))
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	now, attached, err := inspect(f, device.number)
	if err == nil && attached && now == device {
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("loop device %d: %w", device.number, err)
	}
	return nil
}
