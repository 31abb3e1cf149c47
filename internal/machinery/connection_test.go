package machinery

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
)

const someRange = `{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":"r","namespace":"ns","uid":"u",
  "resourceVersion":"7","annotations":{"a":"b"},"labels":{"c":"d"},"managedFields":[{"manager":"m","fieldsV1":{"f:spec":{}}}]}}`

const slimRange = `{"kind":"ChangedBlockRange","apiVersion":"cbt.storage.k8s.io/v1alpha1","metadata":{"namespace":"ns","name":"r","resourceVersion":"7"}}`

// TestConnection asks a server that lies behind a path, as some do, through the default transport, as the library does.
func TestConnection(t *testing.T) {
	tests := []struct {
		name, method, path string
		status             int
		answer, want       string
		accept             string
	}{
		{
			name: "list", path: rangesPath + "?limit=500", status: http.StatusOK,
			answer: `{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadataList","metadata":{"resourceVersion":"9","continue":"more"},"items":[` + someRange + `]}`,
			want:   `{"kind":"ChangedBlockRangeList","apiVersion":"cbt.storage.k8s.io/v1alpha1","metadata":{"resourceVersion":"9","continue":"more"},"items":[` + slimRange + `]}`,
			accept: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
		},
		{
			name: "watch", path: rangesPath + "?watch=true", status: http.StatusOK,
			answer: `{"type":"ADDED","object":` + someRange + "}\n" + `{"type":"DELETED","object":` + someRange + "}\n" +
				`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8","annotations":{"k8s.io/initial-events-end":"true"}}}}` +
				`{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}`,
			want: `{"type":"ADDED","object":` + slimRange + `}{"type":"DELETED","object":` + slimRange + `}` +
				`{"type":"BOOKMARK","object":{"kind":"ChangedBlockRange","apiVersion":"cbt.storage.k8s.io/v1alpha1","metadata":{"resourceVersion":"8","annotations":{"k8s.io/initial-events-end":"true"}}}}` +
				`{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}`,
			accept: "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
		},
		{name: "refused", path: rangesPath, status: http.StatusForbidden, answer: someRange, want: someRange, accept: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"},
		{name: "something else", path: "/api/v1/pods", status: http.StatusOK, answer: someRange, want: someRange},
		{name: "a write", method: http.MethodPost, path: rangesPath, status: http.StatusOK, answer: someRange, want: someRange},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if got := r.URL.RequestURI(); got != "/k8s/cluster"+test.path {
					t.Errorf("the server was asked for %s, want /k8s/cluster%s", got, test.path)
				}
				if got := r.Header.Get("Authorization"); got != "Bearer secret" {
					t.Errorf("Authorization: %q, want the manager's", got)
				}
				if got := r.Header.Get("Accept"); got != test.accept {
					t.Errorf("Accept: %q, want %q", got, test.accept)
				}
				rw.WriteHeader(test.status)
				write(t, rw, test.answer)
			}))
			defer server.Close()
			c, err := openConnection(&rest.Config{Host: server.URL + "/k8s/cluster/", BearerToken: "secret"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			req, err := http.NewRequestWithContext(t.Context(), test.method, c.url()+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := resp.Body.Close(); err != nil {
					t.Error(err)
				}
			}()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, string(body)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// TestConnectionNotesReceiver sends the library's patch of a volume, and others that are none of it.
func TestConnectionNotesReceiver(t *testing.T) {
	const handover = `{"metadata":{"name":"pv","annotations":{"cbt.storage.k8s.io/populated-from":"ns/r"}},"spec":{"claimRef":{"namespace":"ns","name":"c","uid":"u"}}}`
	for name, test := range map[string]struct{ method, path, body, want string }{
		"a volume is handed over": {http.MethodPatch, volumesPath + "pv", handover,
			`{"metadata":{"annotations":{"cbt.storage.k8s.io/populated-for":"u","cbt.storage.k8s.io/populated-from":"ns/r"},"name":"pv"},"spec":{"claimRef":{"name":"c","namespace":"ns","uid":"u"}}}`},
		"a volume is changed": {http.MethodPatch, volumesPath + "pv", `{"spec":{}}`, `{"spec":{}}`},
		"something else":      {http.MethodPatch, "/api/v1/namespaces/ns/persistentvolumeclaims/c", handover, handover},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || int64(len(body)) != r.ContentLength {
					t.Errorf("read %d bytes of %d: %v", len(body), r.ContentLength, err)
				}
				got = string(body)
			}))
			defer server.Close()
			c, err := openConnection(&rest.Config{Host: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			req, err := http.NewRequestWithContext(t.Context(), test.method, c.url()+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("the server was sent (-want +got):\n%s", diff)
			}
		})
	}
}

// TestConnectionCut has an answer end in the middle, which must not look like a list that is complete.
func TestConnectionCut(t *testing.T) {
	for _, query := range []string{"", "?watch=1"} {
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			write(t, rw, `{"type":"ADDED","metadata":{},"items":[`+someRange+`,`)
		}))
		c, err := openConnection(&rest.Config{Host: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url()+rangesPath+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%q: no error, but %q", query, body)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		c.close()
		server.Close()
		if _, err := toConnection(req); err == nil || !strings.Contains(err.Error(), "has ended") { //nolint:bodyclose // there is no response
			t.Errorf("after the end: %v", err)
		}
	}
}

func write(t *testing.T, rw http.ResponseWriter, answer string) {
	t.Helper()
	if _, err := io.WriteString(rw, answer); err != nil {
		t.Error(err)
	}
}
