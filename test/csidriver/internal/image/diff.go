package image

import (
	"bytes"
	"context"
	"os"
)

// Extent is a range of an image, in bytes.
type Extent struct {
	Offset, Length int64
}

// End returns the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Diff calls emit, in ascending order, with ranges that together are exactly the blocks of target that differ from base;
// base nil stands for an image of zeros, so that the blocks of target that hold data are reported. Bytes past the end of
// base count as zeros; bytes of base past the end of target are ignored. A range never crosses a multiple of 1 MiB, so
// adjacent ones may touch.
//
// It starts with the block that contains from and reads as little as holes allow, in constant memory. An error of emit
// ends it and is returned as it is; so is the context's.
func Diff(ctx context.Context, target, base *os.File, from int64, emit func(Extent) error) error {
	t, err := newSparse(target)
	if err != nil {
		return err
	}
	var b *sparse
	if base != nil {
		if b, err = newSparse(base); err != nil {
			return err
		}
	}
	bufT, bufB := make([]byte, chunkBytes), make([]byte, chunkBytes)
	for pos := from / BlockBytes * BlockBytes; pos < t.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := nextOfBoth(t, b, pos)
		if err != nil {
			return err
		}
		if next >= t.size {
			break
		}
		pos = next / BlockBytes * BlockBytes
		end := min(t.size, (pos/chunkBytes+1)*chunkBytes)
		if err := diffChunk(t, b, bufT[:end-pos], bufB[:end-pos], pos, emit); err != nil {
			return err
		}
		pos = end
	}
	return ctx.Err()
}

func nextOfBoth(t, b *sparse, pos int64) (int64, error) {
	nextT, err := t.nextData(pos)
	if err != nil {
		return 0, err
	}
	nextB, err := b.nextData(pos)
	if err != nil {
		return 0, err
	}
	return min(nextT, nextB), nil
}

// diffChunk compares one chunk, block by block, and emits runs of differing blocks.
func diffChunk(t, b *sparse, bufT, bufB []byte, pos int64, emit func(Extent) error) error {
	dataT, err := t.read(bufT, pos)
	if err != nil {
		return err
	}
	dataB, err := b.read(bufB, pos)
	if err != nil {
		return err
	}
	if bytes.Equal(dataT, dataB) {
		return nil
	}
	return runs(len(dataT), func(from, to int) bool {
		return !bytes.Equal(dataT[from:to], dataB[from:to])
	}, func(from, to int) error {
		return emit(Extent{Offset: pos + int64(from), Length: int64(to - from)})
	})
}

// runs calls do with every longest run of blocks within size bytes for which pick holds. The last block may be short.
func runs(size int, pick func(from, to int) bool, do func(from, to int) error) error {
	start := -1
	for from := 0; from < size; from += BlockBytes {
		picked := pick(from, min(from+BlockBytes, size))
		switch {
		case picked && start < 0:
			start = from
		case !picked && start >= 0:
			if err := do(start, from); err != nil {
				return err
			}
			start = -1
		}
	}
	if start < 0 {
		return nil
	}
	return do(start, size)
}
