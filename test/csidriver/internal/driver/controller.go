package driver

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/ext4"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/loop"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume name is missing")
	}
	access, err := accessTypeOfAll(req.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if len(req.GetMutableParameters()) > 0 {
		return nil, status.Error(codes.InvalidArgument, "mutable parameters are not supported")
	}
	unlock, err := d.locks.lock(ctx, "volume name "+req.GetName())
	if err != nil {
		return nil, err
	}
	defer unlock()
	v := store.Volume{
		ID:               store.NewID("vol-"),
		Name:             req.GetName(),
		AccessType:       access,
		SourceSnapshotID: req.GetVolumeContentSource().GetSnapshot().GetSnapshotId(),
		SourceVolumeID:   req.GetVolumeContentSource().GetVolume().GetVolumeId(),
	}
	if existing, ok := d.store.Volumes.ByName(v.Name); ok {
		if err := checkSame(existing, v, req.GetCapacityRange()); err != nil {
			return nil, err
		}
		return &csi.CreateVolumeResponse{Volume: csiVolume(existing)}, nil
	}
	v, err = d.createVolume(ctx, v, req)
	if err != nil {
		return nil, failed(err, "create volume %s", req.GetName())
	}
	return &csi.CreateVolumeResponse{Volume: csiVolume(v)}, nil
}

// checkSame says whether a volume that exists is what a request for its name asks for.
func checkSame(existing, wanted store.Volume, r *csi.CapacityRange) error {
	switch {
	case existing.SizeBytes < r.GetRequiredBytes(), r.GetLimitBytes() > 0 && existing.SizeBytes > r.GetLimitBytes():
		return status.Errorf(codes.AlreadyExists, "volume %s exists with %d bytes", existing.Name, existing.SizeBytes)
	case existing.AccessType != wanted.AccessType:
		return status.Errorf(codes.AlreadyExists, "volume %s exists with access type %s", existing.Name, existing.AccessType)
	case existing.SourceSnapshotID != wanted.SourceSnapshotID || existing.SourceVolumeID != wanted.SourceVolumeID:
		return status.Errorf(codes.AlreadyExists, "volume %s exists with another content source", existing.Name)
	}
	return nil
}

// createVolume makes v's image: empty, from a snapshot, or from another volume.
func (d *Driver) createVolume(ctx context.Context, v store.Volume, req *csi.CreateVolumeRequest) (store.Volume, error) {
	var (
		sourceSize int64
		build      func(path string) error
	)
	switch {
	case v.SourceSnapshotID != "":
		snap, err := d.store.Snapshots.Get(v.SourceSnapshotID)
		if err != nil {
			return v, fmt.Errorf("source snapshot: %w", err)
		}
		sourceSize = snap.SizeBytes
		build = func(path string) error {
			return d.copyImage(d.store.Snapshots.ImagePath(snap.ID), path, v.SizeBytes, nil)
		}
	case v.SourceVolumeID != "":
		unlock, err := d.locks.lock(ctx, "volume "+v.SourceVolumeID)
		if err != nil {
			return v, err
		}
		defer unlock()
		source, err := d.store.Volumes.Get(v.SourceVolumeID)
		if err != nil {
			return v, fmt.Errorf("source volume: %w", err)
		}
		sourceSize = source.SizeBytes
		build = func(path string) error { return d.copyVolume(source, path, v.SizeBytes) }
	case req.GetVolumeContentSource() != nil:
		return v, status.Error(codes.InvalidArgument, "volume content source is neither a snapshot nor a volume")
	default:
		build = func(path string) error { return d.newImage(path, v) }
	}
	size, err := d.size(req.GetCapacityRange(), sourceSize)
	if err != nil {
		return v, err
	}
	v.SizeBytes = size
	return v, d.store.Volumes.Create(v, func(path string) error {
		if err := build(path); err != nil {
			return err
		}
		return d.fitFilesystem(path, v)
	})
}

// newImage makes an image of zeros, with an empty filesystem if v is to be mounted.
func (d *Driver) newImage(path string, v store.Volume) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(v.SizeBytes), f.Close()); err != nil {
		return err
	}
	if v.AccessType == store.Block {
		return nil
	}
	return ext4.Format(d.life, path, v.SizeBytes)
}

