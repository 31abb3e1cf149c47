package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Copy makes dst, an empty file, a copy of src that is size bytes long (not less than src): a reflink where the host's
// filesystem can do that, else a copy of the blocks that hold anything but zeros. It does not sync dst.
func Copy(ctx context.Context, dst, src *os.File, size int64) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if err != nil && !cannotClone(err) {
		return fmt.Errorf("clone %s: %w", src.Name(), err)
	}
	if err != nil {
		if err := copyBlocks(ctx, dst, src); err != nil {
			return err
		}
	}
	if err := dst.Truncate(size); err != nil {
		return fmt.Errorf("size of %s: %w", dst.Name(), err)
	}
	return nil
}

func cannotClone(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func copyBlocks(ctx context.Context, dst, src *os.File) error {
	s, err := newSparse(src)
	if err != nil {
		return err
	}
	buf := make([]byte, chunkBytes)
	for pos := int64(0); pos < s.size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
		next, err := s.nextData(pos)
		if err != nil {
			return err
		}
		if next >= s.size {
			break
		}
		pos = next / BlockBytes * BlockBytes
		end := min(s.size, (pos/chunkBytes+1)*chunkBytes)
		data, err := s.read(buf[:end-pos], pos)
		if err != nil {
			return err
		}
		err = runs(len(data), func(from, to int) bool {
			return !isZero(data[from:to])
		}, func(from, to int) error {
			_, err := dst.WriteAt(data[from:to], pos+int64(from))
			return err
		})
		if err != nil {
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
		pos = end
	}
	return nil
}
