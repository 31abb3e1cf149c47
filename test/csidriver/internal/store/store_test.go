package store

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func writeImage(content string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(content), 0o600) }
}

func TestObjectsSurviveAReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	v := Volume{ID: "vol-1", Name: "one", SizeBytes: 4096, AccessType: Block}
	if err := s.Volumes.Create(v, writeImage("data")); err != nil {
		t.Fatal(err)
	}
	v.Published = []Publication{{TargetPath: "/t", AccessMode: "SINGLE_NODE_WRITER"}}
	if err := s.Volumes.Update(v); err != nil {
		t.Fatal(err)
	}
	snap := Snapshot{ID: "snap-1", Name: "s", SourceVolumeID: "vol-1", CreatedAt: time.Unix(1, 0).UTC()}
	if err := s.Snapshots.Create(snap, writeImage("copy")); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir)
	if got, err := s.Volumes.Get("vol-1"); err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("volume %+v, %v", got, err)
	}
	if got, ok := s.Snapshots.ByName("s"); !ok || got != snap {
		t.Errorf("snapshot %+v, %t", got, ok)
	}
	if b, err := os.ReadFile(s.Snapshots.ImagePath("snap-1")); string(b) != "copy" {
		t.Errorf("image %q, %v", b, err)
	}
	if err := s.Volumes.Delete("vol-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Volumes.Get("vol-1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted volume: %v", err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	broken := errors.New("broken")
	err := s.Volumes.Create(Volume{ID: "vol-1"}, func(path string) error {
		return errors.Join(writeImage("half")(path), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if len(s.Volumes.List()) != 0 {
		t.Error("it is listed")
	}
	checkEmpty(t, filepath.Join(dir, "volumes"))
}

// What a driver leaves that is killed while it creates, updates or deletes.
func TestOpenAfterAKill(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Volumes.Create(Volume{ID: "vol-1", Name: "kept"}, writeImage("data")); err != nil {
		t.Fatal(err)
	}
	volumes := filepath.Join(dir, "volumes")
	for _, leftover := range []string{makingPrefix + "vol-2", removingPrefix + "vol-3"} {
		if err := os.Mkdir(filepath.Join(volumes, leftover), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := writeImage("half")(filepath.Join(volumes, leftover, imageFile)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeImage(`{"id":`)(filepath.Join(volumes, "vol-1", recordFile+".new")); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := s.Volumes.List(); len(got) != 1 || got[0].Name != "kept" {
		t.Errorf("volumes %+v", got)
	}
	if err := s.Volumes.Delete("vol-1"); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, volumes)
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left in %s: %v, %v", dir, entries, err)
	}
}

func TestOpenRefusesADamagedRecord(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Volumes.Create(Volume{ID: "vol-1"}, writeImage("data")); err != nil {
		t.Fatal(err)
	}
	for _, record := range []string{"", "{", `{"id":"vol-2"}`} {
		if err := os.WriteFile(filepath.Join(dir, "volumes", "vol-1", recordFile), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil {
			t.Errorf("opened with record %q", record)
		}
	}
}
