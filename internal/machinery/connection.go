package machinery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// connectionScheme is the URL scheme of connections. The library makes its client from a server's URL; the default transport of
// net/http takes a URL of this scheme to the connection that its host names (http.Transport.RegisterProtocol).
const connectionScheme = "cbt-populator"

// connections are the open ones, by host. The protocol cannot be registered twice in a process, nor taken back.
var connections = struct {
	once   sync.Once
	err    error
	mu     sync.Mutex
	byHost map[string]*connection
}{byHost: map[string]*connection{}}

// connection is how the library's instances reach the API server: with the manager's credentials, and without the parts of
// ChangedBlockRanges that the library does not look at. Each instance keeps every ChangedBlockRange of the cluster as the
// server sends it, some 10 KiB of maps, and only asks whether one of a name exists. What hands a volume over says also for which
// claim it was filled, which costs no request of its own so. It is safe for concurrent use.
type connection struct {
	host   string
	server *url.URL
	next   http.RoundTripper
}

// openConnection opens a connection to the server of config.
func openConnection(config *rest.Config) (*connection, error) {
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("find the address of the API server: %w", err)
	}
	next, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a transport to the API server: %w", err)
	}
	connections.once.Do(func() {
		transport, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			connections.err = fmt.Errorf("the default HTTP transport is a %T, not net/http's own", http.DefaultTransport)
			return
		}
		transport.RegisterProtocol(connectionScheme, roundTripper(toConnection))
	})
	if connections.err != nil {
		return nil, connections.err
	}
	c := &connection{host: uuid.NewString(), server: server, next: next}
	connections.mu.Lock()
	defer connections.mu.Unlock()
	connections.byHost[c.host] = c
	return c, nil
}

// url is the server's address for a client that shall use the connection.
func (c *connection) url() string { return connectionScheme + "://" + c.host }

func (c *connection) close() {
	connections.mu.Lock()
	defer connections.mu.Unlock()
	delete(connections.byHost, c.host)
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }

func toConnection(req *http.Request) (*http.Response, error) {
	connections.mu.Lock()
	c := connections.byHost[req.URL.Host]
	connections.mu.Unlock()
	if c == nil {
		return nil, errors.New("the populator machinery has ended")
	}
	return c.RoundTrip(req)
}

// rangesPath is where ChangedBlockRanges of all namespaces are listed and watched.
var rangesPath = "/apis/" + v1alpha1.GroupVersion.String() + "/" + v1alpha1.Resource

// volumesPath is where volumes are.
const volumesPath = "/api/v1/persistentvolumes/"

// RoundTrip implements http.RoundTripper.
func (c *connection) RoundTrip(req *http.Request) (*http.Response, error) {
	ranges := req.Method == http.MethodGet && req.URL.Path == rangesPath
	handover := req.Method == http.MethodPatch && strings.HasPrefix(req.URL.Path, volumesPath) && req.Body != nil
	req = req.Clone(req.Context())
	if handover {
		if err := noteReceiver(req); err != nil {
			return nil, fmt.Errorf("note for which claim a volume was filled: %w", err)
		}
	}
	req.Host = ""
	target := *c.server
	target.Path = strings.TrimSuffix(target.Path, "/") + req.URL.Path
	target.RawQuery = req.URL.RawQuery
	req.URL = &target
	if ranges {
		// The server leaves out spec and status by itself, in a list and in a watch (Kubernetes API concepts, "Metadata-only fetches").
		kind := "PartialObjectMetadataList"
		if isWatch(&target) {
			kind = "PartialObjectMetadata"
		}
		req.Header.Set("Accept", "application/json;as="+kind+";g=meta.k8s.io;v=v1")
	}
	resp, err := c.next.RoundTrip(req)
	if err != nil || !ranges || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	resp.Header.Del("Content-Length")
	resp.ContentLength = -1
	events := json.NewDecoder(resp.Body)
	slim := func() (any, error) { return slimList(events) }
	if isWatch(&target) {
		slim = func() (any, error) { return slimEvent(events) }
	}
	resp.Body = &slimBody{Closer: resp.Body, next: slim}
	return resp, nil
}

// noteReceiver has a patch that hands a volume over annotate it with the UID of the claim that it is for. The library notes only the
// name of the ChangedBlockRange, which a volume that is used again may have from another night.
func noteReceiver(req *http.Request) error {
	data, err := io.ReadAll(req.Body)
	if err = errors.Join(err, req.Body.Close()); err != nil {
		return err
	}
	var patch map[string]any
	if err := json.Unmarshal(data, &patch); err != nil {
		return err
	}
	claim, _, err := unstructured.NestedString(patch, "spec", "claimRef", "uid")
	if err != nil {
		return err
	}
	if claim != "" {
		if err := unstructured.SetNestedField(patch, claim, "metadata", "annotations", v1alpha1.AnnotationPopulatedFor); err != nil {
			return err
		}
		if data, err = json.Marshal(patch); err != nil {
			return err
		}
	}
	req.ContentLength = int64(len(data))
	req.Body = io.NopCloser(bytes.NewReader(data))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	return nil
}

func isWatch(u *url.URL) bool {
	asked := u.Query().Get("watch")
	return asked == "true" || asked == "1"
}

// slimBody is the body of a response in which every JSON value is what next returns.
type slimBody struct {
	io.Closer
	next func() (any, error)
	rest []byte
}

// Read implements io.Reader. A value is passed on as soon as it is there.
func (b *slimBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		value, err := b.next()
		if err != nil {
			return 0, err
		}
		if b.rest, err = json.Marshal(value); err != nil {
			return 0, fmt.Errorf("encode what is left of an answer: %w", err)
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// slimObject is what the library needs to know of a ChangedBlockRange.
type slimObject struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        slimMeta `json:"metadata"`
}

type slimMeta struct {
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name,omitempty"`
	ResourceVersion string `json:"resourceVersion"`
	// Annotations are those of a bookmark: one of them ends the list with which a watch can begin.
	Annotations map[string]string `json:"annotations,omitempty"`
}

var rangeType = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.Kind}

// slimList reads a list.
func slimList(from *json.Decoder) (any, error) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta `json:"metadata"`
		Items           []slimObject    `json:"items"`
	}
	if err := from.Decode(&list); err != nil {
		return nil, err
	}
	list.TypeMeta = metav1.TypeMeta{APIVersion: rangeType.APIVersion, Kind: rangeType.Kind + "List"}
	for i := range list.Items {
		list.Items[i].TypeMeta, list.Items[i].Metadata.Annotations = rangeType, nil
	}
	return list, nil
}

// slimEvent reads an event of a watch.
func slimEvent(from *json.Decoder) (any, error) {
	var event struct {
		Type   watch.EventType `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if err := from.Decode(&event); err != nil {
		return nil, err
	}
	if event.Type == watch.Error {
		return event, nil
	}
	var object slimObject
	if err := json.Unmarshal(event.Object, &object); err != nil {
		return nil, fmt.Errorf("read an event of a watch: %w", err)
	}
	object.TypeMeta = rangeType
	if event.Type != watch.Bookmark {
		object.Metadata.Annotations = nil
	}
	var err error
	if event.Object, err = json.Marshal(object); err != nil {
		return nil, fmt.Errorf("encode what is left of an event: %w", err)
	}
	return event, nil
}
