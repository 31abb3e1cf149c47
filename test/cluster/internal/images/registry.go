// Package images holds the cluster's container images: a registry inside the
// supervisor, and the images that everything else is built on.
package images

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Serve answers image pushes and pulls on the listeners, with the layers in
// dir. The registry ends with the process.
func Serve(dir string, listeners ...net.Listener) {
	server := &http.Server{
		Handler: registry.New(
			registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
			registry.Logger(log.New(io.Discard, "", 0)),
		),
		ReadHeaderTimeout: 10 * time.Second,
	}
	for _, l := range listeners {
		go func() {
			if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				log.Printf("registry: %v", err)
			}
		}()
	}
}
