package sink

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// errStopped is what every operation answers after the machine has stopped.
var errStopped = errors.New("the machine has stopped")

// fakeFS is a volume that can stop after any operation and fail any of them. It tells what was asked for from what is
// durable: a file's bytes are durable after Sync, a folder's entries after SyncDir.
type fakeFS struct {
	// stopAfter is the number of operations that take place; -1 for all.
	stopAfter int
	// failAt is the number of the operation that fails with err, from 0; -1 for none. With short it is a write that
	// takes half of its bytes and says so without an error.
	failAt int
	err    error
	short  bool

	ops   int
	names map[string]*fakeFile // as the process sees them
	// durable are the entries that a crash leaves in any case, pending the changes since, in order.
	durable map[string]*fakeFile
	pending []change
	device  *fakeDevice
}

// change is one change of the folder: name now holds file, or nothing.
type change struct {
	name string
	file *fakeFile
}

type fakeFile struct {
	fs            *fakeFS
	data, durable []byte
}

func newFakeFS() *fakeFS {
	return &fakeFS{stopAfter: -1, failAt: -1, names: map[string]*fakeFile{}, durable: map[string]*fakeFile{}}
}

// step counts an operation and says whether it takes place.
func (f *fakeFS) step() error {
	n := f.ops
	f.ops++
	switch {
	case f.stopAfter >= 0 && n >= f.stopAfter:
		return errStopped
	case n == f.failAt && !f.short:
		return f.err
	}
	return nil
}

func (f *fakeFS) change(name string, file *fakeFile) {
	if file == nil {
		delete(f.names, name)
	} else {
		f.names[name] = file
	}
	f.pending = append(f.pending, change{name, file})
}

func (f *fakeFS) Create(path string) (file, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	if f.names[path] != nil {
		return nil, os.ErrExist
	}
	file := &fakeFile{fs: f}
	f.change(path, file)
	return file, nil
}

func (f *fakeFS) Remove(path string) error {
	if err := f.step(); err != nil {
		return err
	}
	if f.names[path] == nil {
		return os.ErrNotExist
	}
	f.change(path, nil)
	return nil
}

func (f *fakeFS) Rename(from, to string) error {
	if err := f.step(); err != nil {
		return err
	}
	file := f.names[from]
	if file == nil {
		return os.ErrNotExist
	}
	f.change(to, file)
	f.change(from, nil)
	return nil
}

func (f *fakeFS) SyncDir(string) error {
	if err := f.step(); err != nil {
		return err
	}
	f.durable, f.pending = maps.Clone(f.names), nil
	return nil
}

func (f *fakeFS) OpenDevice(string, bool) (device, int64, error) {
	if err := f.step(); err != nil {
		return nil, 0, err
	}
	f.device.fs = f
	return f.device, int64(len(f.device.data)), nil
}

func (w *fakeFile) Write(p []byte) (int, error) {
	short := w.fs.short && w.fs.ops == w.fs.failAt
	if err := w.fs.step(); err != nil {
		if !errors.Is(err, errStopped) {
			// A failed write may have left a part.
			w.data = append(w.data, p[:len(p)/2]...)
		}
		return 0, err
	}
	if short {
		p = p[:len(p)/2]
	}
	w.data = append(w.data, p...)
	return len(p), nil
}

func (w *fakeFile) Sync() error {
	if err := w.fs.step(); err != nil {
		return err
	}
	w.durable = slices.Clone(w.data)
	return nil
}

func (w *fakeFile) Close() error { return w.fs.step() }

// remains calls check with every content that the folder may have after a crash: any part of the changes since the last
// sync may have reached it, and of a file's bytes the synced ones, all, half of the rest, or zeros in place of the rest.
func (f *fakeFS) remains(check func(files map[string][]byte)) {
	for subset := range 1 << len(f.pending) {
		names := maps.Clone(f.durable)
		for i, c := range f.pending {
			switch {
			case subset>>i&1 == 0:
			case c.file == nil:
				delete(names, c.name)
			default:
				names[c.name] = c.file
			}
		}
		for variant := range 4 {
			files := map[string][]byte{}
			for name, file := range names {
				files[name] = file.remain(variant)
			}
			check(files)
		}
	}
}

func (w *fakeFile) remain(variant int) []byte {
	if len(w.data) <= len(w.durable) {
		return w.durable
	}
	rest := w.data[len(w.durable):]
	switch variant {
	case 0:
		return w.durable
	case 1:
		return w.data
	case 2:
		return append(slices.Clone(w.durable), rest[:len(rest)/2]...)
	}
	return append(slices.Clone(w.durable), make([]byte, len(rest))...)
}

const (
	testDir  = "/target"
	testName = "changed-blocks.json"
)

// pieces are the writes of a list; a list is accepted if it consists of all of them.
var pieces = []string{"{header\n", "extent 1\n", "extent 2\n", "trailer}\n"}

func whole() string { return strings.Join(pieces, "") }

// oldList is a whole list of an earlier run.
const oldList = "{header\nold\ntrailer}\n"

func accepted(list []byte) bool { return string(list) == whole() || string(list) == oldList }

func digestLine(list string) string {
	sum := sha256.Sum256([]byte(list))
	return hex.EncodeToString(sum[:]) + "  " + testName + "\n"
}

// withLeftovers puts what an earlier run may have left on the volume, and a foreign file.
func (f *fakeFS) withLeftovers() *fakeFS {
	for name, content := range map[string]string{
		testName: oldList, testName + DigestSuffix: digestLine(oldList), "." + testName + ".tmp": "half",
		"." + testName + DigestSuffix + ".tmp": "", "lost+found": "foreign",
	} {
		file := &fakeFile{fs: f, data: []byte(content), durable: []byte(content)}
		f.names[filepath.Join(testDir, name)] = file
	}
	f.durable = maps.Clone(f.names)
	return f
}

