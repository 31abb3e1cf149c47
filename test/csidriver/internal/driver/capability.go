package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

const fsType = "ext4"

// accessTypeOf checks one capability that a request names. A refusal is INVALID_ARGUMENT with a sentence.
func accessTypeOf(c *csi.VolumeCapability) (store.AccessType, error) {
	if c == nil {
		return "", status.Error(codes.InvalidArgument, "volume capability is missing")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		// With one node this is the same; Kubernetes asks for it by ReadOnlyMany.
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
	default:
		return "", status.Errorf(codes.InvalidArgument, "access mode %s is not supported: the volumes are local to one node", mode)
	}
	switch t := c.GetAccessType().(type) {
	case *csi.VolumeCapability_Block:
		return store.Block, nil
	case *csi.VolumeCapability_Mount:
		if fs := t.Mount.GetFsType(); fs != "" && fs != fsType {
			return "", status.Errorf(codes.InvalidArgument, "filesystem type %q is not supported, only %s", fs, fsType)
		}
		if t.Mount.GetVolumeMountGroup() != "" {
			return "", status.Error(codes.InvalidArgument, "a volume mount group is not supported")
		}
		return store.Filesystem, nil
	}
	return "", status.Error(codes.InvalidArgument, "access type is missing: neither block nor mount")
}

// accessTypeOfAll checks the capabilities of a request, which must agree on the access type.
func accessTypeOfAll(caps []*csi.VolumeCapability) (store.AccessType, error) {
	if len(caps) == 0 {
		return "", status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	var all store.AccessType
	for _, c := range caps {
		t, err := accessTypeOf(c)
		if err != nil {
			return "", err
		}
		if all != "" && t != all {
			return "", status.Error(codes.InvalidArgument, "a volume cannot be block and mount at once")
		}
		all = t
	}
	return all, nil
}

// isReadOnly says whether the mode allows no writer.
func isReadOnly(c *csi.VolumeCapability) bool {
	m := c.GetAccessMode().GetMode()
	return m == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY || m == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
}

// size chooses the size of a volume that must hold at least atLeast bytes, 0 for any.
func (d *Driver) size(r *csi.CapacityRange, atLeast int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 {
		return 0, status.Error(codes.InvalidArgument, "capacity range is negative")
	}
	if limit > 0 && required > limit {
		return 0, status.Errorf(codes.InvalidArgument, "required bytes %d exceed limit bytes %d", required, limit)
	}
	bytes := max(required, atLeast, MinVolumeBytes)
	if bytes > d.cfg.MaxVolumeBytes {
		return 0, status.Errorf(codes.OutOfRange, "%d bytes exceed the largest volume of %d bytes", bytes, d.cfg.MaxVolumeBytes)
	}
	bytes = roundUp(bytes)
	if limit > 0 && bytes > limit {
		return 0, status.Errorf(codes.OutOfRange, "limit of %d bytes is below the %d bytes that the volume would get", limit, bytes)
	}
	return bytes, nil
}
