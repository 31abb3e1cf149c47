//go:build linux

package copier

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// scene is a list, a source and a target that fit each other, for a refusal to spoil.
type scene struct {
	*testing.T
	Options
	extents []blocklist.Extent
}

const sceneCapacity = 4 << 20

func newScene(t *testing.T) *scene {
	source, target := make([]byte, sceneCapacity), make([]byte, sceneCapacity)
	for i := range source {
		source[i], target[i] = 1, 2
	}
	extents := []blocklist.Extent{{Offset: 0, Length: 4096}, {Offset: sceneCapacity - 4096, Length: 4096}}
	return &scene{T: t, extents: extents, Options: Options{
		List: writeList(t, sceneCapacity, extents), Source: writeFile(t, "source", source), Target: writeFile(t, "target", target),
	}}
}

func (s *scene) truncate(path string, size int64) {
	s.Helper()
	if err := os.Truncate(path, size); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) link(to string) string {
	s.Helper()
	path := filepath.Join(s.TempDir(), "link")
	if err := os.Symlink(to, path); err != nil {
		s.Fatal(err)
	}
	return path
}

// mount makes the target a device with a file system that is mounted.
func (s *scene) mount(flags uintptr) string {
	s.Helper()
	s.truncate(s.Target, 4<<20)
	device := attach(s.T, s.Target)
	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		s.Fatalf("mkfs: %v\n%s", err, out)
	}
	dir := s.TempDir()
	if err := unix.Mount(device, dir, "ext4", flags, ""); err != nil {
		s.Fatalf("mount: %v", err)
	}
	s.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			s.Errorf("unmount: %v", err)
		}
	})
	return device
}

// refusals are requests that must be refused before anything is written. spoil makes the scene one of them; what it
// returns is what the error must say.
var refusals = []struct {
	name  string
	force bool // --force lets it pass
	spoil func(*scene) string
}{
	{"list is cut", false, func(s *scene) string {
		s.truncate(s.List, int64(len(readFile(s, s.List)))-1)
		return "incomplete"
	}},
	{"list has a flipped bit", false, func(s *scene) string {
		data := readFile(s, s.List)
		data[len(data)/2] ^= 4
		s.List = writeFile(s, "flipped", data)
		return s.List
	}},
	{"list is none", false, func(s *scene) string { s.List = s.link(s.Source); return "not a list" }},
	{"no list", false, func(s *scene) string { s.List = ""; return "no list is named" }},
	{"no source", false, func(s *scene) string { s.Source = ""; return "no source is named" }},
	{"source is absent", false, func(s *scene) string { s.Source += "x"; return "no such file" }},
	{"source is a folder", false, func(s *scene) string { s.Source = s.TempDir(); return "neither a block device nor a regular file" }},
	{"source is larger than the volume", true, func(s *scene) string { s.truncate(s.Source, sceneCapacity+512); return "another volume" }},
	{"source is smaller than an extent's end", false, func(s *scene) string {
		s.truncate(s.Source, sceneCapacity-1)
		return "ends at byte 4194304"
	}},
	{"source is mounted", true, func(s *scene) string {
		s.Source = s.mount(0)
		s.Target = filepath.Join(s.TempDir(), "new")
		return "mounted for writing"
	}},
	{"target is absent and its folder, too", false, func(s *scene) string { s.Target = filepath.Join(s.TempDir(), "no", "t"); return "no such file" }},
	{"target is a link to nothing", false, func(s *scene) string { s.Target = s.link("/nowhere/at/all"); return "link to nothing" }},
	{"target is a character device", false, func(s *scene) string { s.Target = "/dev/null"; return "neither a block device" }},
	{"target file has another size", true, func(s *scene) string { s.truncate(s.Target, sceneCapacity-512); return "image of another volume" }},
	{"target device is too small", false, func(s *scene) string {
		s.truncate(s.Target, sceneCapacity-512)
		s.Target = attach(s.T, s.Target)
		return "too small"
	}},
	{"target device is read-only", false, func(s *scene) string { s.Target = attach(s.T, s.Target, "--read-only"); return "is read-only" }},
	{"target is the source", false, func(s *scene) string { s.Target = s.Source; return "named as source and as target" }},
	{"target is a link to the source", false, func(s *scene) string { s.Target = s.link(s.Source); return "are the same" }},
	{"target is the file behind the source", false, func(s *scene) string {
		s.Target, s.Source = s.Source, attach(s.T, s.Source)
		return "are the same"
	}},
	{"target is another device of the source's file", false, func(s *scene) string {
		s.Target, s.Source = attach(s.T, s.Source), attach(s.T, s.Source)
		return "are the same"
	}},
	{"target is a device over the source", false, func(s *scene) string {
		s.Source = attach(s.T, s.Source)
		s.Target = attach(s.T, s.Source)
		return "are the same"
	}},
	{"target is the list", false, func(s *scene) string { s.Target = s.link(s.List); return "are the same" }},
	{"target is the journal", false, func(s *scene) string { s.Journal = s.link(s.Target); return "not a file of its own" }},
	{"journal is the list", false, func(s *scene) string { s.Journal = s.link(s.List); return "not a journal" }},
	{"journal is some other file", false, func(s *scene) string { s.Journal = writeFile(s, "letter", []byte("Dear")); return "not a journal" }},
	{"journal cannot be written", false, func(s *scene) string { s.Journal = "/proc/journal"; return "write journal" }},
	{"journal is some other file, and the target new", false, func(s *scene) string {
		s.Target, s.Journal = filepath.Join(s.TempDir(), "new"), writeFile(s, "letter", []byte("Dear"))
		return "not a journal"
	}},
	{"journal beside a new target is some other file", false, func(s *scene) string {
		s.Target = strings.TrimSuffix(writeFile(s, "new.journal", []byte("Dear")), ".journal")
		return "not a journal"
	}},
	{"journal of a shard is some other file, and the target new", false, func(s *scene) string {
		s.Target, s.Shard = strings.TrimSuffix(writeFile(s, "new.journal-1-of-2", []byte("Dear")), ".journal-1-of-2"), Shard{Index: 1, Total: 2}
		return "not a journal"
	}},
	{"journal is some other file, and the target empty", false, func(s *scene) string {
		s.truncate(s.Target, 0)
		s.Journal = writeFile(s, "letter", []byte("Dear"))
		return "not a journal"
	}},
	{"journal cannot be written, and the target is new", false, func(s *scene) string {
		s.Target, s.Journal = filepath.Join(s.TempDir(), "new"), "/proc/journal"
		return "write journal"
	}},
	{"target is mounted", false, func(s *scene) string { s.Target = s.mount(unix.MS_RDONLY); return "it is mounted at" }},
	{"target has a loop device", false, func(s *scene) string { attach(s.T, s.Target); return "is attached to it" }},
	{"target is held", false, func(s *scene) string {
		s.Target = attach(s.T, s.Target)
		hold(s, s.Target, os.O_RDONLY|unix.O_EXCL)
		return "another program holds it"
	}},
	{"target is held, and one of several shards is to be written", false, func(s *scene) string {
		s.Target = attach(s.T, s.Target)
		hold(s, s.Target, os.O_RDONLY|unix.O_EXCL)
		s.Shard = Shard{Index: 0, Total: 2}
		return "another program holds it"
	}},
	{"another copy writes to the target", false, func(s *scene) string {
		f := hold(s, s.Target, os.O_RDWR)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			s.Fatal(err)
		}
		return "another copy"
	}},
	{"workers are too many", false, func(s *scene) string { s.Workers = 1000; return "use 1 to 256" }},
	{"shard does not exist", false, func(s *scene) string { s.Shard = Shard{Index: 3, Total: 3}; return "shard 3/3" }},
}

