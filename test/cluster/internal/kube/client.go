// Package kube is the little of a Kubernetes client that starting a cluster
// takes: reading objects and applying manifests.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/pki"
)

// Client talks to the cluster's API server.
type Client struct {
	http *http.Client
}

// Dialer opens a connection to an address.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// New makes a client with a client certificate; ca is who signed the server's.
func New(ca []byte, client pki.Pair, dial Dialer) (*Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("kubernetes client: the certificate authority is not PEM")
	}
	cert, err := tls.X509KeyPair(client.Cert, client.Key)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &Client{http: &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{
			DialContext:       dial,
			TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
			ForceAttemptHTTP2: true,
		},
	}}, nil
}

// StatusError is an answer of the API server that is not a success.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("API server: %d %s", e.Code, e.Message) }

// Get reads the object at path into out; nil discards it.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	data, err := c.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// Apply creates or updates the object by server-side apply.
func (c *Client) Apply(ctx context.Context, doc []byte) error {
	path, err := pathOf(doc)
	if err != nil {
		return err
	}
	query := "?fieldManager=cbt-cluster&force=true"
	if _, err := c.do(ctx, http.MethodPatch, path+query, "application/apply-patch+yaml", doc); err != nil {
		return fmt.Errorf("apply %s: %w", path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, layout.APIServer+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		var status struct{ Message string }
		if json.Unmarshal(data, &status) != nil || status.Message == "" {
			status.Message = string(data[:min(len(data), 300)])
		}
		return nil, &StatusError{Code: resp.StatusCode, Message: status.Message}
	}
	return data, nil
}

// collections maps the kinds of the manifests, all cluster-scoped, to their
// collections: looking them up costs a second at every start.
var collections = map[string]string{
	"CustomResourceDefinition": "customresourcedefinitions",
	"ClusterRole":              "clusterroles",
	"ClusterRoleBinding":       "clusterrolebindings",
	"CSIDriver":                "csidrivers",
	"StorageClass":             "storageclasses",
	"VolumeSnapshotClass":      "volumesnapshotclasses",
	"SnapshotMetadataService":  "snapshotmetadataservices",
}

func pathOf(doc []byte) (string, error) {
	var o struct {
		APIVersion string
		Kind       string
		Metadata   struct{ Name, Namespace string }
	}
	if err := json.Unmarshal(doc, &o); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	collection, known := collections[o.Kind]
	if !known || o.Metadata.Namespace != "" || o.Metadata.Name == "" {
		return "", fmt.Errorf("manifest: kind %q named %q in namespace %q is not one of the cluster-scoped kinds that start with the cluster", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
	}
	return "/apis/" + o.APIVersion + "/" + collection + "/" + o.Metadata.Name, nil
}
