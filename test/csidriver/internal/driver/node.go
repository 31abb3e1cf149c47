package driver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/ext4"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/loop"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.cfg.NodeID, MaxVolumesPerNode: d.cfg.MaxVolumesPerNode}, nil
}

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// The paths of node requests, as complaints name them.
const (
	stagingPath = "staging target path"
	targetPath  = "target path"
	// volumePath is only looked at: a volume is not found at a relative one.
	volumePath = "volume path"
)

// volumeFor locks and returns the volume of a node request after checking what these requests have in common.
func (d *Driver) volumeFor(ctx context.Context, id, path, pathName string) (v store.Volume, unlock func(), err error) {
	if id == "" {
		return v, nil, status.Error(codes.InvalidArgument, "volume ID is missing")
	}
	if path == "" {
		return v, nil, status.Errorf(codes.InvalidArgument, "%s is missing", pathName)
	}
	if unlock, err = d.locks.lock(ctx, "volume "+id); err != nil {
		return v, nil, err
	}
	if v, err = d.store.Volumes.Get(id); err != nil {
		unlock()
		return v, nil, failed(err, "look up volume")
	}
	if !filepath.IsAbs(path) && pathName != volumePath {
		unlock()
		return v, nil, status.Errorf(codes.InvalidArgument, "%s %q is not absolute", pathName, path)
	}
	return v, unlock, nil
}

// checkAccess refuses a capability that the volume was not made for.
func checkAccess(v store.Volume, c *csi.VolumeCapability) error {
	access, err := accessTypeOf(c)
	if err != nil {
		return err
	}
	if access != v.AccessType {
		return status.Errorf(codes.FailedPrecondition, "volume %s has access type %s, not %s", v.ID, v.AccessType, access)
	}
	return nil
}

