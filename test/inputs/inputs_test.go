package inputs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// module is one with this package in it, a program, and a test that runs the program and a script.
var module = map[string]string{
	"go.mod":         "module example.test/m\n\ngo 1.26\n",
	"part/part.go":   "package part\n\nconst Word = \"one\"\n",
	"program/run.go": "package main\n\nimport \"example.test/m/part\"\n\nfunc main() { println(part.Word) }\n",
	"scripts/a.sh":   "echo one\n",
	"ran/ran_test.go": `package ran

import (
	"os/exec"
	"testing"

	"example.test/m/inputs"
)

func TestRan(t *testing.T) {
	if err := inputs.Files("../scripts"); err != nil {
		t.Fatal(err)
	}
	if err := inputs.Program("../program"); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"sh", "../scripts/a.sh"}, {"go", "run", "../program"}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil || string(out) != "one\n" {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}
`,
}

// TestChangesAreSeen: an earlier result is shown while nothing has changed, and not after what processes of the test read has.
func TestChangesAreSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// Go keeps no result of a test that has opened a new file, whose time may not tell it from a newer one.
	old := time.Now().Add(-time.Hour)
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for ; strings.HasPrefix(path, dir); path = filepath.Dir(path) {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	this, err := os.ReadFile("inputs.go")
	if err != nil {
		t.Fatal(err)
	}
	write("inputs/inputs.go", string(this))
	for name, text := range module {
		write(name, text)
	}
	want := func(when, result string, pass bool) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "./ran")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); (err == nil) != pass || !strings.Contains(string(out), result) {
			t.Errorf("%s: %v, want %q:\n%s", when, err, result, out)
		}
	}
	want("the first time", "ok", true)
	want("the second time", "(cached)", true)
	for _, name := range []string{"part/part.go", "scripts/a.sh"} {
		write(name, strings.Replace(module[name], "one", "another", 1))
		want("after a change of "+name, "another", false)
		write(name, module[name])
	}
}
