package image

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkDiff compares two images without holes, of which one block in a hundred differs, and lists the data of one.
func BenchmarkDiff(b *testing.B) {
	const size = 256 << 20
	content := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(content) // It never fails.
	files := make([]*os.File, 2)
	for i := range files {
		path := filepath.Join(b.TempDir(), "image")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			b.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }() // Opened for reading.
		files[i] = f
		for off := 0; off < size; off += 100 * BlockBytes {
			content[off]++
		}
	}
	for name, base := range map[string]*os.File{"delta": files[0], "allocated": nil} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if err := Diff(context.Background(), files[1], base, 0, func(Extent) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
