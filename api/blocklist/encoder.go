package blocklist

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
)

// writeBytes is the size of every write to the underlying writer except the last one. It is a multiple of every sector
// size, so that a device is written in aligned pieces, and large enough to make system calls cheap.
const writeBytes = 256 << 10

// errFinished is what an encoder answers after Finish.
var errFinished = errors.New("the list is already finished")

// NewEncoder starts a list of format f with header h on w. The bytes depend on h and on the sequence of extents alone,
// never on how they were spread over calls of Encode. They reach w in pieces of 256 KiB, the last one by Finish; the
// header goes out with the first piece. The encoder takes constant memory and does not allocate per extent.
//
// It refuses a header that Header.Check refuses, and extents in a list whose BlockMetadataType is UnknownLength. That
// the extents of a FIXED_LENGTH list have one length, are adjacent in no merged list, and lie on the header's
// granularity is not checked: rounding and merging change lengths, and the header only says how the list came about.
func NewEncoder(w io.Writer, f Format, h Header) (Encoder, error) {
	if err := h.Check(); err != nil {
		return nil, fmt.Errorf("start list: %w", err)
	}
	switch f {
	case JSON:
		return newJSONEncoder(w, h), nil
	case Binary:
		return newBinaryEncoder(w, h, formatLayout), nil
	}
	return nil, fmt.Errorf("start list: format %q is neither %s nor %s", f, JSON, Binary)
}

// sequence holds what is known of the extents so far, and checks that each new one may follow.
type sequence struct {
	prevEnd int64
	limit   int64 // the volume's capacity
	empty   bool  // the list may hold no extent
	count   int64
	set     int64 // bits that are set in any length and any gap before an extent, as long as nobody resets them
	changed int64 // sum of lengths; it cannot overflow, because extents do not overlap and end inside the volume
}

func newSequence(h Header) sequence {
	return sequence{limit: h.VolumeCapacityBytes, empty: h.BlockMetadataType == UnknownLength}
}

// add accepts extents up to the first one that may not follow, for which it returns the reason.
func (s *sequence) add(extents []Extent) error {
	prevEnd, changed, set := s.prevEnd, s.changed, s.set
	for i, e := range extents {
		if e.Offset < prevEnd || e.Length <= 0 || e.Offset > s.limit-e.Length {
			return s.refuse(i, e, prevEnd)
		}
		set |= (e.Offset - prevEnd) | e.Length
		prevEnd = e.Offset + e.Length
		changed += e.Length
	}
	if s.empty && len(extents) > 0 {
		return fmt.Errorf("%w: a list of type %s holds none", ErrExtent, UnknownLength)
	}
	s.prevEnd, s.changed, s.set = prevEnd, changed, set
	s.count += int64(len(extents))
	return nil
}

func (s *sequence) refuse(i int, e Extent, prevEnd int64) error {
	err := e.Check(prevEnd, s.limit)
	if err == nil {
		// The fast test above and Check say the same; should they ever differ, the stricter one counts.
		err = fmt.Errorf("%w: offset %d, length %d", ErrExtent, e.Offset, e.Length)
	}
	return fmt.Errorf("extent %d: %w", s.count+int64(i)+1, err)
}

// output gathers encoded bytes, hands them to w in pieces of writeBytes and keeps the digest of all of them.
//
// The digest costs more than all the rest of encoding, so a piece is digested while it is being written and the next one
// gathered. Never more than one piece is, which keeps their order and bounds the memory to two. A goroutine lives as long as its
// piece, so that an encoder that is given up leaves none behind.
type output struct {
	w        io.Writer
	buf      []byte
	previous []byte         // memory of the piece before buf, which digest may be reading
	digests  sync.WaitGroup // of that piece; sum must not be touched before
	summed   int            // buf[:summed] is in sum
	sum      hash.Hash
	written  int64 // bytes before buf
	err      error
}

func newOutput(w io.Writer) output { return output{w: w, sum: sha256.New()} }

// offset returns the number of bytes of the list so far.
func (o *output) offset() int64 { return o.written + int64(len(o.buf)) }

// flush writes all full pieces.
func (o *output) flush() error {
	for len(o.buf) >= writeBytes {
		if err := o.write(writeBytes); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) write(n int) error {
	o.digests.Wait()
	if n > o.summed {
		rest := o.buf[o.summed:n]
		o.digests.Go(func() { o.sum.Write(rest) }) // a hash.Hash never fails
		o.summed = n
	}
	m, err := o.w.Write(o.buf[:n])
	if err == nil && m < n {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write list at byte %d: %w", o.written, err)
	}
	o.written += int64(n)
	o.summed -= n
	o.buf, o.previous = append(o.previous[:0], o.buf[n:]...), o.buf
	return nil
}

// digest returns the SHA-256 of all bytes so far.
func (o *output) digest() (d [sha256.Size]byte) {
	o.digests.Wait()
	o.sum.Write(o.buf[o.summed:])
	o.summed = len(o.buf)
	o.sum.Sum(d[:0])
	return d
}

// finish writes what is left and describes the list.
func (o *output) finish(s *sequence) (Trailer, error) {
	t := Trailer{EntryCount: s.count, ChangedBytes: s.changed, ListBytes: o.offset(), ListSHA256: o.digest()}
	if err := o.flush(); err != nil {
		return Trailer{}, err
	}
	if len(o.buf) > 0 {
		if err := o.write(len(o.buf)); err != nil {
			return Trailer{}, err
		}
	}
	o.err = errFinished
	return t, nil
}
