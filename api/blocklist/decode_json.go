package blocklist

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// jsonDecoder reads a list, or from a point in it, in exactly the form in which jsonEncoder writes it.
type jsonDecoder struct {
	src    source
	head   Header
	seq    sequence
	layout layout
	points index
	ready  []Extent
	// atStart: nothing was read after the bracket; ended: the last extent was.
	atStart, ended bool
	// tail is how most lines of extents of length end.
	tail   []byte
	length int64
	total  Trailer
	end    int64 // byte of the list behind the last extent's line, known at the end
	// part is nil if the whole list is read and verified.
	part *part
}

func newJSONDecoder(src source, l layout) (*jsonDecoder, error) {
	d := &jsonDecoder{src: src, layout: l, points: newIndex(l), atStart: true}
	if err := d.readHeader(); err != nil {
		return nil, err
	}
	d.seq = newSequence(d.head)
	return d, nil
}

func (d *jsonDecoder) header() Header   { return d.head }
func (d *jsonDecoder) trailer() Trailer { return d.total }

// readHeader reads leniently, then demands that encoding the result gives the bytes that were read.
func (d *jsonDecoder) readHeader() error {
	var raw []byte
	line := func() ([]byte, error) {
		text, err := d.src.line(maxJSONHeaderLine)
		raw = append(raw, text...)
		return text, err
	}
	if err := d.readVersion(line); err != nil {
		return err
	}
	for _, f := range jsonFields(&d.head) {
		text, err := line()
		if err != nil {
			return err
		}
		prefix := `"` + f.key + `": `
		if !bytes.HasPrefix(text, []byte(prefix)) || !bytes.HasSuffix(text, []byte(",\n")) {
			return d.src.corrupt("the line before this is not the header's %s", f.key)
		}
		if err := json.Unmarshal(text[len(prefix):len(text)-2], f.value); err != nil {
			return d.src.corrupt("the header's %s, on the line before this: %v", f.key, err)
		}
	}
	if err := d.src.expect([]byte(jsonListStart+"\n"), "the header"); err != nil {
		return err
	}
	raw = append(raw, jsonListStart...)
	if !bytes.Equal(raw, appendJSONHeader(nil, d.head)) {
		return d.src.corrupt("the header before this is not in its canonical form")
	}
	if err := d.head.Check(); err != nil {
		return d.src.corrupt("%v", err)
	}
	return nil
}

func (d *jsonDecoder) readVersion(line func() ([]byte, error)) error {
	if _, err := line(); err != nil {
		return err
	}
	text, err := line()
	if err != nil {
		return err
	}
	digits, ok := bytes.CutSuffix(text[len(jsonStart)-2:], []byte(",\n"))
	version, err := strconv.ParseUint(string(digits), 10, 32)
	switch {
	case !ok || err != nil || version == 0:
		return d.src.corrupt("the format version before this is not a number")
	case version > FormatVersion:
		return fmt.Errorf("%w: %d; this reader knows versions up to %d", ErrVersion, version, FormatVersion)
	}
	return nil
}

// line consumes a line of at most limit bytes, its end included. The slice is valid until the next read.
func (s *source) line(limit int) ([]byte, error) {
	for n := 64; ; n *= 2 {
		whole := s.want(n)
		if i := bytes.IndexByte(s.rest(), '\n'); i >= 0 {
			text := s.rest()[:i+1]
			s.consume(i + 1)
			return text, nil
		}
		if s.end-s.pos > limit {
			return nil, s.corrupt("a line of the header is longer than %d bytes", limit)
		}
		if !whole {
			return nil, s.cut("the header")
		}
	}
}

// batch implements batcher.
func (d *jsonDecoder) batch() ([]Extent, error) {
	start, changed := d.src.offset(), d.seq.changed
	d.ready = d.ready[:0]
	for len(d.ready) < d.layout.chunkEntries && !d.ended {
		if err := d.readLines(); err != nil {
			return nil, err
		}
	}
	if len(d.ready) > 0 {
		return d.ready, d.pass(point{position: start, offset: d.ready[0].Offset, changed: changed})
	}
	if err := d.readTrailer(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

func (d *jsonDecoder) pass(p point) error {
	if d.part != nil {
		return d.part.pass(p)
	}
	d.points.next(p)
	return nil
}

// readLines decodes what the buffer holds, at least one line.
func (d *jsonDecoder) readLines() error {
	d.src.want(maxJSONLine + len(jsonListEnd))
	rest, decoded := d.src.rest(), len(d.ready)
	if d.atStart && bytes.HasPrefix(rest, []byte(jsonListEnd)) {
		d.ended = true
		return nil
	}
	used := 0
	for len(d.ready) < d.layout.chunkEntries && !d.ended {
		if len(rest)-used < maxJSONLine && used > 0 {
			break
		}
		if e, n := d.parseUsualLine(rest[used:]); n > 0 {
			used += n
			d.ready = append(d.ready, e)
			continue
		}
		e, n := parseJSONLine(rest[used:])
		if n <= 0 {
			d.src.consume(used)
			if used-n == len(rest) && len(rest)-used < maxJSONLine || d.atStart && bytes.HasPrefix([]byte(jsonListEnd), rest) {
				return d.src.cut("an extent's line")
			}
			return d.src.corrupt("this is not an extent's line; its byte %d is wrong", -n)
		}
		used += n
		d.ready = append(d.ready, e)
		d.ended = rest[used-2] == '}'
		d.setTail(e.Length)
	}
	if err := d.seq.add(d.ready[decoded:]); err != nil {
		d.src.consume(used)
		return d.src.corrupt("before this: %w", err)
	}
	d.src.consume(used)
	d.atStart = false
	return nil
}

// readTrailer verifies what follows the extents. All of it is known beforehand.
func (d *jsonDecoder) readTrailer() error {
	d.end = d.src.offset()
	if d.part != nil {
		return d.part.arrive(&d.seq, d.end)
	}
	if err := d.src.expect([]byte(jsonListEnd), "the end of block_metadata"); err != nil {
		return err
	}
	if err := d.src.expect(appendJSONCounts(nil, &d.seq), "the trailer's entry_count or changed_bytes"); err != nil {
		return err
	}
	if err := d.src.expect(appendJSONEnd(nil, d.src.digest()), "the trailer's sha256 or complete"); err != nil {
		return err
	}
	if err := d.src.expectEnd(); err != nil {
		return err
	}
	d.total = d.seq.trailer(&d.src)
	return nil
}
