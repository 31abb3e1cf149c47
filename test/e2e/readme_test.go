//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme does what the README tells a user who has a cluster: applies its manifest, waits as it says, and reads the list
// from a shell with its commands.
func TestReadme(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("monday", "tuesday")
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	ask := section(t, string(text), "Ask for a list")
	manifest := filepath.Join(t.TempDir(), "manifest.yaml")
	// The local cluster has no default StorageClass, which the README's claim asks for by naming none.
	modes := "  accessModes: [ReadWriteOnce]\n"
	with := strings.Replace(fenced(t, ask, "yaml"), modes, modes+"  storageClassName: "+storageClass+"\n", 1)
	if !strings.Contains(with, storageClass) {
		t.Fatalf("the README's claim has changed:\n%s", with)
	}
	if err := os.WriteFile(manifest, []byte(with), 0o644); err != nil {
		t.Fatal(err)
	}
	w.shell("kubectl apply -f " + manifest)
	if out := w.shell(fenced(t, ask, "sh")); !strings.Contains(out, "monday-to-tuesday") || !strings.Contains(out, "12 KiB") {
		t.Errorf("the README's commands print\n%s", out)
	}

	w.awaitBound("changes")
	w.tools("reader", "changes")
	mounted := t.TempDir()
	for _, name := range []string{"changed-blocks.json", "changed-blocks.json.sha256"} {
		if err := os.WriteFile(filepath.Join(mounted, name), w.exec("reader", "cat /mnt/changes/"+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := fenced(t, section(t, string(text), "Read a list from a shell"), "sh")
	if !strings.Contains(read, "/mnt/changes") {
		t.Fatalf("the README reads from somewhere else:\n%s", read)
	}
	out := w.shell(strings.ReplaceAll(read, "/mnt/changes", mounted))
	if want := "changed-blocks.json: OK\n8192\t4096\n16384\t4096\n36864\t4096\n"; out != want {
		t.Errorf("the README's commands print\n%s\nwant\n%s", out, want)
	}
}

// section returns what follows a heading, up to the next one.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, after, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("the page has no section %q", heading)
	}
	before, _, _ := strings.Cut(after, "\n## ")
	return before
}

// fenced returns the first block of a language.
func fenced(t *testing.T, text, language string) string {
	t.Helper()
	m := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```").FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s block in\n%s", language, text)
	}
	return m[1]
}
