package image

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomImage makes an image of size bytes out of holes, written zeros and data, in pieces of any length at any offset.
// Where base has content, some pieces repeat it. It returns the content too.
func randomImage(t *testing.T, r *rand.Rand, size int, base []byte) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	for range r.IntN(40) {
		from := r.IntN(size)
		if r.IntN(2) == 0 {
			from = from / BlockBytes * BlockBytes
		}
		piece := content[from:min(size, from+1+r.IntN(1<<r.IntN(19)))]
		switch r.IntN(4) {
		case 0:
			clear(piece) // Zeros that are written.
		case 1:
			if n := min(len(base)-from, len(piece)); n > 0 {
				copy(piece[:n], base[from:])
			}
		default:
			for i := range piece {
				piece[i] = byte(r.Uint32())
			}
		}
		if r.IntN(5) == 0 && len(piece) > BlockBytes {
			clear(piece)
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(len(piece)))
		} else {
			_, err = f.WriteAt(piece, int64(from))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return f, content
}

// naive lists the blocks of target that differ from base, block by block.
func naive(target, base []byte, from int64) (blocks []int64) {
	padded := make([]byte, max(len(target), len(base)))
	copy(padded, base)
	for off := from / BlockBytes * BlockBytes; off < int64(len(target)); off += BlockBytes {
		end := min(off+BlockBytes, int64(len(target)))
		if !bytes.Equal(target[off:end], padded[off:end]) {
			blocks = append(blocks, off)
		}
	}
	return blocks
}

// diffBlocks collects what Diff emits as blocks, and checks that ranges ascend and keep to chunks.
func diffBlocks(t *testing.T, target, base *os.File, size, from int64) (blocks []int64) {
	t.Helper()
	end := int64(0)
	err := Diff(context.Background(), target, base, from, func(e Extent) error {
		if e.Offset < end || e.Length <= 0 || e.End() > size || e.Offset%BlockBytes != 0 {
			t.Fatalf("range %+v after %d in %d bytes", e, end, size)
		}
		if e.Offset/chunkBytes != (e.End()-1)/chunkBytes {
			t.Fatalf("range %+v crosses a chunk", e)
		}
		end = e.End()
		for off := e.Offset; off < e.End(); off += BlockBytes {
			blocks = append(blocks, off)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

func TestDiffAgainstNaive(t *testing.T) {
	r := newRand(t)
	for round := range 80 {
		baseSize, targetSize := 1+r.IntN(3*chunkBytes), 1+r.IntN(3*chunkBytes)
		if r.IntN(2) == 0 {
			baseSize, targetSize = baseSize/BlockBytes*BlockBytes+BlockBytes, targetSize/BlockBytes*BlockBytes+BlockBytes
		}
		baseFile, base := randomImage(t, r, baseSize, nil)
		targetFile, target := randomImage(t, r, targetSize, base)
		from := int64(0)
		if r.IntN(2) == 0 {
			from = r.Int64N(int64(targetSize) + 1)
		}
		if got, want := diffBlocks(t, targetFile, baseFile, int64(targetSize), from), naive(target, base, from); !slices.Equal(got, want) {
			t.Fatalf("round %d: delta of %d to %d bytes from %d\n got %v\nwant %v", round, baseSize, targetSize, from, got, want)
		}
		if got, want := diffBlocks(t, targetFile, nil, int64(targetSize), from), naive(target, nil, from); !slices.Equal(got, want) {
			t.Fatalf("round %d: allocated of %d bytes from %d\n got %v\nwant %v", round, targetSize, from, got, want)
		}
	}
}

// A block that became a hole differs if it held data, and does not if it held zeros.
func TestDiffHoles(t *testing.T) {
	dir := t.TempDir()
	make3 := func(name string, blocks ...byte) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := f.Truncate(4 * BlockBytes); err != nil {
			t.Fatal(err)
		}
		for i, b := range blocks {
			if b == 'h' {
				continue
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{b}, BlockBytes), int64(i*BlockBytes)); err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	base := make3("base", 1, 0, 'h', 'h')
	target := make3("target", 'h', 'h', 0, 1)
	for name, test := range map[string]struct {
		target, base *os.File
		want         []int64
	}{
		"delta":               {target, base, []int64{0, 3 * BlockBytes}},
		"delta reversed":      {base, target, []int64{0, 3 * BlockBytes}},
		"allocated of base":   {base, nil, []int64{0}},
		"allocated of target": {target, nil, []int64{3 * BlockBytes}},
		"no difference":       {base, base, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := diffBlocks(t, test.target, test.base, 4*BlockBytes, 0); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestDiffEndsWithItsContextAndWithEmit(t *testing.T) {
	target, _ := randomImage(t, rand.New(rand.NewPCG(1, 1)), 2*chunkBytes, nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Diff(ctx, target, nil, 0, func(Extent) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// An image without any data is done at once, yet a cancelled comparison must not look complete.
	empty, err := os.Create(filepath.Join(t.TempDir(), "empty"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := empty.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := Diff(ctx, empty, nil, 0, func(Extent) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled, empty: %v", err)
	}
	stop := errors.New("stop")
	if err := Diff(context.Background(), target, nil, 0, func(Extent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("emit failed: %v", err)
	}
}

func TestCopy(t *testing.T) {
	r := newRand(t)
	for range 30 {
		size := 1 + r.IntN(3*chunkBytes)
		src, content := randomImage(t, r, size, nil)
		larger := size + r.IntN(2)*r.IntN(chunkBytes)
		dst, err := os.Create(filepath.Join(t.TempDir(), "copy"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Copy(context.Background(), dst, src, int64(larger)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(dst.Name())
		if err != nil {
			t.Fatal(err)
		}
		if want := append(content, make([]byte, larger-size)...); !bytes.Equal(got, want) {
			t.Fatalf("copy of %d to %d bytes differs", size, larger)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(dst.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		// A filesystem may also count blocks of its own map.
		if used, data := st.Blocks*512, int64(len(naive(got, nil, 0))*BlockBytes); used > data+64*BlockBytes {
			t.Errorf("copy takes %d bytes for %d bytes of data", used, data)
		}
		if err := dst.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCopyEndsWithItsContext(t *testing.T) {
	src, _ := randomImage(t, rand.New(rand.NewPCG(1, 1)), 2*chunkBytes, nil)
	dst, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dst.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// Where the host's filesystem can reflink, nothing is copied, so nothing can be cancelled.
	if err := copyBlocks(ctx, dst, src); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
