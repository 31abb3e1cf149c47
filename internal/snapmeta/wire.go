package snapmeta

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// The field numbers of both response types, and of the tuples in them.
const (
	kindField     protowire.Number = 1
	capacityField protowire.Number = 2
	extentField   protowire.Number = 3

	offsetField protowire.Number = 1
	lengthField protowire.Number = 2
)

// The tags of a tuple as every serializer writes it.
const (
	extentTag = byte(extentField)<<3 | byte(protowire.BytesType)
	offsetTag = byte(offsetField)<<3 | byte(protowire.VarintType)
	lengthTag = byte(lengthField)<<3 | byte(protowire.VarintType)
)

// usualExtentBytes is how many bytes parseUsual may look at: a tag, a length, and two fields of a tag and nine bytes.
const usualExtentBytes = 2 + 2*(1+9)

// errMalformed says that a message is no protobuf. The cause gives no hint that helps anyone, as with generated code.
var errMalformed = errors.New("the message is not in protobuf's wire format")

// parseMessage parses a response of either RPC; its extents reuse the memory of reuse. It refuses what the generated
// code refuses and takes everything else as it does: fields in any order, the last of a repeated scalar, unknown fields
// and known ones of another wire type passed over. The generated code takes 90 ns and an allocation for each extent.
func parseMessage(b []byte, reuse []blocklist.Extent) (message, error) {
	m := message{extents: reuse[:0]}
	for len(b) > 0 {
		if b, m.extents = parseUsual(b, m.extents); len(b) == 0 {
			break
		}
		number, wireType, n := consumeTag(b)
		if n < 0 {
			return message{}, errMalformed
		}
		b = b[n:]
		switch {
		case number == kindField && wireType == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			m.kind = api.BlockMetadataType(v)
		case number == capacityField && wireType == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			m.capacity = int64(v)
		case number == extentField && wireType == protowire.BytesType:
			var body []byte
			if body, n = protowire.ConsumeBytes(b); n < 0 {
				return message{}, errMalformed
			}
			e, err := parseExtent(body)
			if err != nil {
				return message{}, err
			}
			m.extents = append(m.extents, e)
		default:
			n = protowire.ConsumeFieldValue(number, wireType, b)
		}
		if n < 0 {
			return message{}, errMalformed
		}
		b = b[n:]
	}
	return m, nil
}

// parseExtent parses the body of one tuple, whatever it looks like.
func parseExtent(b []byte) (blocklist.Extent, error) {
	var e blocklist.Extent
	for len(b) > 0 {
		number, wireType, n := consumeTag(b)
		if n < 0 {
			return e, errMalformed
		}
		b = b[n:]
		var v uint64
		switch {
		case number == offsetField && wireType == protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
			e.Offset = int64(v)
		case number == lengthField && wireType == protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
			e.Length = int64(v)
		default:
			n = protowire.ConsumeFieldValue(number, wireType, b)
		}
		if n < 0 {
			return e, errMalformed
		}
		b = b[n:]
	}
	return e, nil
}

// consumeTag is protowire.ConsumeTag with the generated code's bound on field numbers, which is the stricter one.
func consumeTag(b []byte) (protowire.Number, protowire.Type, int) {
	number, wireType, n := protowire.ConsumeTag(b)
	if n >= 0 && number > protowire.MaxValidNumber {
		return 0, 0, -1
	}
	return number, wireType, n
}

// parseUsual appends the tuples at the start of b that look as serializers write them, an offset and a length of at most
// 56 bits each, and returns the rest. It leaves the last one or two of a message, and anything else, to the general code.
func parseUsual(b []byte, extents []blocklist.Extent) ([]byte, []blocklist.Extent) {
	before := uint64(0)
	for len(b) >= usualExtentBytes {
		t := (*[usualExtentBytes]byte)(b)
		offset, n := usualVarint(binary.LittleEndian.Uint64(t[3:]))
		end := t[3+n:]
		length, m := usualVarint(binary.LittleEndian.Uint64(end[1:]))
		if t[0] != extentTag || t[2] != offsetTag || n > 8 || end[0] != lengthTag || m > 7 || int(t[1]) != 2+n+m {
			break
		}
		if size := 4 + n + m; length == before && size <= likeBytes {
			b, extents = parseLike(b, extents, int64(length), n, size)
		} else {
			b, extents = b[size:], append(extents, blocklist.Extent{Offset: int64(offset), Length: int64(length)})
		}
		before = length
	}
	return b, extents
}

// likeBytes is the size of the largest tuple that parseLike takes.
const likeBytes = 16

// parseLike is parseUsual for tuples that look like the first one of b: their offsets take as many bytes, offsetBytes, and
// their lengths are equal; size is that of the tuple, at most likeBytes. Most lists consist of long runs of these. No step
// depends on what the one before it decoded, so that the processor can decode several tuples at once.
func parseLike(b []byte, extents []blocklist.Extent, length int64, offsetBytes, size int) ([]byte, []blocklist.Extent) {
	// fixed has a bit for each one that must not differ from the first tuple: all but those of the offset's value.
	var fixed [likeBytes]byte
	tuple := fixed[:size]
	for i := range tuple {
		tuple[i] = 0xff
	}
	value := tuple[3:][:offsetBytes]
	for i := range value {
		value[i] = 0x80
	}
	n, before := likeFirst(b, fixed, size), len(extents)
	extents = slices.Grow(extents, n)[:before+n]
	decodeLike(extents[before:], b, length, uint64(0x7f7f_7f7f_7f7f_7f7f)>>(64-8*offsetBytes), size)
	return b[n*size:], extents
}

// likeFirst returns how many tuples at the start of b, each of size bytes, have the bits of mask in common with the first one.
func likeFirst(b []byte, mask [likeBytes]byte, size int) int {
	maskLow, maskHigh := binary.LittleEndian.Uint64(mask[:]), binary.LittleEndian.Uint64(mask[8:])
	low, high := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	n := 0
	for at := 0; at+likeBytes <= len(b); at += size {
		t := b[at : at+likeBytes]
		l, h := binary.LittleEndian.Uint64(t), binary.LittleEndian.Uint64(t[8:])
		if (l^low)&maskLow|(h^high)&maskHigh != 0 {
			break
		}
		n++
	}
	return n
}

// decodeLike decodes as many tuples of b as out takes.
func decodeLike(out []blocklist.Extent, b []byte, length int64, sevens uint64, size int) {
	at := 0
	for i := range out {
		t := b[at : at+likeBytes]
		l, h := binary.LittleEndian.Uint64(t), binary.LittleEndian.Uint64(t[8:])
		out[i] = blocklist.Extent{Offset: int64(joinSevens((l>>24 | h<<40) & sevens)), Length: length}
		at += size
	}
}

// usualVarint decodes the varint at the start of eight bytes and returns its length, more than 8 if it is longer than they.
func usualVarint(v uint64) (uint64, int) {
	last := ^v & 0x8080_8080_8080_8080
	n := bits.TrailingZeros64(last)
	return joinSevens(v & (last ^ (last - 1)) & 0x7f7f_7f7f_7f7f_7f7f), n/8 + 1
}

// joinSevens joins eight groups of seven bits, each in the lower end of a byte, to one number, all groups at once: the lower
// one of each two moves up to the higher one, in bytes, then in groups of two and of four.
func joinSevens(v uint64) uint64 {
	v += v & 0x007f_007f_007f_007f
	v += v & 0x0000_ffff_0000_ffff * 3
	v += v & 0xffff_ffff * 15
	return v >> 7
}
