package driver_test

import (
	"context"
	"errors"
	"io"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// request is one SnapshotMetadata request; base "" asks for allocated blocks.
type request struct {
	base, target string
	from         int64
	max          int32
}

type message interface {
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

// open starts the stream and returns its receive function.
func (h *harness) open(ctx context.Context, q request) (func() (message, error), error) {
	if q.base == "" {
		s, err := h.GetMetadataAllocated(ctx, &csi.GetMetadataAllocatedRequest{
			SnapshotId: q.target, StartingOffset: q.from, MaxResults: q.max,
		})
		return func() (message, error) { return s.Recv() }, err
	}
	s, err := h.GetMetadataDelta(ctx, &csi.GetMetadataDeltaRequest{
		BaseSnapshotId: q.base, TargetSnapshotId: q.target, StartingOffset: q.from, MaxResults: q.max,
	})
	return func() (message, error) { return s.Recv() }, err
}

type extent struct{ offset, length int64 }

// answer is a whole stream.
type answer struct {
	capacity int64
	extents  []extent
	// perMessage is the number of entries of each message.
	perMessage []int
}

// ask reads a whole stream and checks what the protocol promises of every one.
func (h *harness) ask(q request) (answer, error) {
	h.t.Helper()
	recv, err := h.open(h.t.Context(), q)
	if err != nil {
		return answer{}, err
	}
	var a answer
	end := int64(0)
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if m.GetBlockMetadataType() != h.cfg.MetadataType {
			h.t.Fatalf("%+v: type %s", q, m.GetBlockMetadataType())
		}
		if len(a.perMessage) > 0 && m.GetVolumeCapacityBytes() != a.capacity {
			h.t.Fatalf("%+v: capacity %d after %d", q, m.GetVolumeCapacityBytes(), a.capacity)
		}
		a.capacity = m.GetVolumeCapacityBytes()
		a.perMessage = append(a.perMessage, len(m.GetBlockMetadata()))
		for _, b := range m.GetBlockMetadata() {
			e := extent{b.GetByteOffset(), b.GetSizeBytes()}
			fixed := h.cfg.MetadataType == csi.BlockMetadataType_FIXED_LENGTH
			if e.offset < end || e.length <= 0 || e.offset+e.length > a.capacity || fixed && e.length != 4096 {
				h.t.Fatalf("%+v: extent %+v after %d", q, e, end)
			}
			if e.offset+e.length <= q.from {
				h.t.Fatalf("%+v: extent %+v ends before the starting offset", q, e)
			}
			end = e.offset + e.length
			a.extents = append(a.extents, e)
		}
	}
}

func (h *harness) mustAsk(q request) answer {
	h.t.Helper()
	a, err := h.ask(q)
	if err != nil {
		h.t.Fatalf("%+v: %v", q, err)
	}
	return a
}

// blocks returns the numbers of the 4 KiB blocks that the extents cover.
func (a answer) blocks() (blocks []int64) {
	for _, e := range a.extents {
		for off := e.offset; off < e.offset+e.length; off += 4096 {
			blocks = append(blocks, off/4096)
		}
	}
	return blocks
}
