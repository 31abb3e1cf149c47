package blocklist

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// The reasons for which a reader refuses a list; the errors it returns wrap one of them and say where. An error of the
// underlying reader is none of them.
var (
	// ErrIncomplete: the list ends too early.
	ErrIncomplete = errors.New("list is incomplete")
	// ErrCorrupt: the bytes are not what an encoder writes, or do not match their checksums.
	ErrCorrupt = errors.New("list is corrupt")
	// ErrVersion: the list was written in a newer version of the format.
	ErrVersion = errors.New("list has an unknown format version")
	// ErrNotAList: the bytes do not begin like a list.
	ErrNotAList = errors.New("not a list of changed blocks")
)

// firstRead and sourceBytes are the sizes at which a source's buffer begins and to which it grows as a list turns out
// to be long; a record longer than that makes it grow further.
const (
	firstRead   = 4 << 10
	sourceBytes = 256 << 10
)

// maxEmptyReads is how often a reader may return nothing without an error before it counts as broken.
const maxEmptyReads = 100

// source is a window on a list's bytes. What was read and not yet consumed is buf[pos:end].
type source struct {
	r        io.Reader
	buf      []byte
	pos, end int
	base     int64     // position of buf[0] in the list
	sum      hash.Hash // digest of the list up to buf[summed]; nil if nobody asks for it
	summed   int
	err      error // what r returned last
}

func newSource(r io.Reader) source {
	return source{r: r, buf: make([]byte, firstRead), sum: sha256.New()}
}

// newPartSource returns a source for the part of a list that begins at position; it keeps no digest.
func newPartSource(r io.Reader, position int64) source {
	return source{r: r, buf: make([]byte, firstRead), base: position}
}

// offset returns the position in the list of the first byte not consumed.
func (s *source) offset() int64 { return s.base + int64(s.pos) }

// rest returns what was read and not consumed.
func (s *source) rest() []byte { return s.buf[s.pos:s.end] }

func (s *source) consume(n int) { s.pos += n }

// want reads until n bytes are there, and reports whether they are. If not, s.err says why: io.EOF, or the reader's
// error. The buffer grows only after it was filled, so a false length costs no memory.
func (s *source) want(n int) bool {
	for s.end-s.pos < n {
		if s.err != nil {
			return false
		}
		if s.end == len(s.buf) {
			s.makeRoom(n)
		}
		s.fill()
	}
	return true
}

// atEnd reports whether the reader has come to its end: it returned io.EOF itself. One that wraps io.EOF in an error of its own
// has failed.
func (s *source) atEnd() bool { return s.err == io.EOF } //nolint:errorlint // see above

// makeRoom moves what is not consumed to the front of the buffer, and doubles a buffer that is short for n bytes or for
// large reads.
func (s *source) makeRoom(n int) {
	s.add(s.pos)
	buf := s.buf
	if len(buf) < max(n, sourceBytes) {
		buf = make([]byte, min(2*len(buf), max(n, sourceBytes)))
	}
	s.base += int64(s.pos)
	s.end = copy(buf, s.rest())
	s.buf, s.pos, s.summed = buf, 0, 0
}

func (s *source) fill() {
	for range maxEmptyReads {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		s.err = err
		if n > 0 || err != nil {
			return
		}
	}
	s.err = io.ErrNoProgress
}

// add brings the digest up to buf[:upTo].
func (s *source) add(upTo int) {
	if s.sum != nil && upTo > s.summed {
		s.sum.Write(s.buf[s.summed:upTo])
		s.summed = upTo
	}
}

// digest returns the SHA-256 of all bytes consumed.
func (s *source) digest() (d [sha256.Size]byte) {
	s.add(s.pos)
	s.sum.Sum(d[:0])
	return d
}

// cut returns the error for a list in which what does not follow although it must.
func (s *source) cut(what string) error {
	if s.err != nil && !s.atEnd() {
		return fmt.Errorf("read list at byte %d: %w", s.base+int64(s.end), s.err)
	}
	return fmt.Errorf("%w: it ends at byte %d, inside %s", ErrIncomplete, s.base+int64(s.end), what)
}

// corrupt returns the error for bytes that an encoder does not write.
func (s *source) corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: byte %d: %w", ErrCorrupt, s.offset(), fmt.Errorf(format, args...))
}

// expect consumes exactly want, which is called what.
func (s *source) expect(want []byte, what string) error {
	whole := s.want(len(want))
	got := s.rest()[:min(len(want), s.end-s.pos)]
	if !bytes.HasPrefix(want, got) {
		for i := range got {
			if got[i] != want[i] {
				s.consume(i)
				break
			}
		}
		return s.corrupt("%s does not fit the bytes before it", what)
	}
	if !whole {
		return s.cut(what)
	}
	s.consume(len(want))
	return nil
}

// expectEnd refuses anything that follows.
func (s *source) expectEnd() error {
	if s.want(1) {
		return s.corrupt("something follows the end of the list")
	}
	if !s.atEnd() {
		return s.cut("the end")
	}
	return nil
}

// trailer describes the list of which s saw every extent and src every byte.
func (s *sequence) trailer(src *source) Trailer {
	return Trailer{EntryCount: s.count, ChangedBytes: s.changed, ListBytes: src.offset(), ListSHA256: src.digest()}
}
