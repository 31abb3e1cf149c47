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

// TestUsage: what is wrong with a command line has an exit code of its own, and is said before anything is read.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		line, says string
	}{
		{"nonsense", "nonsense"},
		{"cat", "arg"},
		{"cat a b", "arg"},
		{"cat /nowhere --unheard-of", "unheard-of"},
		{"cat /nowhere -o xml", "ndjson"},
		{"cat /nowhere --offset -1", "--offset"},
		{"cat /nowhere --limit -2", "--limit"},
		{"cat /nowhere --limit many", "limit"},
		{"cat /nowhere --range 5", "START"},
		{"cat /nowhere --range 5-4", "empty"},
		{"cat /nowhere --range 5:0", "empty"},
		{"cat /nowhere --range -", "START"},
		{"cat /nowhere --range a-b", `"a" is not a size`},
		{"cat /nowhere --range 0.5-2", "whole"},
		{"cat /nowhere --mode Both", "--mode"},
		{"cat /nowhere --capacity big", "--capacity"},
		{"verify /nowhere -o xml", "yaml"},
		{"info", "arg"},
		{"diff a", "arg"},
		{"union a", "arg"},
		{"union - -", "standard input"},
		{"slice /nowhere", "worker"},
		{"slice /nowhere --worker 0", "--workers"},
		{"slice /nowhere --workers 2 --worker 2", "--worker is 2"},
		{"slice /nowhere --workers 2 --worker -1", "--worker is -1"},
		{"slice /nowhere --workers 1000000 --worker 1", "--workers"},
		{"slice /nowhere --workers 2 --worker 1 --dir x", "worker"},
		{"slice /nowhere --workers 2 --worker 1 --align 1000", "--align"},
		{"slice /nowhere --workers 2 --worker 1 --align 0", "--align"},
		{"slice /nowhere --workers 2 --dir x --out y", "out"},
		{"preview --to tuesday -o lister --limit 1", "--output lister is for whole lists"},
		{"preview --to tuesday -o lister --offset 1", "--output lister is for whole lists"},
		{"preview --to tuesday -o lister --offset-bytes 1Gi", "--output lister is for whole lists"},
		{"preview --to tuesday -o cbl --limit-bytes 1Gi", "--output cbl is for whole lists"},
		{"map /nowhere -o map.gif", ".png"},
		{"map /nowhere -o map", ".png"},
		{"map /nowhere --layout spiral", "--layout"},
		{"map /nowhere --color red", "--color"},
		{"map /nowhere --width -1", "--width"},
		{"map /nowhere --height 100000", "--height"},
	} {
		r := cbr(t, "", strings.Fields(c.line)...)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.err, c.says) || !strings.Contains(r.err, "--help") {
			t.Errorf("%s: %+v, want %q", c.line, r, c.says)
		}
	}
	for _, line := range []string{"cat /nowhere", "verify /nowhere", "info /nowhere", "map /nowhere", "cat " + t.TempDir(), "cat /dev/null"} {
		if r := cbr(t, "", strings.Fields(line)...); r.code != exitFailed || r.out != "" || strings.Contains(r.err, "--help") {
			t.Errorf("%s: %+v", line, r)
		}
	}
}
