package blocklist

import (
	"encoding/binary"
	"encoding/hex"
	"io"
	"slices"
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
	// maxBetween bounds what stands between the last eight digits of two offsets.
	maxBetween = 64
	// jsonRun is how many extents are encoded between two looks at the buffer.
	jsonRun = 512
)

// lowDigits is the range of the part of an offset that jsonEncoder converts for every extent: eight digits.
const lowDigits = 100_000_000

// jsonEncoder keeps the texts before and behind an offset's last eight digits, because they hardly ever change from one
// line to the next.
type jsonEncoder struct {
	output
	sequence
	// begin[:beginLength] is the separator, the key and the digits of high, for offsets from high on of at least
	// nine digits.
	begin       [32]byte
	beginLength int
	high        int64
	// tail[:tailLength] is the end of a line for extents of length.
	tail       [40]byte
	tailLength int
	length     int64
}

func newJSONEncoder(w io.Writer, h Header) *jsonEncoder {
	e := &jsonEncoder{output: newOutput(w), sequence: newSequence(h)}
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
		first := e.count == 0
		if e.err = e.add(extents[:n]); e.err != nil {
			return e.err
		}
		e.appendLines(extents[:n], first)
		if e.err = e.flush(); e.err != nil {
			return e.err
		}
		extents = extents[n:]
	}
	return nil
}

// appendLines appends a line for each extent, the very first one without a comma before it.
func (e *jsonEncoder) appendLines(extents []Extent, first bool) {
	e.buf = slices.Grow(e.buf, len(extents)*maxJSONLine+maxBetween)
	if first {
		e.buf = append(e.buf, "\n"+jsonOffsetKey...)
		e.buf = strconv.AppendInt(e.buf, extents[0].Offset, 10)
		e.buf = append(e.buf, e.end(extents[0].Length)...)
		extents = extents[1:]
	}
	// Texts are copied as arrays of fixed length, of which the rest is overwritten, because that takes no call.
	b, at := e.buf[:cap(e.buf)], len(e.buf)
	for len(extents) > 0 {
		x := extents[0]
		low := uint64(x.Offset - e.high)
		if low >= lowDigits || e.beginLength == 0 {
			low = e.moveTo(x.Offset)
		}
		if x.Length != e.length {
			e.end(x.Length)
		}
		if extents = extents[1:]; e.high == 0 {
			at += copy(b[at:], ",\n"+jsonOffsetKey)
			at = len(strconv.AppendUint(b[:at], low, 10))
		} else {
			*(*[len(e.begin)]byte)(b[at : at+len(e.begin)]) = e.begin
			at += e.beginLength
			binary.LittleEndian.PutUint64(b[at:at+8], eightDigits(low))
			at += 8
			if len(extents) > 0 && extents[0].Length == e.length {
				var n int
				n, at = e.putRun(b, at, extents)
				extents = extents[n:]
			}
		}
		*(*[len(e.tail)]byte)(b[at : at+len(e.tail)]) = e.tail
		at += e.tailLength
	}
	e.buf = b[:at]
}

// putRun writes the extents, from b[at] on, up to the first one whose line differs from the one before in more than the last eight
// digits of the offset, and returns their number and where they end. The line before them lacks its tail; the last of theirs does, too.
func (e *jsonEncoder) putRun(b []byte, at int, extents []Extent) (n, end int) {
	var between [maxBetween]byte
	step := copy(between[:], e.tail[:e.tailLength])
	step += copy(between[step:], e.begin[:e.beginLength])
	high, length := e.high, e.length
	for _, x := range extents {
		low := uint64(x.Offset - high)
		if low >= lowDigits || x.Length != length {
			break
		}
		*(*[maxBetween]byte)(b[at : at+maxBetween]) = between
		at += step
		binary.LittleEndian.PutUint64(b[at:at+8], eightDigits(low))
		at += 8
		n++
	}
	return n, at
}

// moveTo prepares begin for offset and returns its last eight digits as a number.
func (e *jsonEncoder) moveTo(offset int64) uint64 {
	low := offset % lowDigits
	e.high = offset - low
	begin := append(e.begin[:0], ",\n"+jsonOffsetKey...)
	e.beginLength = len(strconv.AppendInt(begin, e.high/lowDigits, 10))
	return uint64(low)
}

// end prepares tail for extents of length and returns it.
func (e *jsonEncoder) end(length int64) []byte {
	tail := append(e.tail[:0], jsonSizeKey...)
	tail = append(strconv.AppendInt(tail, length, 10), '}')
	e.tailLength, e.length = len(tail), length
	return tail
}

// eightDigits returns the eight decimal digits of v < 100,000,000 as text, the first one in the lowest byte. It splits
// all groups of digits at once: first into fours, then into twos, then into single ones; the factors are reciprocals
// that are exact for numbers of that size.
func eightDigits(v uint64) uint64 {
	four := v * 109_951_163 >> 40
	v = four | (v-four*10_000)<<32
	two := v * 10_486 >> 20 & 0x7f_0000_007f
	v = two | (v-two*100)<<16
	one := v * 103 >> 10 & 0xf_000f_000f_000f
	v = one | (v-one*10)<<8
	return v | 0x3030_3030_3030_3030
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