// NodeStageVolume implements csi.NodeServer: it attaches the loop device and mounts the filesystem, if there is one.
func (d *Driver) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	v, unlock, err := d.volumeFor(ctx, req.GetVolumeId(), req.GetStagingTargetPath(), stagingPath)
	if err != nil {
		return nil, missingCapability(err, req.GetVolumeCapability())
	}
	defer unlock()
	if err := checkAccess(v, req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if err := d.stage(ctx, v, req.GetStagingTargetPath(), req.GetVolumeCapability()); err != nil {
		return nil, failed(err, "stage volume %s", v.ID)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// missingCapability prefers the complaint about a missing capability to the one about an unknown volume.
func missingCapability(err error, c *csi.VolumeCapability) error {
	if c == nil && status.Code(err) == codes.NotFound {
		return status.Error(codes.InvalidArgument, "volume capability is missing")
	}
	return err
}

func (d *Driver) stage(ctx context.Context, v store.Volume, path string, c *csi.VolumeCapability) (err error) {
	if err := d.ensureSize(v); err != nil {
		return err
	}
	dev, err := loop.Attach(ctx, d.store.Volumes.ImagePath(v.ID))
	if err != nil {
		return err
	}
	if v.StagingPath != path {
		v.StagingPath = path
		if err := d.store.Volumes.Update(v); err != nil {
			return err
		}
	}
	if v.AccessType == store.Block {
		return nil
	}
	mounted, err := isMountOf(dev, path)
	if err != nil || mounted {
		return err
	}
	// A volume that was expanded while it was not in use is grown here, which any root may do. Half grown is damaged, so
	// a request that ends does not end it.
	if bytes, ok, err := ext4.Bytes(dev.Path()); err == nil && ok && bytes < v.SizeBytes {
		if err := ext4.Grow(context.WithoutCancel(ctx), dev.Path()); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	return mountFilesystem(dev, path, c.GetMount().GetMountFlags())
}

// NodeUnstageVolume implements csi.NodeServer.
func (d *Driver) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	v, unlock, err := d.volumeFor(ctx, req.GetVolumeId(), req.GetStagingTargetPath(), stagingPath)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v.AccessType == store.Filesystem {
		if err := unmount(req.GetStagingTargetPath()); err != nil {
			return nil, failed(err, "unstage volume %s", v.ID)
		}
	}
	// Also the check that nothing is published any more.
	if err := d.detachUnused(ctx, v.ID); err != nil {
		return nil, failed(err, "unstage volume %s", v.ID)
	}
	v.StagingPath, v.Published = "", nil
	if err := d.store.Volumes.Update(v); err != nil {
		return nil, failed(err, "unstage volume %s", v.ID)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume implements csi.NodeServer: a bind mount of the staged filesystem or of the loop device's node.
func (d *Driver) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	v, unlock, err := d.volumeFor(ctx, req.GetVolumeId(), req.GetTargetPath(), targetPath)
	if err != nil {
		return nil, missingCapability(err, req.GetVolumeCapability())
	}
	defer unlock()
	if err := checkAccess(v, req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if req.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.FailedPrecondition, "staging target path is missing")
	}
	dev, attached, err := loop.Find(d.store.Volumes.ImagePath(v.ID))
	if err != nil {
		return nil, failed(err, "publish volume %s", v.ID)
	}
	if !attached {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not staged", v.ID)
	}
	p := store.Publication{
		TargetPath: req.GetTargetPath(),
		ReadOnly:   req.GetReadonly() || isReadOnly(req.GetVolumeCapability()),
		AccessMode: req.GetVolumeCapability().GetAccessMode().GetMode().String(),
	}
	done, err := d.planPublication(v, dev, p)
	if err != nil || done {
		return &csi.NodePublishVolumeResponse{}, err
	}
	if err := d.publish(v, dev, p, req); err != nil {
		return nil, failed(err, "publish volume %s at %s", v.ID, p.TargetPath)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// planPublication puts p on record, unless it exists (done) or contradicts another publication.
func (d *Driver) planPublication(v store.Volume, dev loop.Device, p store.Publication) (done bool, err error) {
	single := csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER.String()
	var live []store.Publication
	for _, other := range v.Published {
		mounted, err := isMountOf(dev, other.TargetPath)
		if err != nil {
			return false, failed(err, "publish volume %s", v.ID)
		}
		switch {
		case !mounted:
			// A driver was killed before it mounted, or the node was started anew.
		case other == p:
			return true, nil
		case other.TargetPath == p.TargetPath:
			return false, status.Errorf(codes.AlreadyExists, "volume %s is published at %s with access mode %s, read-only %t",
				v.ID, p.TargetPath, other.AccessMode, other.ReadOnly)
		case other.AccessMode == single || p.AccessMode == single:
			return false, status.Errorf(codes.FailedPrecondition, "volume %s is published at %s, and a single writer was asked for",
				v.ID, other.TargetPath)
		default:
			live = append(live, other)
		}
	}
	v.Published = append(live, p)
	if err := d.store.Volumes.Update(v); err != nil {
		return false, failed(err, "publish volume %s", v.ID)
	}
	return false, nil
}

func (d *Driver) publish(v store.Volume, dev loop.Device, p store.Publication, req *csi.NodePublishVolumeRequest) error {
	if v.AccessType == store.Block {
		f, err := os.OpenFile(p.TargetPath, os.O_RDONLY|os.O_CREATE, 0o660)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		// A read-only bind mount of a node would not make the device read-only; the CO restricts the container's access.
		return bindMount(dev.Path(), p.TargetPath, false)
	}
	staged, err := isMountOf(dev, req.GetStagingTargetPath())
	if err != nil {
		return err
	}
	if !staged {
		return status.Errorf(codes.FailedPrecondition, "nothing is staged at %s", req.GetStagingTargetPath())
	}
	if err := os.MkdirAll(p.TargetPath, 0o750); err != nil {
		return err
	}
	return bindMount(req.GetStagingTargetPath(), p.TargetPath, p.ReadOnly)
}

// NodeUnpublishVolume implements csi.NodeServer.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	path := req.GetTargetPath()
	v, unlock, err := d.volumeFor(ctx, req.GetVolumeId(), path, targetPath)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := unmount(path); err != nil {
		return nil, failed(err, "unpublish volume %s", v.ID)
	}
	if err := removeTarget(path); err != nil {
		return nil, failed(err, "unpublish volume %s: remove %s", v.ID, path)
	}
	v.Published = slices.DeleteFunc(slices.Clone(v.Published), func(p store.Publication) bool { return p.TargetPath == path })
	if err := d.store.Volumes.Update(v); err != nil {
		return nil, failed(err, "unpublish volume %s", v.ID)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// usedAt returns the device of v if v is staged or published at path, NOT_FOUND if it is not.
func (d *Driver) usedAt(v store.Volume, path string) (loop.Device, error) {
	dev, attached, err := loop.Find(d.store.Volumes.ImagePath(v.ID))
	if err != nil {
		return dev, failed(err, "look up volume %s", v.ID)
	}
	notThere := status.Error(codes.NotFound, fmt.Sprintf("volume %s is not at %s", v.ID, path))
	if !attached {
		return dev, notThere
	}
	if v.AccessType == store.Block && v.StagingPath == path {
		return dev, nil
	}
	mounted, err := isMountOf(dev, path)
	if err != nil {
		return dev, failed(err, "look up volume %s", v.ID)
	}
	if !mounted {
		return dev, notThere
	}
	return dev, nil
}
