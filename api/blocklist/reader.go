package blocklist

import (
	"bytes"
	"fmt"
	"io"
)

// Reader reads a list from a stream, in constant memory, and verifies all of it: the order and bounds of the extents,
// counts, checksums, digest, and that nothing is missing and nothing follows.
//
// A Reader hands extents out BEFORE it has seen the trailer. A list that is cut or damaged further on has then already
// given some of them, and what looked like an extent of a JSON list may have had a flipped bit. Act on them only after
// Next returned false and Err returned nil; or call Verify on the same bytes first; or use Open, which does that.
type Reader struct {
	Cursor
	list listReader
}

// listReader is what the decoders of both formats have in common.
type listReader interface {
	batcher
	header() Header
	// trailer is zero until batch returned io.EOF.
	trailer() Trailer
}

// NewReader reads the header of the list on r, whose format it finds by its first bytes. It fails with ErrNotAList,
// ErrVersion, ErrIncomplete, ErrCorrupt or an error of r. It reads ahead of what it hands out, up to 256 KiB.
//
// A Block volume is not such a stream, because its list follows a commit record: use Open.
func NewReader(r io.Reader) (*Reader, error) { return newReader(r, formatLayout) }

func newReader(r io.Reader, l layout) (*Reader, error) {
	src := newSource(r)
	list, err := openList(src, l)
	if err != nil {
		return nil, err
	}
	return &Reader{Cursor: Cursor{source: list}, list: list}, nil
}

func openList(src source, l layout) (listReader, error) {
	src.want(max(len(magic), len(jsonStart), len(deviceMagic)))
	head := src.rest()
	begins := func(with string) bool { return bytes.HasPrefix(head, []byte(with)) }
	switch {
	case begins(magic):
		return newBinaryDecoder(src, l)
	case begins(jsonStart):
		return newJSONDecoder(src, l)
	case begins(deviceMagic):
		return nil, fmt.Errorf("%w: it begins with the commit record of a Block volume; open the device instead of reading it as a stream", ErrNotAList)
	case src.err != nil && !src.atEnd():
		return nil, src.cut("the header")
	case len(head) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrNotAList)
	case bytes.HasPrefix([]byte(magic), head), bytes.HasPrefix([]byte(jsonStart), head):
		return nil, src.cut("the header")
	}
	return nil, fmt.Errorf("%w: it begins with %q", ErrNotAList, head[:min(8, len(head))])
}

// Header returns the list's header.
func (r *Reader) Header() Header { return r.list.header() }

// Trailer returns the list's trailer. It is zero until Next returned false with Err nil.
func (r *Reader) Trailer() Trailer { return r.list.trailer() }

// Verify reads a whole list from r and returns its header and trailer if everything about it is right; see NewReader
// for the errors.
func Verify(r io.Reader) (Header, Trailer, error) {
	list, err := NewReader(r)
	if err != nil {
		return Header{}, Trailer{}, err
	}
	err = list.drain()
	return list.Header(), list.Trailer(), err
}
