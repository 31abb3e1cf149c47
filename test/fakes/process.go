package fakes

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbt-populator/cbt-populator/test/compiled"
)

// StartReplayProcess builds and starts a Replay in a process of its own, for the length of a benchmark, and returns its
// address and the PEM of its certificate authority.
func StartReplayProcess(tb testing.TB, entries, perMessage int) (address string, ca []byte) {
	tb.Helper()
	binary := filepath.Join(tb.TempDir(), "replay")
	if err := compiled.Program(binary, "github.com/cbt-populator/cbt-populator/test/fakes/replay"); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(binary, fmt.Sprintf("-entries=%d", entries), fmt.Sprintf("-per-message=%d", perMessage))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = stdin.Close() // which ends it
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	address, encoded, _ := strings.Cut(strings.TrimSpace(line), " ")
	if ca, err = base64.StdEncoding.DecodeString(encoded); err != nil {
		tb.Fatal(err)
	}
	return address, ca
}
