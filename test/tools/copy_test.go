//go:build e2e

package tools

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/seeded"
)

// fileInFolder is where pageCopyLoop has a list, onDevice where the others have one.
func fileInFolder(t *testing.T, extents []blocklist.Extent) (list, place string) {
	list = listFile(t, blocklist.JSON, extents)
	return list, filepath.Dir(list)
}

func onDevice(t *testing.T, extents []blocklist.Extent) (list, place string) {
	list = listDevice(t, listHeader, extents)
	return list, list
}

func pageCopyLoop(t *testing.T, text string) { copied(t, text, "/mnt/changes", fileInFolder) }

func pageDdrescue(t *testing.T, text string) {
	need(t, "gddrescue", "ddrescue", "--version")
	copied(t, text, "/dev/xvda", onDevice)
}

func pageBmaptool(t *testing.T, text string) {
	need(t, "bmap-tools", "bmaptool", "--version")
	copied(t, text, "/dev/xvda", onDevice)
}

// copied has a block copy what a list says, and nothing if the list is empty; and fail where not all of it can be copied, although its
// shell goes on after a command that failed. name is the list's place on the page.
func copied(t *testing.T, text, name string, place func(*testing.T, []blocklist.Extent) (list, place string)) {
	rng := seeded.Rand(t)
	dir, extents := t.TempDir(), randomList(rng, 4096)
	on := func(t *testing.T, at string, v volumes) string {
		return replaced(t, text, name, at, "/dev/source", v.from, "/dev/target", v.to)
	}
	for _, extents := range [][]blocklist.Extent{nil, extents} {
		t.Run(fmt.Sprint(len(extents), " extents"), func(t *testing.T) {
			v := newVolumes(t, rng)
			_, at := place(t, extents)
			shell(t, dir, on(t, at, v))
			v.wantCopied(t, extents)
		})
	}
	for what, spoil := range map[string]func(t *testing.T, v *volumes, list string){
		"list is damaged":          func(t *testing.T, _ *volumes, list string) { damage(t, list) },
		"source cannot be read":    func(t *testing.T, v *volumes, _ string) { v.from = unreadable(t, v.source) },
		"source is too short":      func(t *testing.T, v *volumes, _ string) { v.from = device(t, v.source[:volumeBytes-2048]) },
		"target cannot be written": func(t *testing.T, v *volumes, _ string) { v.to = full(t) },
		"source is not there":      func(t *testing.T, v *volumes, _ string) { v.from = filepath.Join(t.TempDir(), "none") },
	} {
		t.Run(what, func(t *testing.T) {
			v := newVolumes(t, rng)
			list, at := place(t, extents)
			spoil(t, &v, list)
			cmd := exec.CommandContext(t.Context(), "sh", "-c", on(t, at, v))
			cmd.Dir = dir // with what the copy before has left there
			cmd.Env = withPrograms(t)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
				t.Fatalf("it ended with %v, want a status other than 0\n%s", err, out)
			}
			if what == "list is damaged" {
				v.wantCopied(t, nil)
			}
		})
	}
}

// damage changes a byte in the middle of a list.
func damage(t *testing.T, list string) {
	t.Helper()
	f, err := os.OpenFile(list, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	at, b := int64(4096+100), make([]byte, 1) // a device begins with a block that is not the list's
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		at = info.Size() / 2
	}
	_, err = f.ReadAt(b, at)
	if err == nil {
		_, err = f.WriteAt([]byte{b[0] ^ 4}, at)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// unreadable returns a device of which the second half cannot be read.
func unreadable(t *testing.T, content []byte) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	path := attach(t, image)
	if err := os.Truncate(image, volumeBytes/2); err != nil {
		t.Fatal(err)
	}
	return path
}

// full returns a device to which little can be written but its end: its image is on a file system that has no room for more.
func full(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=64k", "full", dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v\n%s", err, out)
		}
	})
	image := filepath.Join(dir, "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	end := make([]byte, 8192)
	_, err = f.WriteAt(end, volumeBytes-int64(len(end)))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return attach(t, image)
}