// fitFilesystem grows the filesystem in a copied image to the size of its volume.
func (d *Driver) fitFilesystem(path string, v store.Volume) error {
	if v.AccessType == store.Block {
		return nil
	}
	bytes, ok, err := ext4.Bytes(path)
	if err != nil {
		return err
	}
	if !ok {
		return status.Error(codes.InvalidArgument, "the content source holds no ext4 filesystem, so it cannot be mounted")
	}
	if bytes >= v.SizeBytes {
		return nil
	}
	return ext4.Grow(d.life, path)
}

// DeleteVolume implements csi.ControllerServer. Snapshots of the volume are copies and stay.
func (d *Driver) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	unlock, err := d.locks.lock(ctx, "volume "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := d.store.Volumes.Get(id); errors.Is(err, store.ErrNotFound) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err := d.detachUnused(ctx, id); err != nil {
		return nil, failed(err, "delete volume %s", id)
	}
	if err := d.store.Volumes.Delete(id); err != nil {
		return nil, failed(err, "delete volume %s", id)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// detachUnused frees the volume's loop device; it fails with FAILED_PRECONDITION while the volume is in use.
func (d *Driver) detachUnused(ctx context.Context, id string) error {
	path := d.store.Volumes.ImagePath(id)
	dev, attached, err := loop.Find(path)
	if err != nil || !attached {
		return err
	}
	filesystems, nodes, err := deviceMounts(dev)
	if err != nil {
		return err
	}
	if used := append(filesystems, nodes...); len(used) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %s is in use at %s", id, used[0])
	}
	err = loop.Detach(ctx, path)
	if errors.Is(err, loop.ErrBusy) {
		return status.Errorf(codes.FailedPrecondition, "volume %s is in use: %v", id, err)
	}
	return err
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	v, err := d.store.Volumes.Get(req.GetVolumeId())
	if err != nil {
		return nil, failed(err, "validate volume")
	}
	access, err := accessTypeOfAll(req.GetVolumeCapabilities())
	if err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	if access != v.AccessType {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: fmt.Sprintf("the volume's access type is %s", v.AccessType)}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      req.GetVolumeContext(),
			VolumeCapabilities: req.GetVolumeCapabilities(),
			Parameters:         req.GetParameters(),
		},
	}, nil
}

// GetCapacity implements csi.ControllerServer. Images are sparse, so volumes may promise more than this.
func (d *Driver) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.cfg.StateDir, &st); err != nil {
		return nil, failed(err, "get capacity of %s", d.cfg.StateDir)
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: int64(st.Bavail) * st.Bsize,
		MaximumVolumeSize: wrapperspb.Int64(d.cfg.MaxVolumeBytes),
		MinimumVolumeSize: wrapperspb.Int64(MinVolumeBytes),
	}, nil
}

// ControllerExpandVolume implements csi.ControllerServer. Volumes in use grow at once; a filesystem is grown on its node.
func (d *Driver) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	if req.GetCapacityRange() == nil {
		return nil, status.Error(codes.InvalidArgument, "capacity range is missing")
	}
	unlock, err := d.locks.lock(ctx, "volume "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := d.store.Volumes.Get(id)
	if err != nil {
		return nil, failed(err, "expand volume")
	}
	if v.SizeBytes, err = d.size(req.GetCapacityRange(), v.SizeBytes); err != nil {
		return nil, err
	}
	if err := d.store.Volumes.Update(v); err != nil {
		return nil, failed(err, "expand volume %s", id)
	}
	if err := d.ensureSize(v); err != nil {
		return nil, failed(err, "expand volume %s", id)
	}
	return &csi.ControllerExpandVolumeResponse{
		CapacityBytes:         v.SizeBytes,
		NodeExpansionRequired: v.AccessType == store.Filesystem,
	}, nil
}

// ensureSize brings the image, and its device if it is attached, to the size in the record. The record is written first,
// so a kill in between is made good here by the next call.
func (d *Driver) ensureSize(v store.Volume) error {
	path := d.store.Volumes.ImagePath(v.ID)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < v.SizeBytes {
		if err := os.Truncate(path, v.SizeBytes); err != nil {
			return err
		}
	}
	dev, attached, err := loop.Find(path)
	if err != nil || !attached {
		return err
	}
	return dev.Resize()
}

// csiVolume describes v to the CO.
func csiVolume(v store.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.SizeBytes}
	if v.SourceSnapshotID != "" {
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.SourceSnapshotID},
		}}
	}
	if v.SourceVolumeID != "" {
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.SourceVolumeID},
		}}
	}
	return out
}
