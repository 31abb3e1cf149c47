package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// fakeDevice is a device with a cache: what was written since the last sync may or may not be durable, each sector of it.
type fakeDevice struct {
	fs            *fakeFS
	data, durable []byte
}

const sector = 512

func (d *fakeDevice) WriteAt(p []byte, offset int64) (int, error) {
	short := d.fs.short && d.fs.ops == d.fs.failAt
	if err := d.fs.step(); err != nil {
		if !errors.Is(err, errStopped) {
			copy(d.data[offset:], p[:len(p)/2])
		}
		return 0, err
	}
	if short {
		p = p[:len(p)/2]
	}
	if offset+int64(len(p)) > int64(len(d.data)) {
		return 0, fmt.Errorf("write of %d bytes at %d past the end", len(p), offset)
	}
	return copy(d.data[offset:], p), nil
}

func (d *fakeDevice) Sync() error {
	if err := d.fs.step(); err != nil {
		return err
	}
	d.durable = slices.Clone(d.data)
	return nil
}

func (d *fakeDevice) Close() error { return d.fs.step() }

// testRecord is a record that names the list's size and digest and is only accepted as a whole.
func testRecord(n int64, sum [32]byte) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "list of %d bytes %x;", n, sum), 20)
}

// deviceList returns the list that a reader accepts from a device with that content: the record is whole and matches.
func deviceList(content []byte) (string, bool) {
	for _, list := range []string{whole(), oldList} {
		l := listOf(list)
		record := testRecord(l.Bytes, l.SHA256)
		if bytes.HasPrefix(content, record) && bytes.HasPrefix(content[DeviceHeaderBytes:], []byte(list)) {
			return list, true
		}
		if bytes.HasPrefix(content, record) {
			return "a record without its list", true
		}
	}
	return "", false
}

func newDeviceFS(size int) *fakeFS {
	fs := newFakeFS()
	data := make([]byte, size)
	old := listOf(oldList)
	copy(data, testRecord(old.Bytes, old.SHA256))
	copy(data[DeviceHeaderBytes:], oldList)
	fs.device = &fakeDevice{data: data, durable: slices.Clone(data)}
	return fs
}

func writeDevice(fs fileSystem) error {
	s, err := newDevice(fs, "/dev/target", testRecord, false)
	if err != nil {
		return err
	}
	return fill(s)
}

// TestDeviceCrash stops the machine after every operation in turn; then any sectors that were not synced may be old or new.
func TestDeviceCrash(t *testing.T) {
	const size = DeviceHeaderBytes + 2*sector
	fs := newDeviceFS(size)
	if err := writeDevice(fs); err != nil {
		t.Fatal(err)
	}
	total := fs.ops
	const seed = 7
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for stop := range total + 1 {
		fs := newDeviceFS(size)
		fs.stopAfter = stop
		err := writeDevice(fs)
		if (err == nil) != (stop == total) {
			t.Fatalf("stop after %d of %d operations: %v", stop, total, err)
		}
		for range 200 {
			content := slices.Clone(fs.device.durable)
			for at := 0; at < size; at += sector {
				if r.IntN(2) == 0 {
					copy(content[at:at+sector], fs.device.data[at:])
				}
			}
			list, ok := deviceList(content)
			if ok && list != whole() && list != oldList {
				t.Fatalf("stop after %d of %d operations: %s", stop, total, list)
			}
			if stop == total && list != whole() {
				t.Fatal("a committed list can be lost")
			}
		}
	}
}

// TestDeviceErrors fails every operation in turn.
func TestDeviceErrors(t *testing.T) {
	const size = DeviceHeaderBytes + 2*sector
	fs := newDeviceFS(size)
	if err := writeDevice(fs); err != nil {
		t.Fatal(err)
	}
	total := fs.ops
	for name, want := range map[string]error{"full": syscall.ENOSPC, "i/o": syscall.EIO, "short": nil} {
		for at := range total {
			fs := newDeviceFS(size)
			fs.failAt, fs.err, fs.short = at, want, want == nil
			err := writeDevice(fs)
			if want != nil && !errors.Is(err, want) {
				t.Errorf("%s at operation %d: the error is %v", name, at, err)
			}
			list, ok := deviceList(fs.device.data)
			if ok && list != whole() && list != oldList {
				t.Errorf("%s at operation %d: %s", name, at, list)
			}
			if err == nil && list != whole() {
				t.Errorf("%s at operation %d: success without the list", name, at)
			}
		}
	}
}

