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
func NewStream(w io.Writer) *Stream { return &Stream{w: w, tally: newTally()} }

// Write appends to the list.
func (s *Stream) Write(p []byte) (int, error) {
	if err := writeFull(s.w, p); err != nil {
		return 0, s.tally.wrap("write", "the output stream", len(p), err)
	}
	s.tally.add(p)
	return len(p), nil
}

// Commit returns the receipt; there is nothing to make durable.
func (s *Stream) Commit(ctx context.Context) (Receipt, error) {
	if err := ctx.Err(); err != nil {
		return Receipt{}, err
	}
	return s.tally.receipt(), nil
}

// Abort does nothing: what was written cannot be taken back.
func (s *Stream) Abort() error { return nil }
