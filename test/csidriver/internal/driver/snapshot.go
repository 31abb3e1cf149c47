package driver

import (
	"context"
	"errors"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// CreateSnapshot implements csi.ControllerServer. The snapshot is ready when it returns.
func (d *Driver) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot name is missing")
	}
	if req.GetSourceVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "source volume ID is missing")
	}
	unlockName, err := d.locks.lock(ctx, "snapshot name "+req.GetName())
	if err != nil {
		return nil, err
	}
	defer unlockName()
	if existing, ok := d.store.Snapshots.ByName(req.GetName()); ok {
		if existing.SourceVolumeID != req.GetSourceVolumeId() {
			return nil, status.Errorf(codes.AlreadyExists, "snapshot %s exists, of volume %s", req.GetName(), existing.SourceVolumeID)
		}
		return &csi.CreateSnapshotResponse{Snapshot: csiSnapshot(existing)}, nil
	}
	unlock, err := d.locks.lock(ctx, "volume "+req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := d.store.Volumes.Get(req.GetSourceVolumeId())
	if err != nil {
		return nil, failed(err, "create snapshot %s of volume", req.GetName())
	}
	s := store.Snapshot{
		ID:             store.NewID("snap-"),
		Name:           req.GetName(),
		SourceVolumeID: v.ID,
		SizeBytes:      v.SizeBytes,
		AccessType:     v.AccessType,
		CreatedAt:      time.Now(),
	}
	err = d.store.Snapshots.Create(s, func(path string) error { return d.copyVolume(v, path, v.SizeBytes) })
	if err != nil {
		return nil, failed(err, "create snapshot %s of volume %s", req.GetName(), v.ID)
	}
	return &csi.CreateSnapshotResponse{Snapshot: csiSnapshot(s)}, nil
}

// DeleteSnapshot implements csi.ControllerServer. Volumes and streams that were made from the snapshot are not affected.
func (d *Driver) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id := req.GetSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot ID is missing")
	}
	unlock, err := d.locks.lock(ctx, "snapshot "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.store.Snapshots.Delete(id); err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, failed(err, "delete snapshot %s", id)
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// GetSnapshot implements csi.ControllerServer.
func (d *Driver) GetSnapshot(_ context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot ID is missing")
	}
	s, err := d.store.Snapshots.Get(req.GetSnapshotId())
	if err != nil {
		return nil, failed(err, "get snapshot")
	}
	return &csi.GetSnapshotResponse{Snapshot: csiSnapshot(s)}, nil
}

// csiSnapshot describes s to the CO.
func csiSnapshot(s store.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:     s.ID,
		SourceVolumeId: s.SourceVolumeID,
		SizeBytes:      s.SizeBytes,
		CreationTime:   timestamppb.New(s.CreatedAt),
		ReadyToUse:     true,
	}
}
