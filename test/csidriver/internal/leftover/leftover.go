// Package leftover is for tests: it finds what a driver left mounted and attached, and removes it, so that a test that
// fails leaves the machine clean too.
package leftover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Clean removes every mount below dir and detaches every loop device whose image lies there. It returns what it found.
// The folder's path must be free of symbolic links.
func Clean(dir string) (found []string, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir + "/"))
	if err != nil {
		return nil, err
	}
	// Those mounted last first, as they may lie on others.
	slices.Reverse(mounts)
	for _, m := range mounts {
		found = append(found, "mount at "+m.Mountpoint)
		if e := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m.Mountpoint, e))
		}
	}
	for device, image := range Attached(dir) {
		found = append(found, device+" attached to "+image)
		err = errors.Join(err, detach(device))
	}
	return found, err
}

// Attached returns the images below dir that are attached, by their devices.
func Attached(dir string) map[string]string {
	images := map[string]string{}
	// The pattern is well-formed.
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // Somebody else's, detached since.
		}
		if image := strings.TrimSpace(string(b)); strings.HasPrefix(image, dir+"/") {
			images["/dev/"+strings.Split(f, "/")[3]] = image
		}
	}
	return images
}

func detach(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	return errors.Join(err, f.Close())
}
