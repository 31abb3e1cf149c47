// Package docs checks what the pages say against what is there: links lead somewhere, targets of make exist, commands of
// kubectl cbr and of the populator parse with their flags, manifests are known to the scheme. What the pages tell a user to type is
// executed: on the real cluster by test/e2e, and what works on lists and devices by test/tools, which demands one of both.
package docs

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/cli"
	"github.com/cbt-populator/cbt-populator/test/compiled"
)

const root = "../.."

// pages returns the text of every Markdown page by its path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && (name == "bin" || name == "dist" || name == ".git") {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(name) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		found[relative] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 15 {
		t.Fatalf("only %d pages", len(found))
	}
	return found
}

// block matches a fenced block with its language.
var block = regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```")

// commands returns the command lines of a page's shell blocks; a line that ends in a backslash is joined with the next one.
func commands(page string) []string {
	var lines []string
	for _, b := range block.FindAllStringSubmatch(page, -1) {
		text := b[2]
		switch b[1] {
		case "sh":
		case "console":
			var typed []string
			for line := range strings.SplitSeq(text, "\n") {
				if command, ok := strings.CutPrefix(line, "$ "); ok {
					typed = append(typed, command)
				}
			}
			text = strings.Join(typed, "\n")
		default:
			continue
		}
		lines = append(lines, strings.Split(strings.ReplaceAll(text, "\\\n", " "), "\n")...)
	}
	return lines
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// anchor is how GitHub names a heading's anchor.
func anchor(heading string) string {
	heading = strings.ToLower(strings.TrimSpace(heading))
	heading = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(heading, "")
	return strings.ReplaceAll(heading, " ", "-")
}

// TestPaths looks up the files and folders that pages name without a link, from the root or beside the page.
func TestPaths(t *testing.T) {
	named := regexp.MustCompile("`((?:api|charts|cmd|config|docs|examples|hack|internal|test)/[A-Za-z0-9_./-]+)`")
	for path, text := range pages(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			_, beside := os.Stat(filepath.Join(root, filepath.Dir(path), m[1]))
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil && beside != nil {
				t.Errorf("%s names %s, which is not there", path, m[1])
			}
		}
	}
}

func TestLinks(t *testing.T) {
	all := pages(t)
	headings := regexp.MustCompile(`(?m)^#+ (.+)$`)
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file, fragment, _ := strings.Cut(target, "#")
			to := filepath.Join(filepath.Dir(path), file)
			if file == "" {
				to = path
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s links to %s, which is not there", path, target)
				continue
			}
			if fragment == "" || filepath.Ext(to) != ".md" {
				continue
			}
			known := false
			for _, h := range headings.FindAllStringSubmatch(all[to], -1) {
				known = known || anchor(h[1]) == fragment
			}
			if !known {
				t.Errorf("%s links to %s, but %s has no such heading", path, target, to)
			}
		}
	}
}

func TestMakeTargetsExist(t *testing.T) {
	makefile, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile("(?:^|[ `;(])make ([a-z][a-z0-9-]*)")
	checked := 0
	for path, text := range pages(t) {
		var code []string
		code = append(code, commands(text)...)
		for _, m := range regexp.MustCompile("`(make [^`]+)`").FindAllStringSubmatch(text, -1) {
			code = append(code, m[1])
		}
		for _, line := range code {
			for _, m := range word.FindAllStringSubmatch(line, -1) {
				checked++
				if !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
					t.Errorf("%s: there is no make target %s", path, m[1])
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d targets were checked", checked)
	}
}

var cbrCommand = regexp.MustCompile(`(?:^|[ (])kubectl cbr ([^|&;)>#]+)`)

// variable is one of the shell, whose value does not matter here.
var variable = regexp.MustCompile(`\$\w+`)

// TestPluginCommands parses every kubectl cbr line, without running it.
func TestPluginCommands(t *testing.T) {
	checked := 0
	for path, text := range pages(t) {
		for _, line := range commands(text) {
			for _, m := range cbrCommand.FindAllStringSubmatch(line, -1) {
				args := strings.Fields(m[1])
				if args[0] == "--version" || args[0] == "COMMAND" {
					continue
				}
				checked++
				command, rest, err := cli.NewCommand(cli.Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, "test").Find(args)
				if err != nil || !command.HasParent() {
					t.Errorf("%s: %s: no such command (%v)", path, line, err)
					continue
				}
				command.InitDefaultHelpFlag()
				for i, arg := range rest {
					rest[i] = variable.ReplaceAllString(strings.Trim(arg, `"'`), "1")
				}
				if err := command.ParseFlags(rest); err != nil {
					t.Errorf("%s: %s: %v", path, line, err)
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d commands were checked", checked)
	}
}

// TestPopulatorFlags looks up every flag of a populator line in the program's help.
func TestPopulatorFlags(t *testing.T) {
	populator := filepath.Join(t.TempDir(), "populator")
	if err := compiled.Program(populator, root+"/cmd/populator"); err != nil {
		t.Fatal(err)
	}
	help, err := exec.CommandContext(t.Context(), populator, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("populator --help: %v\n%s", err, help)
	}
	row := regexp.MustCompile("(?m)^\\| (`--[^|]+)\\|")
	flag := regexp.MustCompile("--[a-z-]+")
	checked := 0
	for _, m := range row.FindAllStringSubmatch(pages(t)["docs/populator.md"], -1) {
		for _, name := range flag.FindAllString(m[1], -1) {
			checked++
			if !bytes.Contains(help, []byte(name+" ")) {
				t.Errorf("docs/populator.md describes %s, which --help does not have", name)
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d flags were checked", checked)
	}
}

// TestManifests decodes the ChangedBlockRanges of all pages strictly.
func TestManifests(t *testing.T) {
	checked := 0
	for path, text := range pages(t) {
		for _, b := range block.FindAllStringSubmatch(text, -1) {
			if b[1] != "yaml" {
				continue
			}
			for document := range strings.SplitSeq(b[2], "\n---\n") {
				if !strings.Contains(document, "kind: "+v1alpha1.Kind) || !strings.Contains(document, "apiVersion: "+v1alpha1.GroupName) {
					continue
				}
				checked++
				if err := yaml.UnmarshalStrict([]byte(document), &v1alpha1.ChangedBlockRange{}); err != nil {
					t.Errorf("%s: %v\n%s", path, err, document)
				}
			}
		}
	}
	if checked < 2 {
		t.Errorf("only %d manifests were checked", checked)
	}
}

// TestFilesystemsAreBackedUp: claims with a filesystem, the usual kind, need a step that no manifest of the examples can have.
func TestFilesystemsAreBackedUp(t *testing.T) {
	all := pages(t)
	for _, page := range []string{"examples/README.md", "examples/full-backup/README.md", "examples/nightly/README.md"} {
		if !strings.Contains(all[page], "docs/backup.md#volumes-with-a-filesystem)") {
			t.Errorf("%s does not say what volumes with a filesystem need", page)
		}
	}
	if !strings.Contains(all["docs/backup.md"], "snapshot.storage.kubernetes.io/allow-volume-mode-change=true") {
		t.Error("docs/backup.md does not say how a snapshot of a filesystem becomes a device")
	}
}

// TestNoLabelsOfNewerKubernetes: this label of pods came after the oldest release that the pages promise.
func TestNoLabelsOfNewerKubernetes(t *testing.T) {
	t.Parallel()
	const label = "batch.kubernetes.io/job-completion-index"
	for path, text := range pages(t) {
		if strings.Contains(text, label) {
			t.Errorf("%s needs %s, which pods have from Kubernetes 1.28 on", path, label)
		}
	}
}
