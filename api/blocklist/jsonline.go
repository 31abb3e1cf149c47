package blocklist

import (
	"encoding/binary"
	"math"
	"strconv"
)

// setTail prepares parseUsualLine for extents of length.
func (d *jsonDecoder) setTail(length int64) {
	if length != d.length {
		d.length = length
		d.tail = append(d.tail[:0], jsonSizeKey...)
		d.tail = append(strconv.AppendInt(d.tail, length, 10), "},\n"...)
	}
}

// parseUsualLine is parseJSONLine for a line that ends like the one before it, and whose offset has between 8 and 18
// digits. It returns length 0 for any other.
func (d *jsonDecoder) parseUsualLine(b []byte) (Extent, int) {
	const key = len(jsonOffsetKey)
	if len(b) < maxJSONLine || string(b[:key]) != jsonOffsetKey || b[key] == '0' {
		return Extent{}, 0
	}
	offset, ok := parseEightDigits(binary.LittleEndian.Uint64(b[key:]))
	if !ok {
		return Extent{}, 0
	}
	i := key + 8
	for ; i < key+18; i++ {
		c := b[i] - '0'
		if c > 9 {
			break
		}
		offset = offset*10 + uint64(c)
	}
	if end := i + len(d.tail); end <= len(b) && len(d.tail) > 0 && string(b[i:end]) == string(d.tail) {
		return Extent{int64(offset), d.length}, end
	}
	return Extent{}, 0
}

// parseEightDigits is the reverse of eightDigits; it reports whether all eight bytes are digits. It joins all digits at
// once: first to twos, then to fours, then to eight.
func parseEightDigits(text uint64) (uint64, bool) {
	v := text - 0x3030_3030_3030_3030
	// A byte outside '0' to '9' has a high bit in the text with 0x46 added, or after the subtraction.
	if (text+0x4646_4646_4646_4646|v)&0x8080_8080_8080_8080 != 0 {
		return 0, false
	}
	v = v*10 + v>>8
	v = v & 0x00ff_00ff_00ff_00ff
	v = (v*100 + v>>16) & 0x0000_ffff_0000_ffff
	return (v*10_000 + v>>32) & 0xffff_ffff, true
}

// parseJSONLine decodes the line at the start of b and returns its length; if it is none, minus the index of the first
// byte that is wrong or missing.
func parseJSONLine(b []byte) (Extent, int) {
	i := match(b, 0, jsonOffsetKey)
	if i < 0 {
		return Extent{}, i + 1
	}
	offset, i := parseJSONNumber(b, i)
	if i < 0 {
		return Extent{}, i + 1
	}
	if i = match(b, i, jsonSizeKey); i < 0 {
		return Extent{}, i + 1
	}
	length, i := parseJSONNumber(b, i)
	if i < 0 {
		return Extent{}, i + 1
	}
	switch rest := b[i:]; {
	case len(rest) > 2 && rest[0] == '}' && rest[1] == ',' && rest[2] == '\n':
		return Extent{offset, length}, i + 3
	case len(rest) > 1 && rest[0] == '}' && rest[1] == '\n':
		return Extent{offset, length}, i + 2
	case len(rest) == 0 || rest[0] != '}':
		return Extent{}, -i
	case len(rest) == 1 || rest[1] != ',':
		return Extent{}, -(i + 1)
	}
	return Extent{}, -(i + 2)
}

// match returns the index behind text at b[i:], or -1 minus the index of the first byte that differs or is missing.
func match(b []byte, i int, text string) int {
	if len(b)-i >= len(text) && string(b[i:i+len(text)]) == text {
		return i + len(text)
	}
	j := 0
	for i+j < len(b) && b[i+j] == text[j] {
		j++
	}
	return -1 - (i + j)
}

// parseJSONNumber decodes a number in its shortest form and returns the index behind it, or -1 minus the index of the
// first byte that is wrong or missing.
func parseJSONNumber(b []byte, i int) (int64, int) {
	start, v := i, uint64(0)
	for ; i < len(b); i++ {
		c := b[i] - '0'
		if c > 9 {
			break
		}
		// Nineteen digits fit a uint64; a leading zero must be the only digit.
		if i-start == 19 || i > start && b[start] == '0' {
			return 0, -1 - i
		}
		v = v*10 + uint64(c)
	}
	if i == start || i == len(b) || v > math.MaxInt64 {
		return 0, -1 - i
	}
	return int64(v), i
}
