package cli

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cbt-populator/cbt-populator/internal/convert"
)

// TestClosedPipe: as with any program before head, nothing is said.
func TestClosedPipe(t *testing.T) {
	path := listFile(t, increment("mon", "tue"), 0, 1)
	for _, name := range convert.Formats() {
		var errs bytes.Buffer
		s := Streams{In: strings.NewReader(""), Out: closedPipe{}, Err: &errs}
		if code := Execute(t.Context(), s, "test", []string{"cat", path, "-o", name}); code != exitPipe || errs.Len() > 0 {
			t.Errorf("%s: exit code %d, %s", name, code, errs.String())
		}
	}
}

type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

type brokenConnection struct{}

func (brokenConnection) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
}

// TestBrokenConnection: a connection to the API server that breaks is a failure, of which something is said, although its error is
// that of a closed pipe.
func TestBrokenConnection(t *testing.T) {
	transport := http.DefaultTransport
	http.DefaultTransport = brokenConnection{} // what the client uses for a server without TLS
	defer func() { http.DefaultTransport = transport }()
	kubeconfig := file(t, "kubeconfig", []byte(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`))
	for _, args := range [][]string{{"create", "tuesday", "--to", "tuesday"}, {"list"}, {"describe", "tuesday"}} {
		r := cbr(t, "", append(args, "--kubeconfig", kubeconfig)...)
		if r.code != exitFailed || !strings.Contains(r.err, "broken pipe") {
			t.Errorf("%s: exit code %d, %q", args[0], r.code, r.err)
		}
	}
}
