package server

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// DriverName is what the driver behind a sidecar calls itself.
const DriverName = "bench-csi.cbt-populator.test"

// sidecarService is what clients of the sidecar see.
type sidecarService struct {
	api.UnimplementedSnapshotMetadataServer
	*lister
}

// GetMetadataAllocated implements api.SnapshotMetadataServer.
func (s sidecarService) GetMetadataAllocated(r *api.GetMetadataAllocatedRequest, stream api.SnapshotMetadata_GetMetadataAllocatedServer) error {
	return s.send(stream, r.GetStartingOffset(), r.GetMaxResults())
}

// GetMetadataDelta implements api.SnapshotMetadataServer.
func (s sidecarService) GetMetadataDelta(r *api.GetMetadataDeltaRequest, stream api.SnapshotMetadata_GetMetadataDeltaServer) error {
	return s.send(stream, r.GetStartingOffset(), r.GetMaxResults())
}

// driverService is what the sidecar sees.
type driverService struct {
	csi.UnimplementedSnapshotMetadataServer
	*lister
}

// GetMetadataAllocated implements csi.SnapshotMetadataServer.
func (s driverService) GetMetadataAllocated(r *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	return s.send(stream, r.GetStartingOffset(), r.GetMaxResults())
}

// GetMetadataDelta implements csi.SnapshotMetadataServer.
func (s driverService) GetMetadataDelta(r *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	return s.send(stream, r.GetStartingOffset(), r.GetMaxResults())
}

// identity is what a sidecar asks a driver for before anything else.
type identity struct {
	csi.UnimplementedIdentityServer
}

// GetPluginInfo implements csi.IdentityServer.
func (identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: DriverName, VendorVersion: "1"}, nil
}

// Probe implements csi.IdentityServer.
func (identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// GetPluginCapabilities implements csi.IdentityServer.
func (identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{
			Type: csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
		}},
	}}}, nil
}
