package blocklist

import (
	"encoding/hex"
	"io"
	"strconv"
)

// The fixed parts of an extent's line. A line is preceded by the separator and not followed by one, because only the
// next line, or the end, tells whether a comma is due.
const (
	jsonOffsetKey = `{"byte_offset":`
	jsonSizeKey   = `,"size_bytes":`
	jsonListStart = "\"block_metadata\": ["
	jsonListEnd   = "],\n"
	// maxJSONLine bounds an extent's line with its separator: two numbers of at most 19 digits.
	maxJSONLine = 2 + len(jsonOffsetKey) + 19 + len(jsonSizeKey) + 19 + 1
	// jsonRun is how many extents are encoded between two looks at the buffer.
	jsonRun = 512
)

type jsonEncoder struct {
	output
	sequence
	separator string
	// tail is the end of a line for extents of tailLength: almost all lines of a list end alike.
	tail       []byte
	tailLength int64
}

func newJSONEncoder(w io.Writer, h Header) *jsonEncoder {
	e := &jsonEncoder{
		output:    newOutput(w, max(jsonRun*maxJSONLine, maxJSONHeader)),
		sequence:  newSequence(h),
		separator: "\n",
		tail:      make([]byte, 0, maxJSONLine),
	}
	e.buf = appendJSONHeader(e.buf, h)
	return e
}

// Encode implements Encoder.
func (e *jsonEncoder) Encode(extents []Extent) error {
	if e.err != nil {
		return e.err
	}
	for len(extents) > 0 {
		n := min(len(extents), jsonRun)
		if e.err = e.add(extents[:n]); e.err != nil {
			return e.err
		}
		e.appendLines(extents[:n])
		if e.err = e.flush(); e.err != nil {
			return e.err
		}
		extents = extents[n:]
	}
	return nil
}

// appendLines must be given at most jsonRun extents, for which newJSONEncoder reserved room.
func (e *jsonEncoder) appendLines(extents []Extent) {
	b := e.buf
	for _, x := range extents {
		b = append(b, e.separator...)
		e.separator = ",\n"
		b = append(b, jsonOffsetKey...)
		b = strconv.AppendInt(b, x.Offset, 10)
		if x.Length != e.tailLength {
			e.tail = append(e.tail[:0], jsonSizeKey...)
			e.tail = strconv.AppendInt(e.tail, x.Length, 10)
			e.tail = append(e.tail, '}')
			e.tailLength = x.Length
		}
		b = append(b, e.tail...)
	}
	e.buf = b
}

// Finish implements Encoder.
func (e *jsonEncoder) Finish() (Trailer, error) {
	if e.err != nil {
		return Trailer{}, e.err
	}
	e.buf = append(e.buf, '\n')
	e.buf = append(e.buf, jsonListEnd...)
	e.buf = appendJSONCounts(e.buf, &e.sequence)
	e.buf = appendJSONEnd(e.buf, e.digest())
	t, err := e.finish(&e.sequence)
	if err != nil {
		e.err = err
	}
	return t, err
}

// jsonField is one line of the header: its key and a pointer into the Header, a *string, *int64 or *bool.
type jsonField struct {
	key   string
	value any
}

// jsonFields lists the header's lines after format_version, in their order.
func jsonFields(h *Header) []jsonField {
	return []jsonField{
		{"mode", (*string)(&h.Mode)},
		{"driver", &h.Driver},
		{"namespace", &h.Namespace},
		{"base_snapshot", &h.BaseSnapshot},
		{"base_snapshot_handle", &h.BaseSnapshotHandle},
		{"target_snapshot", &h.TargetSnapshot},
		{"target_snapshot_handle", &h.TargetSnapshotHandle},
		{"base_restore_size_bytes", &h.BaseRestoreSizeBytes},
		{"target_restore_size_bytes", &h.TargetRestoreSizeBytes},
		{"granularity_bytes", &h.GranularityBytes},
		{"merged", &h.Merged},
		{"block_metadata_type", (*string)(&h.BlockMetadataType)},
		{"volume_capacity_bytes", &h.VolumeCapacityBytes},
	}
}

// maxJSONHeaderLine bounds a line of the header: a key and a string of which every byte became a \u00xx escape.
const maxJSONHeaderLine = 64 + 6*MaxStringBytes

// maxJSONHeader bounds the header: eight strings and a few short lines.
const maxJSONHeader = 8*maxJSONHeaderLine + 1024

// jsonStart is how every JSON list of any version begins; the version's number and a comma follow.
const jsonStart = "{\n\"format_version\": "

func appendJSONHeader(b []byte, h Header) []byte {
	b = append(b, jsonStart...)
	b = strconv.AppendInt(b, FormatVersion, 10)
	b = append(b, ",\n"...)
	for _, f := range jsonFields(&h) {
		b = append(append(append(b, '"'), f.key...), `": `...)
		switch v := f.value.(type) {
		case *string:
			b = appendJSONString(b, *v)
		case *int64:
			b = strconv.AppendInt(b, *v, 10)
		case *bool:
			b = strconv.AppendBool(b, *v)
		}
		b = append(b, ",\n"...)
	}
	return append(b, jsonListStart...)
}

// appendJSONString quotes s, which is valid UTF-8. Every string has one form only: quotes and backslashes get a
// backslash, control characters become \u00xx, all else stands as it is.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// appendJSONCounts appends the part of the trailer that the digest covers.
func appendJSONCounts(b []byte, s *sequence) []byte {
	b = append(b, `"entry_count": `...)
	b = strconv.AppendInt(b, s.count, 10)
	b = append(b, ",\n\"changed_bytes\": "...)
	b = strconv.AppendInt(b, s.changed, 10)
	return append(b, ",\n"...)
}

// appendJSONEnd appends the rest of the trailer; digest is that of all bytes before it.
func appendJSONEnd(b []byte, digest [32]byte) []byte {
	b = append(b, `"sha256": "`...)
	b = hex.AppendEncode(b, digest[:])
	return append(b, "\",\n\"complete\": true\n}\n"...)
}
