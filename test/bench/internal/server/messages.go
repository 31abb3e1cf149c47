package server

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that wireCodec falls back to
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/extents"
)

// wire is a message that is marshalled already.
type wire mem.BufferSlice

// wireCodec sends wire messages as they are and leaves the others to protobuf's codec.
type wireCodec struct{ encoding.CodecV2 }

func newWireCodec() wireCodec { return wireCodec{encoding.GetCodecV2("proto")} }

// Marshal implements encoding.CodecV2.
func (c wireCodec) Marshal(v any) (mem.BufferSlice, error) {
	if w, ok := v.(wire); ok {
		return mem.BufferSlice(w), nil
	}
	return c.CodecV2.Marshal(v)
}

// The numbers of the fields, the same in the CSI driver's API and in the sidecar's.
const (
	fieldType, fieldCapacity, fieldExtent = 1, 2, 3
	fieldOffset, fieldSize                = 1, 2
	typeFixedLength                       = 1
)

// preparedExtents is the longest list whose messages are all marshalled before anybody asks: 12 bytes an extent.
const preparedExtents = 16 << 20

// messages marshals a list's messages.
type messages struct {
	list *extents.List
	// perMessage is the number of extents in each, but for the first of a stream and the last.
	perMessage int64
	pool       mem.BufferPool
	prepared   [][]byte
}

func newMessages(list *extents.List, perMessage int64) *messages {
	m := &messages{list: list, perMessage: perMessage, pool: mem.DefaultBufferPool()}
	if list.Count() > preparedExtents {
		return m
	}
	for i := int64(0); i < list.Count(); i += perMessage {
		m.prepared = append(m.prepared, m.marshal(nil, i, min(i+perMessage, list.Count())))
	}
	return m
}

// next returns the message that begins with extent i, of at most limit extents, and the index of the extent that follows.
// Messages end at multiples of perMessage, so that streams from anywhere soon meet the prepared ones.
func (m *messages) next(i, limit int64) (message wire, following int64) {
	end := min((i/m.perMessage+1)*m.perMessage, i+limit, m.list.Count())
	if whole := i%m.perMessage == 0 && (end%m.perMessage == 0 || end == m.list.Count()); whole && m.prepared != nil {
		return wire{mem.SliceBuffer(m.prepared[i/m.perMessage])}, end
	}
	const bytesPerExtent = 24
	buffer := m.pool.Get(64 + bytesPerExtent*int(end-i))
	*buffer = m.marshal((*buffer)[:0], i, end)
	return wire{mem.NewBuffer(buffer, m.pool)}, end
}

// marshal appends the message of the extents from i to end.
func (m *messages) marshal(b []byte, i, end int64) []byte {
	b = protowire.AppendTag(b, fieldType, protowire.VarintType)
	b = protowire.AppendVarint(b, typeFixedLength)
	b = protowire.AppendTag(b, fieldCapacity, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(m.list.Capacity()))
	for ; i < end; i++ {
		offset := uint64(m.list.Offset(i))
		b = protowire.AppendTag(b, fieldExtent, protowire.BytesType)
		b = append(b, byte(2+protowire.SizeVarint(offset)+protowire.SizeVarint(extents.Size)))
		b = append(b, fieldOffset<<3)
		b = protowire.AppendVarint(b, offset)
		b = append(b, fieldSize<<3)
		b = protowire.AppendVarint(b, extents.Size)
	}
	return b
}