func hold(s *scene, path string, flags int) *os.File {
	s.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := f.Close(); err != nil {
			s.Error(err)
		}
	})
	return f
}

func TestRefusals(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			s := newScene(t)
			target := s.Target
			want := r.spoil(s)
			before := readFile(t, target)
			journal, _ := os.ReadFile(s.Journal) // of most there is none
			_, err := Run(t.Context(), s.Options)
			if !errors.Is(err, ErrRefused) || !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("error %v, want a refusal that says %q", err, want)
			}
			sameBytes(t, "target after the refusal", readFile(t, target), before)
			notCreated := func() {
				if _, err := os.Stat(s.Target); s.Target != "" && filepath.Base(s.Target) == "new" && err == nil {
					t.Error("the target was created")
				}
			}
			notCreated()
			s.Force = true
			if _, err := Run(t.Context(), s.Options); (err == nil) != r.force {
				t.Errorf("with force: error %v, want it to pass: %t", err, r.force)
			}
			if !r.force {
				sameBytes(t, "target after the refusal with force", readFile(t, target), before)
				notCreated()
			}
			if after, _ := os.ReadFile(s.Journal); !bytes.Equal(journal, after) && !r.force {
				t.Errorf("the journal was %q and is %q", journal, after)
			}
		})
	}
}

func TestScene(t *testing.T) {
	s := newScene(t)
	if _, err := Run(t.Context(), s.Options); err != nil {
		t.Fatalf("what the refusals spoil is refused before they do: %v", err)
	}
}

// TestJournalFails: a journal that turns out not to be written when the target is there is a failure, and no refusal, which would say
// that nothing has changed.
func TestJournalFails(t *testing.T) {
	s := newScene(t)
	s.Target, s.Journal = filepath.Join(t.TempDir(), "new"), filepath.Join(t.TempDir(), "journal")
	if err := os.Mkdir(s.Journal+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), s.Options); errors.Is(err, ErrRefused) || !strings.Contains(fmt.Sprint(err), "write journal") {
		t.Errorf("error %v", err)
	}
}

func TestForceExtends(t *testing.T) {
	s := newScene(t)
	s.truncate(s.Target, 1<<20)
	s.Force = true
	if _, err := Run(t.Context(), s.Options); err != nil {
		t.Fatal(err)
	}
	old := make([]byte, sceneCapacity)
	for i := range 1 << 20 {
		old[i] = 2
	}
	sameBytes(t, "target", readFile(t, s.Target), apply(old, readFile(t, s.Source), s.extents))
}

func TestParseShard(t *testing.T) {
	for in, want := range map[string]Shard{"0/1": {0, 1}, "3/4": {3, 4}} {
		if got, err := ParseShard(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "1", "/", "4/4", "-1/4", "0/0", "a/4", "1/4/2"} {
		if got, err := ParseShard(in); err == nil {
			t.Errorf("%q is taken for shard %v", in, got)
		}
	}
}

func TestParseMounts(t *testing.T) {
	table := []byte(`22 1 254:0 / / rw,relatime - ext4 /dev/root rw
36 22 98:0 /mnt1 /mnt/with\040space rw,noatime master:1 shared:2 - ext4 /dev/sdb1 rw,errors=continue
37 22 98:0 / /readonly ro - ext4 /dev/sdb1 rw
38 22 98:0 / /superreadonly rw - ext4 /dev/sdb1 ro
39 22 0:42 / /btrfs rw - btrfs /dev/sdc rw
a line that is none
`)
	got := parseMounts(table, func(number, source string) bool { return number == "98:0" || source == "/dev/sdc" })
	want := []mount{{`/mnt/with\040space`, true}, {"/readonly", false}, {"/superreadonly", false}, {"/btrfs", true}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mount{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
