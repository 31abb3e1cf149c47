package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
)

// syncTimeout bounds how long /readyz waits for the caches; the kubelet asks again.
const syncTimeout = 500 * time.Millisecond

// synced is the check behind /readyz: this process has seen the objects that it watches, so that it leads, or could take
// over at once.
func synced(c cache.Informers) healthz.Checker {
	return func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), syncTimeout)
		defer cancel()
		if !c.WaitForCacheSync(ctx) {
			return errors.New("the caches are not filled yet: is the API server reachable, and are the CustomResourceDefinitions of snapshots, SnapshotMetadataServices and ChangedBlockRanges installed?")
		}
		return nil
	}
}
