package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/image"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// GetMetadataAllocated implements csi.SnapshotMetadataServer: the blocks of the snapshot that are not all zeros.
func (d *Driver) GetMetadataAllocated(req *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if req.GetSnapshotId() == "" {
		return status.Error(codes.InvalidArgument, "snapshot ID is missing")
	}
	q := query{targetID: req.GetSnapshotId(), from: req.GetStartingOffset(), maxResults: req.GetMaxResults()}
	return d.streamMetadata(stream.Context(), q, func(capacity int64, entries []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType:   d.cfg.MetadataType,
			VolumeCapacityBytes: capacity,
			BlockMetadata:       entries,
		})
	})
}

// GetMetadataDelta implements csi.SnapshotMetadataServer: the blocks of the target that differ from the base, over the
// whole of the target. A base that is smaller counts as zeros past its end.
func (d *Driver) GetMetadataDelta(req *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if req.GetBaseSnapshotId() == "" {
		return status.Error(codes.InvalidArgument, "base snapshot ID is missing")
	}
	if req.GetTargetSnapshotId() == "" {
		return status.Error(codes.InvalidArgument, "target snapshot ID is missing")
	}
	if d.cfg.NoDelta {
		return status.Error(codes.FailedPrecondition, "changed block tracking is off")
	}
	q := query{
		baseID:     req.GetBaseSnapshotId(),
		targetID:   req.GetTargetSnapshotId(),
		from:       req.GetStartingOffset(),
		maxResults: req.GetMaxResults(),
	}
	return d.streamMetadata(stream.Context(), q, func(capacity int64, entries []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType:   d.cfg.MetadataType,
			VolumeCapacityBytes: capacity,
			BlockMetadata:       entries,
		})
	})
}

// query is what both RPCs ask; baseID is empty for allocated blocks.
type query struct {
	baseID, targetID string
	from             int64
	maxResults       int32
}

// streamMetadata answers q. It returns nil, which the client sees as the end of the list, only when the list is complete.
func (d *Driver) streamMetadata(ctx context.Context, q query, send func(capacity int64, entries []*csi.BlockMetadata) error) error {
	if q.maxResults < 0 {
		return status.Errorf(codes.InvalidArgument, "max results %d is negative", q.maxResults)
	}
	target, targetFile, err := d.openSnapshot(q.targetID)
	if err != nil {
		return err
	}
	defer func() { _ = targetFile.Close() }() // Opened for reading, like the base's.
	var baseFile *os.File
	if q.baseID != "" {
		var base store.Snapshot
		if base, baseFile, err = d.openSnapshot(q.baseID); err != nil {
			return err
		}
		defer func() { _ = baseFile.Close() }()
		if base.SourceVolumeID != target.SourceVolumeID {
			return status.Errorf(codes.InvalidArgument, "snapshots %s and %s are of different volumes, %s and %s",
				base.ID, target.ID, base.SourceVolumeID, target.SourceVolumeID)
		}
	}
	// At the end exactly, nothing follows: that is where the continuation of a complete list starts.
	if q.from < 0 || q.from > target.SizeBytes {
		return status.Errorf(codes.OutOfRange, "starting offset %d is not within the volume's %d bytes", q.from, target.SizeBytes)
	}
	limit := d.cfg.MaxEntriesPerMessage
	if q.maxResults > 0 {
		limit = min(limit, int(q.maxResults))
	}
	b := batcher{fixed: d.cfg.MetadataType == csi.BlockMetadataType_FIXED_LENGTH, limit: limit}
	b.send = func(entries []*csi.BlockMetadata) error {
		if err := wait(ctx, d.cfg.StreamDelay); err != nil {
			return err
		}
		return send(target.SizeBytes, entries)
	}
	err = image.Diff(ctx, targetFile, baseFile, q.from, b.add)
	if err == nil {
		err = b.finish()
	}
	if err == nil {
		err = ctx.Err()
	}
	return streamError(err)
}

func streamError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	if _, isStatus := status.FromError(err); isStatus {
		return err
	}
	return failed(err, "compare snapshots")
}

func (d *Driver) openSnapshot(id string) (store.Snapshot, *os.File, error) {
	s, err := d.store.Snapshots.Get(id)
	if err != nil {
		return s, nil, failed(err, "look up snapshot")
	}
	f, err := os.Open(d.store.Snapshots.ImagePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		// Deleted since the look-up.
		return s, nil, status.Errorf(codes.NotFound, "snapshot %s was deleted", id)
	}
	if err != nil {
		return s, nil, failed(err, "open snapshot %s", id)
	}
	return s, f, nil
}

// wait waits for the delay or the end of ctx.
func wait(ctx context.Context, delay time.Duration) error {
	if delay == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// batcher forms messages out of ranges: of blocks if fixed, of runs as long as possible otherwise.
type batcher struct {
	fixed bool
	// limit is the largest number of entries in a message.
	limit int
	send  func([]*csi.BlockMetadata) error

	run     image.Extent
	entries []*csi.BlockMetadata
	sent    bool
}

// add takes the next range.
func (b *batcher) add(e image.Extent) error {
	if b.fixed {
		for off := e.Offset; off < e.End(); off += image.BlockBytes {
			if err := b.entry(image.Extent{Offset: off, Length: image.BlockBytes}); err != nil {
				return err
			}
		}
		return nil
	}
	if b.run.Length > 0 && b.run.End() == e.Offset {
		b.run.Length += e.Length
		return nil
	}
	previous := b.run
	b.run = e
	if previous.Length == 0 {
		return nil
	}
	return b.entry(previous)
}

func (b *batcher) entry(e image.Extent) error {
	b.entries = append(b.entries, &csi.BlockMetadata{ByteOffset: e.Offset, SizeBytes: e.Length})
	if len(b.entries) < b.limit {
		return nil
	}
	return b.flush()
}

func (b *batcher) flush() error {
	b.sent = true
	entries := b.entries
	// gRPC may look at a message after it was sent, so its memory is not used again.
	b.entries = nil
	return b.send(entries)
}

// finish sends what is left. An empty list is one message without entries, so that the client learns the capacity.
func (b *batcher) finish() error {
	if b.run.Length > 0 {
		if err := b.entry(b.run); err != nil {
			return err
		}
	}
	if len(b.entries) == 0 && b.sent {
		return nil
	}
	return b.flush()
}
