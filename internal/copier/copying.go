//go:build linux

package copier

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// holeBytes is the shortest run of zeros for which a hole is punched into a target that may hold old data. Shorter ones
// are written: for a device, a hole is a request of its own.
const holeBytes = 64 << 10

// target is what a copy does to a target.
type target interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes n bytes from offset on read as zeros.
	Zero(offset, n int64) error
}

// copying copies pieces.
type copying struct {
	source io.ReaderAt
	target target
	// sparse says that the target reads as zeros wherever this copy has not written.
	sparse bool
	// summed says that a journal wants a digest of what is copied.
	summed               bool
	read, written, zeros atomic.Int64
}

func (c *copying) copy(piece blocklist.Extent, b *buffers) error {
	p := place(b.first, piece)
	if err := readFull(c.source, p, piece.Offset); err != nil {
		return err
	}
	c.read.Add(piece.Length)
	if c.summed {
		b.add(piece, p)
	}
	shortest := int64(holeBytes)
	if c.sparse {
		shortest = pageBytes
	}
	return runs(p, piece.Offset, shortest, func(zero bool, p []byte, offset int64) error {
		if !zero {
			if _, err := c.target.WriteAt(p, offset); err != nil {
				return err
			}
			c.written.Add(int64(len(p)))
			return nil
		}
		c.zeros.Add(int64(len(p)))
		if c.sparse {
			return nil
		}
		return c.target.Zero(offset, int64(len(p)))
	})
}

// readFull reads all of p; the end of the volume inside of it is an error.
func readFull(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(p), offset, err)
}

// runs divides p, which begins at offset of its volume, into runs of zeros that are whole pages and at least shortest
// bytes long, and what lies between them.
func runs(p []byte, offset, shortest int64, do func(zero bool, p []byte, offset int64) error) error {
	start := int64(0) // of what is not given to do yet
	end := int64(len(p))
	for i := int64(0); i < end; {
		n := zeroPages(p[i:], offset+i)
		if n < max(shortest, 1) {
			i += n + pageBytes - (offset+i+n)%pageBytes
			continue
		}
		if i > start {
			if err := do(false, p[start:i], offset+start); err != nil {
				return err
			}
		}
		if err := do(true, p[i:i+n], offset+i); err != nil {
			return err
		}
		i += n
		start = i
	}
	if start < end {
		return do(false, p[start:], offset+start)
	}
	return nil
}

var zeros = make([]byte, max(holeBytes, pageBytes))

// zeroPages returns how many bytes at the start of p, which begins at offset, are whole pages of zeros.
func zeroPages(p []byte, offset int64) int64 {
	n := int64(0)
	if offset%pageBytes != 0 {
		return 0
	}
	for n+pageBytes <= int64(len(p)) && bytes.Equal(p[n:n+pageBytes], zeros[:pageBytes]) {
		n += pageBytes
	}
	return n
}

// check reads pieces, for a digest that is that of a copy if the volume holds what was copied.
type check struct {
	volume io.ReaderAt
}

func (c *check) read(piece blocklist.Extent, b *buffers) error {
	p := place(b.first, piece)
	if err := readFull(c.volume, p, piece.Offset); err != nil {
		return err
	}
	b.add(piece, p)
	return nil
}

// comparison compares pieces.
type comparison struct {
	source, target io.ReaderAt
}

func (c *comparison) compare(piece blocklist.Extent, b *buffers) error {
	want, got := place(b.first, piece), place(b.second, piece)
	if err := readFull(c.source, want, piece.Offset); err != nil {
		return err
	}
	if err := readFull(c.target, got, piece.Offset); err != nil {
		return err
	}
	if bytes.Equal(want, got) {
		return nil
	}
	i := 0
	for want[i] == got[i] {
		i++
	}
	return fmt.Errorf("%w: byte %d of the volume is %#02x instead of %#02x; copy again, and if that does not help, the target's storage is broken",
		ErrDiffers, piece.Offset+int64(i), got[i], want[i])
}
