package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "These tests must run as root: they attach loop devices.")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newImage(t *testing.T, name string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Detach(context.Background(), path); err != nil {
			t.Error(err)
		}
		if _, ok, err := Find(path); ok || err != nil {
			t.Errorf("still attached: %t, %v", ok, err)
		}
	})
	return path
}

func attach(t *testing.T, image string) Device {
	t.Helper()
	d, err := Attach(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAttachOnceAndWriteThrough(t *testing.T) {
	image := newImage(t, "image")
	d := attach(t, image)
	if again := attach(t, image); again != d {
		t.Fatalf("attached twice: %s and %s", d.Path(), again.Path())
	}
	if found, ok, err := Find(image); !ok || err != nil || found != d {
		t.Fatalf("found %v, %t, %v", found, ok, err)
	}
	want := bytes.Repeat([]byte{7}, 4096)
	dev, err := os.OpenFile(d.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = dev.WriteAt(want, 8192)
	if err := errors.Join(err, d.Flush(), dev.Close()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content[8192:8192+4096], want) {
		t.Error("after Flush the data is not in the image")
	}
}

// More devices than the kernel makes at boot, taken by many at once.
func TestAttachManyConcurrently(t *testing.T) {
	const n = 40
	images := make([]string, n)
	for i := range images {
		images[i] = newImage(t, fmt.Sprint("image", i))
	}
	devices := make([]Device, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range images {
		wg.Go(func() { devices[i], errs[i] = Attach(t.Context(), images[i]) })
	}
	wg.Wait()
	seen := map[Device]bool{}
	for i, d := range devices {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if seen[d] {
			t.Errorf("%s serves two images", d.Path())
		}
		seen[d] = true
	}
}

// A detach that is pending because somebody holds the device is taken back by the next attach.
func TestAttachKeepsADeviceThatIsBeingDetached(t *testing.T) {
	image := newImage(t, "image")
	d := attach(t, image)
	holder, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Detach(ctx, image); !errors.Is(err, ErrBusy) {
		t.Fatalf("detach of a device in use: %v", err)
	}
	if again := attach(t, image); again != d {
		t.Fatalf("attached twice: %s and %s", d.Path(), again.Path())
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Find(image); !ok || err != nil {
		t.Errorf("lost with its last holder: %t, %v", ok, err)
	}
}

func TestResize(t *testing.T) {
	image := newImage(t, "image")
	d := attach(t, image)
	if err := os.Truncate(image, 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Seek(0, 2)
	if err := errors.Join(err, f.Close()); err != nil || size != 3<<20 {
		t.Errorf("device has %d bytes, %v", size, err)
	}
}

func TestDetachOfNothing(t *testing.T) {
	if err := Detach(t.Context(), "/nonexistent/image"); err != nil {
		t.Error(err)
	}
	if _, err := Attach(t.Context(), "/nonexistent/image"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("attach of a missing image: %v", err)
	}
}
