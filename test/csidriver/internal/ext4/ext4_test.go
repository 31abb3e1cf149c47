package ext4

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func newImage(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func checkBytes(t *testing.T, path string, want int64) {
	t.Helper()
	if got, ok, err := Bytes(path); err != nil || !ok || got != want {
		t.Errorf("filesystem of %d bytes, %t, %v; want %d", got, ok, err, want)
	}
}

func TestFormatAndGrow(t *testing.T) {
	for name, test := range map[string]struct{ size, grown int64 }{
		"smallest":        {1 << 20, 2 << 20},
		"smallest, a lot": {1 << 20, 10 << 30},
		"10 MiB":          {10 << 20, 100 << 20},
		"with a journal":  {journalFromBytes, 1 << 30},
		"odd":             {10<<20 + 4096*3, 10<<20 + 4096*700},
	} {
		t.Run(name, func(t *testing.T) {
			path := newImage(t, test.size)
			if _, ok, err := Bytes(path); ok || err != nil {
				t.Fatalf("zeros are a filesystem: %t, %v", ok, err)
			}
			if err := Format(t.Context(), path, test.size); err != nil {
				t.Fatal(err)
			}
			checkBytes(t, path, test.size)
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			if used := st.Blocks * 512; used > 300<<10 {
				t.Errorf("an empty filesystem of %d bytes takes %d", test.size, used)
			}
			if err := os.Truncate(path, test.grown); err != nil {
				t.Fatal(err)
			}
			if err := Grow(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			checkBytes(t, path, test.grown)
		})
	}
}

func TestFormatFails(t *testing.T) {
	if err := Format(t.Context(), filepath.Join(t.TempDir(), "missing"), 1<<20); err == nil {
		t.Error("formatted a file that does not exist")
	}
}
