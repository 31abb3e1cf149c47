package driver

import (
	"context"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cbt-populator/cbt-populator/test/csidriver/internal/store"
)

// tokenPrefix marks a page token; the ID after which the page starts follows. So a page does not shift when objects come
// and go between two calls.
const tokenPrefix = "after:"

// page cuts items, which are in the order of their IDs, to the page that token and maxEntries ask for. A bad token is
// ABORTED, as the CSI specification wants it.
func page[T any](items []T, id func(T) string, token string, maxEntries int32) (cut []T, next string, err error) {
	if maxEntries < 0 {
		return nil, "", status.Errorf(codes.InvalidArgument, "max entries %d is negative", maxEntries)
	}
	if token != "" {
		after, ok := strings.CutPrefix(token, tokenPrefix)
		if !ok {
			return nil, "", status.Errorf(codes.Aborted, "starting token %q is not one of this driver", token)
		}
		for len(items) > 0 && id(items[0]) <= after {
			items = items[1:]
		}
	}
	if maxEntries == 0 || len(items) <= int(maxEntries) {
		return items, "", nil
	}
	items = items[:maxEntries]
	return items, tokenPrefix + id(items[len(items)-1]), nil
}

// ListVolumes implements csi.ControllerServer.
func (d *Driver) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	volumes, next, err := page(d.store.Volumes.List(), func(v store.Volume) string { return v.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range volumes {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{Volume: csiVolume(v)})
	}
	return resp, nil
}

// ListSnapshots implements csi.ControllerServer.
func (d *Driver) ListSnapshots(_ context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	var wanted []store.Snapshot
	for _, s := range d.store.Snapshots.List() {
		if id := req.GetSnapshotId(); id != "" && id != s.ID {
			continue
		}
		if id := req.GetSourceVolumeId(); id != "" && id != s.SourceVolumeID {
			continue
		}
		wanted = append(wanted, s)
	}
	snapshots, next, err := page(wanted, func(s store.Snapshot) string { return s.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range snapshots {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: csiSnapshot(s)})
	}
	return resp, nil
}
