package cli

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
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
		{"apply --list /nowhere --source a --target b --workers 1000", "--workers is 1000: it is from 1 to 256"},
		{"apply --list /nowhere --source a --target b --workers 0", "--workers is 0"},
		{"apply --list /nowhere --source a --target b --workers -1", "--workers is -1"},
		{"apply --list= --source a --target b", "--list is empty"},
		{"apply --list /nowhere --source= --target b", "--source is empty"},
		{"apply --list /nowhere --source a --target=", "--target is empty"},
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

// TestModeIsAskedForFirst: of a list of the upstream lister that needs a --mode, and of the others of the same command, no more is read
// than tells whose list it is.
func TestModeIsAskedForFirst(t *testing.T) {
	temporary(t)
	const head = `[{"block_metadata_type":1,"volume_capacity_bytes":1048576,"block_metadata":[`
	foreign := file(t, "lister.json", []byte(head)) // whoever reads on finds that it is cut
	damaged := file(t, "damaged.cbl", nil)
	for _, line := range []string{
		"cat F", "cat F -o cbl --limit 1", "slice F --workers 2 --worker 0", "slice F --workers 2 --dir x -o cbl", "union D F", "diff F D -o cbl", "cat -", "union D -", "diff F -",
	} {
		args := strings.Fields(line)
		for i := range args {
			switch args[i] {
			case "F":
				args[i] = foreign
			case "D":
				args[i] = damaged
			}
		}
		for stdin, in := range map[string]io.Reader{
			"that goes on": io.MultiReader(strings.NewReader(head[:64]), unread{t}), "that is short": strings.NewReader("[{"),
		} {
			var out, errs bytes.Buffer
			code := Execute(t.Context(), Streams{In: in, Out: &out, Err: &errs}, "test", args)
			if code != exitUsage || out.Len() > 0 || !strings.Contains(errs.String(), "add --mode Delta or --mode Allocated") {
				t.Errorf("%s, with standard input %s: exit code %d, %s%s", line, stdin, code, out.String(), errs.String())
			}
		}
	}
	// What was read of standard input to find that out is not lost.
	if r := cbr(t, head+"]}]", "cat", "-", "-o", "json", "--mode", "Delta"); r.code != 0 {
		t.Errorf("with a mode: %+v", r)
	}
	list := encode(t, blocklist.JSON, increment("mon", "tue"), blocks(0, 1))
	if r := cbr(t, string(list), "cat", "-", "-o", "json"); r.code != 0 || header(t, r.out).TargetSnapshotHandle != "h-tue" {
		t.Errorf("a list of ours on standard input: %+v", r)
	}
	broken := errors.New("broken")
	var errs bytes.Buffer
	if code := Execute(t.Context(), Streams{In: iotest.ErrReader(broken), Out: io.Discard, Err: &errs}, "test", []string{"cat", "-"}); code != exitFailed || !strings.Contains(errs.String(), "broken") {
		t.Errorf("standard input that cannot be read: exit code %d, %s", code, errs.String())
	}
}

// unread is an input that must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("it is read on")
	return 0, io.EOF
}