// writeList runs a whole population of a File, as the populator does.
func writeList(fs fileSystem) error {
	s, err := newFile(fs, testDir, testName)
	if err != nil {
		return err
	}
	return fill(s)
}

func fill(s Sink) error {
	for _, p := range pieces {
		if n, err := io.WriteString(s, p); err != nil || n != len(p) {
			return errors.Join(err, s.Abort())
		}
	}
	if err := s.Commit(context.Background(), listOf(whole())); err != nil {
		return errors.Join(err, s.Abort())
	}
	return nil
}

// listOf is what an encoder says of a list.
func listOf(content string) List {
	return List{Bytes: int64(len(content)), SHA256: sha256.Sum256([]byte(content))}
}

// checkFiles checks what a crash or a failure left: a whole list or none, no digest without its list, and the foreign file.
func checkFiles(t *testing.T, when string, files map[string][]byte) {
	t.Helper()
	list, there := files[filepath.Join(testDir, testName)]
	if there && !accepted(list) {
		t.Errorf("%s: the list holds %q", when, list)
	}
	if digest, ok := files[filepath.Join(testDir, testName+DigestSuffix)]; ok {
		if !there {
			t.Errorf("%s: a digest without a list", when)
		} else if string(digest) != digestLine(string(list)) {
			t.Errorf("%s: the digest file holds %q beside the list %q", when, digest, list)
		}
	}
	if string(files[filepath.Join(testDir, "lost+found")]) != "foreign" {
		t.Errorf("%s: the foreign file is gone", when)
	}
}

// TestFileCrash stops the machine after every operation in turn. Then whatever can be left on the volume is checked, and a
// restarted populator has to come to the whole list from there.
func TestFileCrash(t *testing.T) {
	fs := newFakeFS().withLeftovers()
	if err := writeList(fs); err != nil {
		t.Fatal(err)
	}
	total := fs.ops
	if total < 15 {
		t.Fatalf("%d operations: the fake does not see all of them", total)
	}
	visible := 0
	for stop := range total + 1 {
		fs := newFakeFS().withLeftovers()
		fs.stopAfter = stop
		err := writeList(fs)
		if (err == nil) != (stop == total) {
			t.Fatalf("stop after %d of %d operations: %v", stop, total, err)
		}
		fs.remains(func(files map[string][]byte) {
			when := fmt.Sprintf("stop after %d of %d operations", stop, total)
			checkFiles(t, when, files)
			if string(files[filepath.Join(testDir, testName)]) == whole() {
				visible++
			}
			restart(t, when, files)
		})
		if stop == total {
			fs.remains(func(files map[string][]byte) {
				if string(files[filepath.Join(testDir, testName)]) != whole() || len(files) != 3 {
					t.Errorf("a committed list can be lost: %v", slices.Collect(maps.Keys(files)))
				}
			})
		}
	}
	if visible == 0 {
		t.Error("no crash left the list")
	}
}

// restart populates a volume that holds files.
func restart(t *testing.T, when string, files map[string][]byte) {
	t.Helper()
	fs := newFakeFS()
	for name, data := range files {
		fs.names[name] = &fakeFile{fs: fs, data: data, durable: data}
	}
	fs.durable = maps.Clone(fs.names)
	if err := writeList(fs); err != nil {
		t.Fatalf("%s, then restarted: %v", when, err)
	}
	list := fs.names[filepath.Join(testDir, testName)]
	digest := fs.names[filepath.Join(testDir, testName+DigestSuffix)]
	if list == nil || string(list.durable) != whole() || digest == nil || string(digest.durable) != digestLine(whole()) || len(fs.names) != 3 {
		t.Errorf("%s, then restarted: the volume holds %v", when, slices.Collect(maps.Keys(fs.names)))
	}
}

// beforeTheList reports whether err is about cleaning up, where a full volume says nothing about the list's size.
func beforeTheList(err error) bool {
	return strings.Contains(err.Error(), "earlier run") || strings.Contains(err.Error(), "sync "+testDir+":")
}

// TestFileErrors fails every operation in turn in several ways.
func TestFileErrors(t *testing.T) {
	fs := newFakeFS().withLeftovers()
	if err := writeList(fs); err != nil {
		t.Fatal(err)
	}
	total := fs.ops
	for name, want := range map[string]error{"full": syscall.ENOSPC, "quota": syscall.EDQUOT, "i/o": syscall.EIO, "read-only": syscall.EROFS, "short": nil} {
		for at := range total {
			fs := newFakeFS().withLeftovers()
			fs.failAt, fs.err, fs.short = at, want, want == nil
			err := writeList(fs)
			when := fmt.Sprintf("%s at operation %d", name, at)
			if want != nil && !errors.Is(err, want) {
				t.Errorf("%s: the error is %v", when, err)
			}
			if want == nil && err != nil && !errors.Is(err, io.ErrShortWrite) {
				t.Errorf("%s: the error is %v", when, err)
			}
			var full *FullError
			if got := errors.As(err, &full); got != (name == "full" || name == "quota") && !beforeTheList(err) {
				t.Errorf("%s: the error is %v", when, err)
			}
			if err == nil && string(fs.names[filepath.Join(testDir, testName)].data) != whole() {
				t.Errorf("%s: success without the list", when)
			}
			files := map[string][]byte{}
			for name, file := range fs.names {
				files[name] = file.data
			}
			checkFiles(t, when, files)
		}
	}
}
