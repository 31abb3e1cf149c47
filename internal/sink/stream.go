package sink

import (
	"context"
	"io"
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

// Commit only checks; there is nothing to make durable.
func (s *Stream) Commit(ctx context.Context, list List) error {
	return s.tally.check(ctx, "the output stream", list)
}

// Abort does nothing: what was written cannot be taken back.
func (s *Stream) Abort() error { return nil }
