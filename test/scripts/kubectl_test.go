// Package scripts runs the scripts, pods and loops of the examples in plain shells over folders, with a kubectl whose answers and
// failures are the test's: a cluster does not fail when a test wants it to. On the real cluster they are run by test/e2e.
package scripts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/test/inputs"
)

const root = "../.."

// sources are what the shells read.
var sources = sync.OnceValue(func() error { return inputs.Files(root+"/examples", root+"/hack") })

// block matches a fenced block of commands.
var block = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")

// shellDeadline bounds what one shell may take.
const shellDeadline = time.Minute

// fakeKubectl says what it was called with, and does what it is told.
const fakeKubectl = `#!/bin/sh
cd "${0%/*}"
printf '%s\n' "$@" > args
: > input
case " $* " in *' -f - '*) cat > input ;; esac
echo > calls
read -r status < answers
[ ! -s out ] || cat out
[ ! -s err ] || cat err >&2
exit "$status"
`

// call is what kubectl was called with, and what it was given to read.
type call struct{ args, input string }

// errKilled as an answer kills the shell that calls kubectl, and everything that this has started.
var errKilled = errors.New("killed")

// kubectl is a program of that name which asks the test for its answers.
type kubectl struct {
	dir     string
	calls   chan struct{}
	answers *os.File
}

func newKubectl(t *testing.T) *kubectl {
	t.Helper()
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	k := &kubectl{dir: t.TempDir(), calls: make(chan struct{})}
	if err := os.WriteFile(filepath.Join(k.dir, "kubectl"), []byte(fakeKubectl), 0o755); err != nil {
		t.Fatal(err)
	}
	// Open for reading and writing, so that no side waits for the other one in open.
	pipe := func(name string) *os.File {
		path := filepath.Join(k.dir, name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	calls := pipe("calls")
	k.answers = pipe("answers")
	go func() {
		for lines := bufio.NewScanner(calls); lines.Scan(); {
			k.calls <- struct{}{}
		}
	}()
	return k
}

// shell runs a shell with an own environment added. Its calls of kubectl, one after the other, are answered by answer: what is
// printed, or why it fails. It returns all that was printed.
func (k *kubectl) shell(t *testing.T, dir string, env, command []string, answer func(call) (string, error)) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), shellDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var printed bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &printed, &printed
	cmd.Env = append(append(os.Environ(), "PATH="+k.dir+string(os.PathListSeparator)+os.Getenv("PATH")), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case <-k.calls:
			out, err := answer(call{args: k.read(t, "args"), input: k.read(t, "input")})
			if errors.Is(err, errKilled) {
				if err := kill(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			k.answer(t, out, err)
		case err := <-ended:
			return printed.String(), err
		}
	}
}

// read returns a file that kubectl has left, its lines joined by spaces if they are arguments.
func (k *kubectl) read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(k.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if name == "args" {
		return strings.Join(strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n"), " ")
	}
	return string(raw)
}

func (k *kubectl) answer(t *testing.T, out string, failure error) {
	t.Helper()
	status, message := 0, ""
	if failure != nil {
		status, message = 1, failure.Error()+"\n"
	}
	for name, text := range map[string]string{"out": out, "err": message} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(k.answers, fmt.Sprintln(status)); err != nil {
		t.Fatal(err)
	}
}

// textOf returns a file of the examples.
func textOf(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "examples", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// replaced returns a text with other places: pairs of what it names and what the test has instead. A place that it no longer names
// is an error, because the test would then work on something else.
func replaced(t *testing.T, text string, places ...string) string {
	t.Helper()
	for i := 0; i < len(places); i += 2 {
		if !strings.Contains(text, places[i]) {
			t.Fatalf("this no longer names %s:\n%s", places[i], text)
		}
	}
	return strings.NewReplacer(places...).Replace(text)
}
