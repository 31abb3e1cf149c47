// Package sink owns where the bytes of a list land: a file on a mounted volume, a raw block device, or a stream. What a
// sink promises: until Commit has succeeded there is nothing at the destination that a reader would take for a list, at
// whatever moment the process or the machine stops, and an older list is gone before the first byte of the new one is
// written. A stream cannot keep that promise; there the list's own trailer is the only proof that it is whole.
package sink

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Sink takes the bytes of one list. It is not safe for concurrent use. After an error of Write or Commit only Abort may
// be called.
type Sink interface {
	io.Writer
	// Commit makes the list durable and then visible. It does nothing if ctx has ended or if the bytes that were
	// written are not as many as the list has.
	Commit(ctx context.Context, list List) error
	// Abort removes what was written. After a successful Commit it does nothing.
	Abort() error
}

// List is what is known of a list by whoever wrote it.
type List struct {
	// Bytes is the size of the list.
	Bytes int64
	// SHA256 is the digest of the list's bytes. It is the encoder's, taken from the very memory that it handed to
	// Write: digesting a list again here would cost more CPU time than all the rest of writing it.
	SHA256 [sha256.Size]byte
}

// FullError says that the destination has no room for the list.
type FullError struct {
	// Path is the file or device.
	Path string
	// NeededBytes is the least that the list needs, by what is known so far.
	NeededBytes int64
	// CapacityBytes is what the destination can hold, 0 if it is not known.
	CapacityBytes int64
	// Err is the cause, nil if the lack of room was seen before a write.
	Err error
}

// Error implements error.
func (e *FullError) Error() string {
	text := fmt.Sprintf("%s is full: the list needs more than %d bytes", e.Path, e.NeededBytes)
	if e.CapacityBytes > 0 {
		text += fmt.Sprintf(", there is room for %d", e.CapacityBytes)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *FullError) Unwrap() error { return e.Err }

// tally counts the bytes of a list that were written.
type tally struct{ bytes int64 }

func (t *tally) add(p []byte) { t.bytes += int64(len(p)) }

// check refuses to commit a list of which something else was written than it has.
func (t *tally) check(ctx context.Context, path string, list List) error {
	if t.bytes != list.Bytes {
		return fmt.Errorf("commit %s: the list has %d bytes, but %d were written", path, list.Bytes, t.bytes)
	}
	return ctx.Err()
}

// wrap names the action and the path of err, and turns "no space" into a FullError.
func (t *tally) wrap(action, path string, more int, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &FullError{Path: path, NeededBytes: t.bytes + int64(more), Err: err}
	}
	return fmt.Errorf("%s %s: %w", action, path, err)
}

// writeFull writes p to w and takes a short write without an error for one.
func writeFull(w io.Writer, p []byte) error {
	n, err := w.Write(p)
	if err == nil && n < len(p) {
		return io.ErrShortWrite
	}
	return err
}
