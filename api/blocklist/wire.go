package blocklist

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// magic begins every binary list. Its first byte is no text, its line ends are broken by a transfer as text.
const magic = "\x89CBL\r\n\x1a\n"

// endMagic ends every binary list.
const endMagic = "\x89CBLEND\n"

// footerBytes is the length of what follows the last record: the list's length, the length of the trailer's record with
// its length prefix, the CRC32C of both, and endMagic.
const footerBytes = 8 + 4 + 4 + len(endMagic)

// Field numbers of blocklist.proto. All are below 16, so that a tag takes one byte.
const (
	headerField  = 1
	chunkField   = 2
	trailerField = 3
	crcField     = 15

	chunkFirstOffset = 1
	chunkUnitShift   = 2
	chunkExtents     = 3

	trailerEntryCount   = 1
	trailerChangedBytes = 2
	trailerSHA256       = 3
	trailerComplete     = 4
	trailerIndex        = 5

	indexStride       = 1
	indexListBytes    = 2
	indexFirstOffset  = 3
	indexChangedBytes = 4
)

// Wire types of the protobuf encoding.
const (
	wireVarint  = 0
	wireBytes   = 2
	wireFixed32 = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func tag(field, wireType int) byte { return byte(field<<3 | wireType) }

// appendUint appends a varint field; as in every proto3 encoding, zero is left out.
func appendUint(b []byte, field int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, tag(field, wireVarint)), v)
}

// appendBytes appends a string, bytes or message field; an empty one is left out.
func appendBytes[T string | []byte](b []byte, field int, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = binary.AppendUvarint(append(b, tag(field, wireBytes)), uint64(len(v)))
	return append(b, v...)
}

// crcBytes is the length of a record's crc32c field, its last.
const crcBytes = 1 + 4

// appendRecord appends a Record with its length prefix: the body in its field, then the checksum of what precedes it.
func appendRecord(b []byte, field int, body []byte) []byte {
	var head [1 + binary.MaxVarintLen64]byte
	head[0] = tag(field, wireBytes)
	n := 1 + binary.PutUvarint(head[1:], uint64(len(body)))
	b = binary.AppendUvarint(b, uint64(n+len(body)+crcBytes))
	start := len(b)
	b = append(b, head[:n]...)
	b = append(b, body...)
	crc := crc32.Checksum(b[start:], castagnoli)
	b = append(b, tag(crcField, wireFixed32))
	return binary.LittleEndian.AppendUint32(b, crc)
}

// openRecord checks a Record without its length prefix and returns the number and the content of its field.
func openRecord(record []byte) (field int, body []byte, err error) {
	if len(record) < 2+crcBytes || record[0]&7 != wireBytes {
		return 0, nil, fmt.Errorf("%w: a record has no field", ErrCorrupt)
	}
	checked, crc := record[:len(record)-crcBytes], record[len(record)-crcBytes:]
	if crc[0] != tag(crcField, wireFixed32) {
		return 0, nil, fmt.Errorf("%w: a record does not end with a checksum", ErrCorrupt)
	}
	if got, want := crc32.Checksum(checked, castagnoli), binary.LittleEndian.Uint32(crc[1:]); got != want {
		return 0, nil, fmt.Errorf("%w: a record's CRC32C is %08x, it should be %08x", ErrCorrupt, got, want)
	}
	length, n := uvarint(checked[1:])
	if n == 0 || length != uint64(len(checked)-1-n) {
		return 0, nil, fmt.Errorf("%w: a record holds more or less than one field", ErrCorrupt)
	}
	return int(record[0] >> 3), checked[1+n:], nil
}

// uvarint decodes a number in its shortest form; n is 0 if there is none.
func uvarint(b []byte) (v uint64, n int) {
	v, n = binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, 0
	}
	return v, n
}

// appendEnd appends the trailer's record, which begins at byte at of the list, and the footer. The digest is that of
// all bytes before.
func appendEnd(b []byte, at int64, s *sequence, x *index, digest [32]byte) []byte {
	var body []byte
	body = appendUint(body, trailerEntryCount, uint64(s.count))
	body = appendUint(body, trailerChangedBytes, uint64(s.changed))
	body = appendBytes(body, trailerSHA256, digest[:])
	body = appendUint(body, trailerComplete, 1)
	body = appendBytes(body, trailerIndex, x.appendTo(nil, at, s.changed))
	start := len(b)
	b = appendRecord(b, trailerField, body)
	record := len(b) - start
	footer := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(at)+uint64(record)+uint64(footerBytes))
	b = binary.LittleEndian.AppendUint32(b, uint32(record))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[footer:], castagnoli))
	return append(b, endMagic...)
}

// cutUint takes a varint field off b, 0 if it is absent. It is not ok if the field is there and not canonical.
func cutUint(b []byte, field int) (v uint64, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != tag(field, wireVarint) {
		return 0, b, true
	}
	v, n := uvarint(b[1:])
	if n == 0 || v == 0 {
		return 0, b, false
	}
	return v, b[1+n:], true
}

// cutBytes takes a string, bytes or message field off b, nil if it is absent. It is not ok if the field is there and
// not canonical.
func cutBytes(b []byte, field int) (v, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != tag(field, wireBytes) {
		return nil, b, true
	}
	length, n := uvarint(b[1:])
	if n == 0 || length == 0 || length > uint64(len(b)-1-n) {
		return nil, b, false
	}
	return b[1+n:][:length], b[1+n+int(length):], true
}
