// Package registration makes the driver known to the kubelet. The kubelet watches a folder for sockets and asks each who
// it is (k8s.io/kubelet/pkg/apis/pluginregistration/v1).
package registration

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// csiVersion is the CSI version that the kubelet is told; it accepts any 1.x.
const csiVersion = "1.0.0"

// Server answers the kubelet.
type Server struct {
	registerapi.UnimplementedRegistrationServer

	driver, endpoint string
	log              *slog.Logger
	once             sync.Once
	refused          chan error
}

// NewServer returns a server that registers the driver, which listens on the socket endpoint, an absolute path as the
// kubelet sees it.
func NewServer(driver, endpoint string, log *slog.Logger) *Server {
	return &Server{driver: driver, endpoint: endpoint, log: log, refused: make(chan error, 1)}
}

// SocketPath returns where the kubelet finds a driver in its plugin registration folder.
func SocketPath(dir, driver string) string { return filepath.Join(dir, driver+"-reg.sock") }

// Refused delivers an error if the kubelet refuses the driver. It will not ask again until the socket is made anew, so
// the process should end.
func (s *Server) Refused() <-chan error { return s.refused }

// GetInfo implements registerapi.RegistrationServer.
func (s *Server) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:              registerapi.CSIPlugin,
		Name:              s.driver,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus implements registerapi.RegistrationServer.
func (s *Server) NotifyRegistrationStatus(_ context.Context, st *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if !st.GetPluginRegistered() {
		s.once.Do(func() {
			s.refused <- fmt.Errorf("the kubelet refused to register %s: %s", s.driver, st.GetError())
		})
		return &registerapi.RegistrationStatusResponse{}, nil
	}
	s.log.Info("registered with the kubelet", "driver", s.driver)
	return &registerapi.RegistrationStatusResponse{}, nil
}
