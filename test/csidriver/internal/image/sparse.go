// Package image reads the image files of volumes and snapshots: it copies them without filling their holes, and finds
// the blocks that hold data or that differ between two of them.
//
// What it reports depends on the content alone. Holes, as the host's filesystem reports them, only save reading: a hole
// and a block of zeros are the same. So the answers are the same on every host.
package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// BlockBytes is the granularity of everything that this package reports.
	BlockBytes = 4096
	// chunkBytes is how much is read at once, and so what a scan keeps in memory for each file.
	chunkBytes = 1 << 20
)

var zeros [chunkBytes]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// sparse reads a file of size bytes that may have holes. A nil *sparse reads as zeros only.
type sparse struct {
	file *os.File
	size int64
	// [dataStart, dataEnd) is the segment of data that was found last; between where it was looked for and
	// dataStart is a hole.
	dataStart, dataEnd int64
}

func newSparse(f *os.File) (*sparse, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return &sparse{file: f, size: info.Size()}, nil
}

// nextData returns the first offset at or after pos that may hold something else than zeros, math.MaxInt64 if there is
// none. It must be called with ascending positions.
func (s *sparse) nextData(pos int64) (int64, error) {
	if s == nil || pos >= s.size {
		return math.MaxInt64, nil
	}
	if pos < s.dataEnd {
		return max(pos, s.dataStart), nil
	}
	fd := int(s.file.Fd())
	start, err := unix.Seek(fd, pos, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		s.dataStart, s.dataEnd = math.MaxInt64, math.MaxInt64
		return math.MaxInt64, nil
	}
	if err != nil {
		return 0, fmt.Errorf("seek data of %s from %d: %w", s.file.Name(), pos, err)
	}
	end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil {
		return 0, fmt.Errorf("seek hole of %s from %d: %w", s.file.Name(), start, err)
	}
	s.dataStart, s.dataEnd = start, end
	return start, nil
}

// read fills buf with the bytes from pos on, zeros past the end of the file. It returns zeros' memory instead of buf
// where there is nothing to read.
func (s *sparse) read(buf []byte, pos int64) ([]byte, error) {
	next, err := s.nextData(pos)
	if err != nil {
		return nil, err
	}
	if next >= pos+int64(len(buf)) {
		return zeros[:len(buf)], nil
	}
	n := int(min(int64(len(buf)), s.size-pos))
	if _, err := io.ReadFull(io.NewSectionReader(s.file, pos, int64(n)), buf[:n]); err != nil {
		return nil, fmt.Errorf("read %s at %d: %w", s.file.Name(), pos, err)
	}
	clear(buf[n:])
	return buf, nil
}
