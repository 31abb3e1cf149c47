package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
)

// TestReadyz: a controller is ready when it has seen what it watches.
func TestReadyz(t *testing.T) {
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil)
	for _, filled := range []bool{false, true} {
		if err := synced(&informertest.FakeInformers{Synced: &filled})(request); (err == nil) != filled {
			t.Errorf("the caches are filled: %v; ready: %v", filled, err)
		}
	}
}
