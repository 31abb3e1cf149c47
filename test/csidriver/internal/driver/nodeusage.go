package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/ext4"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/loop"
	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	v, unlock, err := d.volumeFor(ctx, req.GetVolumeId(), req.GetVolumePath(), volumePath)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := d.usedAt(v, req.GetVolumePath()); err != nil {
		return nil, err
	}
	if v.AccessType == store.Block {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: v.SizeBytes},
		}}, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(req.GetVolumePath(), &st); err != nil {
		return nil, failed(err, "usage of volume %s", v.ID)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit:      csi.VolumeUsage_BYTES,
			Total:     int64(st.Blocks) * st.Bsize,
			Available: int64(st.Bavail) * st.Bsize,
			Used:      int64(st.Blocks-st.Bfree) * st.Bsize,
		},
		{
			Unit:      csi.VolumeUsage_INODES,
			Total:     int64(st.Files),
			Available: int64(st.Ffree),
			Used:      int64(st.Files - st.Ffree),
		},
	}}, nil
}

// NodeExpandVolume implements csi.NodeServer: the second half of ControllerExpandVolume, for a mounted filesystem.
func (d *Driver) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	v, unlock, err := d.volumeFor(ctx, req.GetVolumeId(), req.GetVolumePath(), volumePath)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dev, err := d.usedAt(v, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if err := d.ensureSize(v); err != nil {
		return nil, failed(err, "expand volume %s", v.ID)
	}
	if v.AccessType == store.Filesystem {
		if err := growMounted(ctx, v, dev); err != nil {
			return nil, failed(err, "expand volume %s", v.ID)
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.SizeBytes}, nil
}

// growMounted also serves a volume that NodeStageVolume has grown already.
func growMounted(ctx context.Context, v store.Volume, dev loop.Device) error {
	bytes, ok, err := ext4.Bytes(dev.Path())
	if err != nil || ok && bytes >= v.SizeBytes {
		return err
	}
	return ext4.GrowMounted(ctx, dev.Path())
}
