package blocklist

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"sort"
)

// File is a list in a file or on a Block volume, with random access. The embedded Cursor walks over all extents; From
// and Split give further, independent cursors, each for one goroutine at a time. All fail after Close.
//
// The checksum of every chunk of a Binary list is checked again whenever it is read. The lines of a JSON list have no
// checksums of their own: the list must not change while the File is in use.
type File struct {
	Cursor
	closer  io.Closer
	bytes   *io.SectionReader
	format  Format
	layout  layout
	header  Header
	trailer Trailer
	points  *index
	end     int64 // byte of the list behind the last extent
}

// Open opens the list in a regular file, on a block device, or in a file with the content of one, and verifies all of
// it before it returns: it reads the list once, in constant memory. Nothing of a list that is not whole is ever handed
// out. It fails like NewReader, or with an *fs.PathError; with ErrNotAList if the volume's commit record is missing.
func Open(path string) (*File, error) { return open(path, verifyList) }

// OpenUnverified is Open without reading the extents, for a Binary list that was verified before (or whose pieces are
// read by many processes): it checks the header, the trailer, the index and a Block volume's commit record against each
// other, and cursors check every chunk that they read, but nobody computes the list's digest. A JSON list has no index;
// OpenUnverified verifies it as Open does.
func OpenUnverified(path string) (*File, error) { return open(path, readEnds) }

func open(path string, load func(*io.SectionReader, *deviceRecord, layout) (*File, error)) (*File, error) {
	// A look at the type comes first, because opening a named pipe would wait for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open list: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return nil, fmt.Errorf("open list %s: it is neither a regular file nor a block device (a stream can be read with NewReader)", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open list: %w", err)
	}
	list, err := openAt(f, load)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open list %s: %w", path, err), f.Close())
	}
	list.closer = f
	return list, nil
}

func openAt(f *os.File, load func(*io.SectionReader, *deviceRecord, layout) (*File, error)) (*File, error) {
	size, err := f.Seek(0, io.SeekEnd) // a block device's Stat tells no size
	if err != nil {
		return nil, fmt.Errorf("find its size: %w", err)
	}
	section, record, err := findList(f, size)
	if err != nil {
		return nil, err
	}
	return load(section, record, formatLayout)
}

// verifyList reads all of a list.
func verifyList(section *io.SectionReader, record *deviceRecord, l layout) (*File, error) {
	r, err := newReader(io.NewSectionReader(section, 0, section.Size()), l)
	if err != nil {
		return nil, err
	}
	if err := r.drain(); err != nil {
		return nil, err
	}
	if err := record.check(r.Trailer()); err != nil {
		return nil, err
	}
	f := &File{bytes: section, format: JSON, layout: l, header: r.Header(), trailer: r.Trailer()}
	switch d := r.list.(type) {
	case *binaryDecoder:
		f.format, f.points, f.end = Binary, &d.points, d.end
	case *jsonDecoder:
		f.points, f.end = &d.points, d.end
	}
	f.Cursor = *f.From(0)
	return f, nil
}

// Close closes the file.
func (f *File) Close() error {
	if err := f.closer.Close(); err != nil {
		return fmt.Errorf("close list: %w", err)
	}
	return nil
}

// Header returns the list's header.
func (f *File) Header() Header { return f.header }

// Trailer returns the list's trailer. After OpenUnverified it has no ListSHA256 unless a Block volume's commit record
// tells it.
func (f *File) Trailer() Trailer { return f.trailer }

// Format returns the list's format.
func (f *File) Format() Format { return f.format }

// From returns a cursor that begins with the first extent that ends after the byte offset of the volume: the one that
// holds the offset, or else the next one. It finds it by the index, which for a JSON list Open has made in memory, and
// reads at most a few chunks of 8192 extents too many.
func (f *File) From(offset int64) *Cursor {
	i := sort.Search(len(f.points.points), func(i int) bool { return f.points.points[i].offset > offset })
	return f.cursor(span{first: i - 1, after: offset, to: math.MaxInt64})
}

// Split divides the list into n parts (at least one) with about equal changed bytes, in ascending order, for as many
// workers: every extent is in exactly one part, whole. An extent belongs to the part into which the changed bytes
// before it fall, so the parts are the same for everyone who splits the same list by the same n. Parts are empty where
// there are more of them than extents, or where one extent is larger than a part.
func (f *File) Split(n int) []*Cursor {
	n = max(n, 1)
	parts := make([]*Cursor, n)
	for i := range parts {
		s := span{from: share(f.trailer.ChangedBytes, i, n), to: share(f.trailer.ChangedBytes, i+1, n)}
		s.first = sort.Search(len(f.points.points), func(i int) bool { return f.points.points[i].changed > s.from }) - 1
		if i == n-1 {
			s.to = math.MaxInt64 // so that the last part checks that it arrives at the list's end
		}
		parts[i] = f.cursor(s)
	}
	return parts
}

// share returns the least integer that is not below total*i/n.
func share(total int64, i, n int) int64 {
	high, low := bits.Mul64(uint64(total), uint64(i))
	quotient, rest := bits.Div64(high, low, uint64(n)) // i <= n, so that the quotient fits
	if rest > 0 {
		quotient++
	}
	return int64(quotient)
}

func (f *File) cursor(s span) *Cursor {
	s.file = f
	return &Cursor{source: &s}
}

// span is the batcher of a part of a File: it reads from a point of the index on and lets through the extents that
// belong to the part.
type span struct {
	file  *File
	first int // the point to begin at; -1 before the first one
	list  batcher
	// after: extents that end at or before it are not in the part.
	after int64
	// from, to: extents with less than from, or with to or more, changed bytes before them are not in the part.
	from, to int64
	changed  int64 // changed bytes before the next extent
}

// batch implements batcher.
func (s *span) batch() ([]Extent, error) {
	if s.list == nil {
		s.open()
	}
	for s.changed < s.to {
		b, err := s.list.batch()
		if err != nil {
			return nil, err
		}
		start := 0
		for start < len(b) && (b[start].End() <= s.after || s.changed < s.from) {
			s.changed += b[start].Length
			start++
		}
		end := start
		for end < len(b) && s.changed < s.to {
			s.changed += b[end].Length
			end++
		}
		if end > start {
			return b[start:end], nil
		}
	}
	return nil, io.EOF
}

func (s *span) open() {
	f := s.file
	if len(f.points.points) == 0 {
		s.list = nothing{}
		return
	}
	first := max(s.first, 0)
	p := f.points.points[first]
	s.changed = p.changed
	src := newPartSource(io.NewSectionReader(f.bytes, p.position, f.bytes.Size()-p.position), p.position)
	seq := newSequence(f.header)
	seq.prevEnd, seq.count, seq.changed = p.offset, f.points.entry(first), p.changed
	part := &part{points: f.points, chunk: int64(first) * f.points.stride, end: f.end, trailer: f.trailer}
	if f.format == Binary {
		s.list = &binaryDecoder{src: src, seq: seq, layout: f.layout, part: part}
		return
	}
	s.list = &jsonDecoder{src: src, seq: seq, layout: f.layout, part: part}
}

// nothing is the batcher of an empty list.
type nothing struct{}

func (nothing) batch() ([]Extent, error) { return nil, io.EOF }
