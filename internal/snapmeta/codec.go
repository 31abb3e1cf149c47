package snapmeta

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// wireCodec is gRPC's own protobuf codec for everything but an *incoming, which it lets parse the bytes of a response
// where they arrived. It keeps the codec's name, because servers are told it as the content's subtype.
type wireCodec struct{ encoding.CodecV2 }

func newWireCodec() wireCodec { return wireCodec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2. The buffers belong to gRPC, which frees them when it returns.
func (c wireCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*incoming); ok {
		return m.parse(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// maxJoined bounds the memory that an incoming keeps between two messages, in bytes.
const maxJoined = 1 << 20

// incoming is where a call receives its messages.
type incoming struct {
	// reuse is memory for the next message's extents.
	reuse []blocklist.Extent
	message
	// joined holds a message that came in several buffers.
	joined []byte
}

func (m *incoming) parse(data mem.BufferSlice) (err error) {
	b := m.contiguous(data)
	m.message, err = parseMessage(b, m.reuse)
	if cap(m.joined) > maxJoined {
		m.joined = nil
	}
	return err
}

// contiguous returns data in one piece, which is valid until the next call and as long as data is.
func (m *incoming) contiguous(data mem.BufferSlice) []byte {
	if len(data) == 1 {
		return data[0].ReadOnlyData()
	}
	m.joined = m.joined[:0]
	for _, buffer := range data {
		m.joined = append(m.joined, buffer.ReadOnlyData()...)
	}
	return m.joined
}
