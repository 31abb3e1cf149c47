package blocklist

import (
	"fmt"
	"io"
)

// part guides a decoder that began in the middle of a list: it knows what the decoder must meet on its way.
type part struct {
	points  *index
	chunk   int64 // number of the next chunk
	end     int64 // byte of the list behind the last extent
	trailer Trailer
}

// pass checks the next chunk against the index.
func (p *part) pass(at point) error {
	if i := p.chunk / p.points.stride; p.chunk%p.points.stride == 0 && (i >= int64(len(p.points.points)) || p.points.points[i] != at) {
		return fmt.Errorf("%w: byte %d: the extents from offset %d on are not those that the index knows there", ErrCorrupt, at.position, at.offset)
	}
	p.chunk++
	return nil
}

// arrive returns io.EOF if a decoder that saw s, and is at byte position of the list, is where all extents have been
// seen.
func (p *part) arrive(s *sequence, position int64) error {
	if s.count != p.trailer.EntryCount || s.changed != p.trailer.ChangedBytes || position != p.end {
		return fmt.Errorf("%w: byte %d: the extents end here with %d extents of %d bytes, the trailer counts %d of %d up to byte %d",
			ErrCorrupt, position, s.count, s.changed, p.trailer.EntryCount, p.trailer.ChangedBytes, p.end)
	}
	return io.EOF
}
