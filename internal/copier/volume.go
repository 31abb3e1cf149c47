//go:build linux

package copier

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// volume is an open source or target. It is safe for concurrent use.
type volume struct {
	path string
	size int64
	// block says that it is a block device and not a regular file.
	block bool
	// fresh says that it is a file that was empty when it was opened.
	fresh    bool
	buffered *os.File
	// direct is the same device past the page cache; nil for none.
	direct   *os.File
	indirect atomic.Bool  // direct I/O turned out not to work
	zeroWay  atomic.Int32 // the first of zeroModes that was not found not to work
}

// openVolume opens what exists. flags are those of os.OpenFile.
func openVolume(path string, flags int, info fs.FileInfo, buffered bool) (*volume, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	v := &volume{path: path, buffered: f, block: isBlockDevice(info)}
	if v.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(fmt.Errorf("find the size of %s: %w", path, err), f.Close())
	}
	// What is listed is read and nothing around it: no reading ahead. It is advice, whose failure changes nothing.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	if v.block && !buffered {
		// Without O_EXCL, which buffered holds already. If it cannot be opened so, the page cache will do.
		if d, err := os.OpenFile(path, flags&^unix.O_EXCL|unix.O_DIRECT, 0); err == nil {
			v.direct = d
		}
	}
	return v, nil
}

func isBlockDevice(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

func (v *volume) close() error {
	err := v.buffered.Close()
	if v.direct != nil {
		err = errors.Join(err, v.direct.Close())
	}
	if err != nil {
		return fmt.Errorf("close %s: %w", v.path, err)
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (v *volume) ReadAt(p []byte, offset int64) (int, error) {
	return v.transfer(p, offset, (*os.File).ReadAt)
}

// WriteAt implements io.WriterAt.
func (v *volume) WriteAt(p []byte, offset int64) (int, error) {
	n, err := v.transfer(p, offset, (*os.File).WriteAt)
	if err != nil {
		err = fmt.Errorf("write %d bytes at offset %d: %w", len(p), offset, err)
	}
	return n, err
}

// transfer reads or writes whole pages directly and what is left at both ends through the page cache. So a page that
// several workers share is only ever changed in the page cache, and never behind its back.
func (v *volume) transfer(p []byte, offset int64, do func(*os.File, []byte, int64) (int, error)) (int, error) {
	first := (pageBytes - offset%pageBytes) % pageBytes
	last := int64(len(p)) - (offset+int64(len(p)))%pageBytes
	if v.direct == nil || v.indirect.Load() || first >= last {
		return do(v.buffered, p, offset)
	}
	done := 0
	for _, part := range []struct {
		from, to int64
		file     *os.File
	}{{0, first, v.buffered}, {first, last, v.direct}, {last, int64(len(p)), v.buffered}} {
		if part.from == part.to {
			continue
		}
		n, err := do(part.file, p[part.from:part.to], offset+part.from)
		if part.file == v.direct && errors.Is(err, unix.EINVAL) {
			// The device wants more than whole pages.
			v.indirect.Store(true)
			n, err = do(v.buffered, p[part.from:part.to], offset+part.from)
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// The ways to make a range read as zeros, best first: without storage behind it, with it, and by writing.
var zeroModes = []uint32{
	unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
	unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
}

// Zero implements target. What the file system or device cannot do once it is not asked for again.
func (v *volume) Zero(offset, n int64) error {
	for {
		way := v.zeroWay.Load()
		if int(way) == len(zeroModes) {
			break
		}
		err := retryInterrupted(func() error {
			return unix.Fallocate(int(v.buffered.Fd()), zeroModes[way], offset, n)
		})
		if err == nil {
			return nil
		}
		// Whatever the reason: if it is not that this way is unsupported, the next ways fail with it, too.
		v.zeroWay.CompareAndSwap(way, way+1)
	}
	for n > 0 {
		m := min(n, int64(len(zeros)))
		if _, err := v.buffered.WriteAt(zeros[:m], offset); err != nil {
			return fmt.Errorf("write %d zeros at offset %d: %w", m, offset, err)
		}
		offset, n = offset+m, n-m
	}
	return nil
}

func retryInterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Sync makes everything that was written durable.
func (v *volume) Sync() error {
	if err := v.buffered.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", v.path, err)
	}
	return nil
}

// dropCache has the next read come from the storage, as far as the system lets us.
func (v *volume) dropCache() {
	if v.block {
		_ = unix.IoctlSetInt(int(v.buffered.Fd()), unix.BLKFLSBUF, 0) // needs a capability; the advice below needs none
	}
	_ = unix.Fadvise(int(v.buffered.Fd()), 0, 0, unix.FADV_DONTNEED)
}
