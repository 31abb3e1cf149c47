// Package convert writes lists of extents in the formats of other tools, and reads the upstream lister's. It streams:
// its memory does not depend on the length of a list.
package convert

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Format names a form in which extents are written.
type Format string

// The formats.
const (
	// JSON and CBL are the formats of package blocklist.
	JSON Format = "json"
	CBL  Format = "cbl"
	// NDJSON is one JSON object a line for each extent, with the API's field names.
	NDJSON Format = "ndjson"
	// TSV is offset, tab and length on a line for each extent.
	TSV Format = "tsv"
	// Table is the table that the upstream lister prints.
	Table Format = "table"
	// Lister is the JSON that the upstream lister prints: an array of records.
	Lister Format = "lister"
	// Ddrescue is a GNU ddrescue mapfile, for its option -m.
	Ddrescue Format = "ddrescue"
	// Bmap is the XML of bmap-tools, version 2.0.
	Bmap Format = "bmap"
)

// writers holds the function behind every format.
var writers = map[Format]func(*bufio.Writer, List) error{
	NDJSON:   writeNDJSON,
	TSV:      writeTSV,
	Table:    writeTable,
	Lister:   writeLister,
	Ddrescue: writeDdrescue,
	Bmap:     writeBmap,
}

// Formats returns the names of all formats in alphabetical order.
func Formats() []string {
	names := []string{string(JSON), string(CBL)}
	for f := range writers {
		names = append(names, string(f))
	}
	slices.Sort(names)
	return names
}

// ParseFormat returns the format of that name.
func ParseFormat(name string) (Format, error) {
	if !slices.Contains(Formats(), name) {
		return "", fmt.Errorf("format %q is unknown: use one of %s", name, strings.Join(Formats(), ", "))
	}
	return Format(name), nil
}

// Streams reports whether Write walks over the extents only once, so that they can come from a stream.
func (f Format) Streams() bool { return f != Bmap }

// List is what is written.
type List struct {
	Header blocklist.Header
	// Extents returns the extents from the first one on, in batches that are valid until the next one is asked for; a
	// failure is the last pair. It is called once if the format Streams, and several times otherwise.
	Extents func() iter.Seq2[[]blocklist.Extent, error]
}

// Write writes list to w in format f. It ends with the cause of ctx soon after ctx has ended.
func Write(ctx context.Context, w io.Writer, f Format, list List) error {
	inner := list.Extents
	list.Extents = func() iter.Seq2[[]blocklist.Extent, error] { return until(ctx, inner()) }
	if f == JSON || f == CBL {
		return encode(w, f, list)
	}
	write := writers[f]
	if write == nil {
		return fmt.Errorf("write list: format %q is unknown", f)
	}
	b := bufio.NewWriterSize(w, 256<<10)
	if err := write(b, list); err != nil {
		return fmt.Errorf("write list as %s: %w", f, err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write list as %s: %w", f, err)
	}
	return nil
}

// until passes extents on until ctx ends.
func until(ctx context.Context, extents iter.Seq2[[]blocklist.Extent, error]) iter.Seq2[[]blocklist.Extent, error] {
	return func(yield func([]blocklist.Extent, error) bool) {
		for b, err := range extents {
			if err == nil && ctx.Err() != nil {
				b, err = nil, context.Cause(ctx)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

func encode(w io.Writer, f Format, list List) error {
	format := blocklist.JSON
	if f == CBL {
		format = blocklist.Binary
	}
	e, err := blocklist.NewEncoder(w, format, list.Header)
	if err != nil {
		return err
	}
	for b, err := range list.Extents() {
		if err != nil {
			return err
		}
		if err := e.Encode(b); err != nil {
			return err
		}
	}
	_, err = e.Finish()
	return err
}
