package snapmeta

import (
	"encoding/binary"
	"errors"
	"math/bits"

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
	for len(b) >= usualExtentBytes {
		t := (*[usualExtentBytes]byte)(b)
		offset, n := usualVarint(binary.LittleEndian.Uint64(t[3:]))
		end := t[3+n:]
		length, m := usualVarint(binary.LittleEndian.Uint64(end[1:]))
		if t[0] != extentTag || t[2] != offsetTag || n > 8 || end[0] != lengthTag || m > 7 || int(t[1]) != 2+n+m {
			break
		}
		extents = append(extents, blocklist.Extent{Offset: int64(offset), Length: int64(length)})
		b, extents = parseLike(b[4+n+m:], extents, length, binary.LittleEndian.Uint64(end), 1+m)
	}
	return b, extents
}

// parseLike is parseUsual for tuples whose last endBytes bytes, the field of their length, are those of end. Most lists
// consist of extents of one length.
func parseLike(b []byte, extents []blocklist.Extent, length, end uint64, endBytes int) ([]byte, []blocklist.Extent) {
	shift := 64 - 8*uint(endBytes)
	end <<= shift
	at := 0
	for len(b)-at >= usualExtentBytes {
		t := (*[usualExtentBytes]byte)(b[at:])
		const tags = uint32(extentTag) | uint32(offsetTag)<<16
		if binary.LittleEndian.Uint32(t[:])&0xff_00ff != tags {
			break
		}
		offset, n := usualVarint(binary.LittleEndian.Uint64(t[3:]))
		if binary.LittleEndian.Uint64(t[3+n:])<<shift != end || int(t[1]) != 1+n+endBytes || n > 8 {
			break
		}
		extents = append(extents, blocklist.Extent{Offset: int64(offset), Length: int64(length)})
		// This depends on nothing that was decoded, so that the processor can decode several tuples at once.
		at += 2 + int(t[1])
	}
	return b[at:], extents
}

// usualVarint decodes the varint at the start of eight bytes and returns its length, more than 8 if it is longer than they.
// It joins all groups of seven bits at once: first to fourteens, then to twenty-eights, then to one number.
func usualVarint(v uint64) (uint64, int) {
	last := ^v & 0x8080_8080_8080_8080
	n := bits.TrailingZeros64(last)
	v &= (last ^ (last - 1)) & 0x7f7f_7f7f_7f7f_7f7f
	v = v&0x007f_007f_007f_007f | v&0x7f00_7f00_7f00_7f00>>1
	v = v&0x0000_3fff_0000_3fff | v&0x3fff_0000_3fff_0000>>2
	v = v&0x0000_0000_0fff_ffff | v&0x0fff_ffff_0000_0000>>4
	return v, n/8 + 1
}
