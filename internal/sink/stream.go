package sink

import (
	"context"
	"io"
	"os"
)

// Stream is a sink without atomicity, such as standard output: what was written stays written, and only the list's
// trailer tells its reader that the list is whole.
type Stream struct {
	w     io.Writer
	tally tally
}

// NewStream returns a sink that writes to w, which it does not close.
func NewStream(w io.Writer) *Stream { return &Stream{w: w} }

// Write appends to the list.
func (s *Stream) Write(p []byte) (int, error) {
	if err := writeFull(s.w, p); err != nil {
		return 0, s.tally.wrap("write", "the output stream", len(p), err)
	}
	s.tally.add(p)
	return len(p), nil
}

// Commit checks, and makes the list durable if it goes to a file: a file system may take what it cannot keep, and say so when it has
// to. A pipe or a terminal has nothing to make durable.
func (s *Stream) Commit(ctx context.Context, list List) error {
	if err := s.tally.check(ctx, "the output stream", list); err != nil {
		return err
	}
	f, ok := s.w.(interface {
		Stat() (os.FileInfo, error)
		Sync() error
	})
	if !ok {
		return nil
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil //nolint:nilerr // what cannot tell what it is, is no regular file
	}
	if err := f.Sync(); err != nil {
		return s.tally.wrap("sync", "the output stream", 0, err)
	}
	return nil
}

// Abort does nothing: what was written cannot be taken back.
func (s *Stream) Abort() error { return nil }