func TestDeviceFull(t *testing.T) {
	fs := newDeviceFS(DeviceHeaderBytes + len(whole()) - 1)
	var full *FullError
	if err := writeDevice(fs); !errors.As(err, &full) {
		t.Fatalf("the error is %v", err)
	}
	if full.NeededBytes != int64(len(whole())) || full.CapacityBytes != int64(len(whole())-1) {
		t.Errorf("%d bytes needed, room for %d", full.NeededBytes, full.CapacityBytes)
	}
	if list, ok := deviceList(fs.device.data); ok {
		t.Errorf("the device holds %q", list)
	}
	if err := writeDevice(&fakeFS{stopAfter: -1, failAt: -1, device: &fakeDevice{data: make([]byte, 100)}}); !errors.As(err, &full) {
		t.Errorf("a device without room for the record: %v", err)
	}
}

// TestReal writes to real files.
func TestReal(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 2*DeviceHeaderBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDevice(image, testRecord); err == nil {
		t.Error("a regular file passes for a device")
	}
	d, err := NewDeviceImage(image, testRecord)
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFile(dir, testName)
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	for _, s := range []Sink{d, f, NewStream(&stream)} {
		if err := fill(s); err != nil {
			t.Fatal(err)
		}
		if err := s.Abort(); err != nil {
			t.Errorf("abort after the commit: %v", err)
		}
	}
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := deviceList(content); list != whole() {
		t.Errorf("the image holds %q", list)
	}
	if stream.String() != whole() {
		t.Errorf("the stream holds %q", stream.String())
	}
	for name, want := range map[string]string{testName: whole(), testName + DigestSuffix: digestLine(whole())} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
}

// TestAbort and cancelled commits leave nothing.
func TestAbort(t *testing.T) {
	dir := t.TempDir()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, commit := range []bool{false, true} {
		s, err := NewFile(dir, testName)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(s, whole()); err != nil {
			t.Fatal(err)
		}
		if commit {
			if err := s.Commit(ended, listOf(whole())); !errors.Is(err, context.Canceled) {
				t.Errorf("a cancelled commit: %v", err)
			}
		}
		if err := s.Abort(); err != nil {
			t.Error(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 0 {
			t.Errorf("the folder holds %v, %v", entries, err)
		}
	}
}

// TestAbortBesideASuccessor is a run whose pod was thought dead: whatever it does, the list of the run that came after it stays.
func TestAbortBesideASuccessor(t *testing.T) {
	for _, commit := range []bool{false, true} {
		dir := t.TempDir()
		late, err := NewFile(dir, testName)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(late, whole()); err != nil {
			t.Fatal(err)
		}
		successor, err := NewFile(dir, testName)
		if err != nil {
			t.Fatal(err)
		}
		if err := fill(successor); err != nil {
			t.Fatal(err)
		}
		if commit {
			if err := late.Commit(t.Context(), listOf(whole())); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the late commit: %v", err)
			}
		}
		if err := late.Abort(); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]string{testName: whole(), testName + DigestSuffix: digestLine(whole())} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("commit %t: %s holds %q, %v", commit, name, got, err)
			}
		}
	}
}

// unkept is a file whose bytes are taken, and lost when they have to be kept.
type unkept struct{ *os.File }

func (unkept) Sync() error { return syscall.EDQUOT }

// TestStreamToAFile notices that a file system cannot keep what it took.
func TestStreamToAFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // nobody reads it
	if err := fill(NewStream(f)); err != nil {
		t.Error(err)
	}
	var full *FullError
	if err := fill(NewStream(unkept{f})); !errors.As(err, &full) {
		t.Errorf("the error is %v, want that the file system is full", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }() // of a pipe that nobody uses any more
	if err := fill(NewStream(unkept{w})); err != nil {
		t.Errorf("a pipe has nothing to keep: %v", err)
	}
}

// TestShortList refuses to commit when the bytes written are not as many as the list has.
func TestShortList(t *testing.T) {
	dir := t.TempDir()
	for _, missing := range []int{-1, 1} {
		fs := newDeviceFS(2 * DeviceHeaderBytes)
		d, err := newDevice(fs, "/dev/target", testRecord, false)
		if err != nil {
			t.Fatal(err)
		}
		f, err := NewFile(dir, testName)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []Sink{d, f, NewStream(io.Discard)} {
			if _, err := io.WriteString(s, whole()); err != nil {
				t.Fatal(err)
			}
			list := listOf(whole())
			list.Bytes += int64(missing)
			want := fmt.Sprintf("the list has %d bytes, but %d were written", list.Bytes, len(whole()))
			if err := s.Commit(t.Context(), list); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%T: the error is %v", s, err)
			}
			if err := s.Abort(); err != nil {
				t.Error(err)
			}
		}
		if list, ok := deviceList(fs.device.data); ok {
			t.Errorf("the device holds %q", list)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("the folder holds %v, %v", entries, err)
		}
	}
}
