package teardown

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/mounts"
)

// detachLoops detaches the loop devices over files below the state folder,
// and no others. A device that a dying mount still uses goes away with it.
func detachLoops(ctx context.Context, l layout.Layout) (int, error) {
	detached := map[string]bool{}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := kube.Until(ctx, func(context.Context) error {
		devices, err := loopsBelow("/sys/block", l.State)
		if err != nil {
			return err
		}
		for _, device := range devices {
			if err := clearLoop(device); err != nil {
				return err
			}
			detached[device] = true
		}
		if len(devices) > 0 {
			return fmt.Errorf("loop device %s is still in use", devices[0])
		}
		return nil
	})
	return len(detached), err
}

// loopsBelow returns the loop devices, as /dev paths, whose backing files
// lie below dir, deleted files included. sys is the kernel's list of disks.
func loopsBelow(sys, dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(sys, "loop*", "loop", "backing_file"))
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	var devices []string
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // detached just now
		}
		if err != nil {
			return nil, fmt.Errorf("loop devices: %w", err)
		}
		path := strings.TrimSuffix(strings.TrimRight(string(backing), "\n"), " (deleted)")
		if mounts.Within(path, dir) {
			devices = append(devices, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	return devices, nil
}

func clearLoop(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil // detached just now
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("loop device %s: %w", device, err)
	}
	return nil
}
