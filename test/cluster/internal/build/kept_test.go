package build

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestKept(t *testing.T) {
	cache := t.TempDir()
	k := keptIn(cache)
	first, second := filepath.Join(t.TempDir(), "tool"), filepath.Join(t.TempDir(), "tool")
	if k.take(first, "abc") {
		t.Error("an empty folder had a binary")
	}
	if err := os.WriteFile(first, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * keepFor)
	if err := os.Chtimes(first, old, old); err != nil {
		t.Fatal(err)
	}
	if err := k.put(first, "abc"); err != nil {
		t.Fatal(err)
	}
	if k.take(second, "abd") {
		t.Error("a binary of another stamp was taken")
	}
	if !k.take(second, "abc") || !current(second, "abc") {
		t.Fatal("the binary was not taken")
	}
	if got, err := os.ReadFile(second); err != nil || string(got) != "program" {
		t.Errorf("the copy holds %q, %v", got, err)
	}
	if info, err := os.Stat(second); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the copy is %v, %v", info.Mode(), err)
	}

	if built, taken := modified(t, first), modified(t, second); !built.Equal(taken) {
		t.Errorf("the copy is of %v, what was built of %v", taken, built)
	}

	if err := os.Chtimes(filepath.Join(string(k), "abc"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := k.put(first, "abe"); err != nil {
		t.Fatal(err)
	}
	if k.take(second, "abc") {
		t.Error("what nobody asked for was kept")
	}
	before := modified(t, second)
	if !k.take(second, "abe") {
		t.Error("what was just built was not kept")
	}
	if modified(t, second).Equal(before) {
		t.Error("another component has the same time")
	}
}

func modified(t *testing.T, path string) time.Time {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

func TestKeptNowhere(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(binary, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	k := keptIn("off")
	if err := k.put(binary, "abc"); err != nil {
		t.Error(err)
	}
	if k.take(binary, "abc") {
		t.Error("something was kept although Go caches nothing")
	}
}
