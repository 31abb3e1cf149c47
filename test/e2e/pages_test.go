//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbt-populator/cbt-populator/test/compiled"
)

// shell runs commands of a page from the top of the checkout, with the test's namespace as the current one, and returns
// what they print.
func (w *world) shell(script string) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.kubeconfig())
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

// onPage returns the first block of a language below a heading of a page.
func (w *world) onPage(page, heading, language string) string {
	w.Helper()
	text, err := os.ReadFile("../../" + page)
	if err != nil {
		w.Fatal(err)
	}
	return fenced(w.T, section(w.T, string(text), heading), language)
}

// placed returns commands of a page with the test's own names in place of the page's, all of which it has to name.
func (w *world) placed(commands string, own map[string]string) string {
	w.Helper()
	for place, name := range own {
		if !strings.Contains(commands, place) {
			w.Fatalf("the commands no longer have %s:\n%s", place, commands)
		}
		commands = strings.ReplaceAll(commands, place, name)
	}
	return commands
}

// typed returns the commands of a console block, and what the page says that each prints.
func (w *world) typed(block string) (commands, outputs []string) {
	w.Helper()
	for part := range strings.SplitSeq("\n"+block, "\n$ ") {
		command, output, _ := strings.Cut(part, "\n")
		if command != "" {
			commands, outputs = append(commands, command), append(outputs, output)
		}
	}
	if len(commands) == 0 {
		w.Fatalf("no commands in\n%s", block)
	}
	return commands, outputs
}

// wantTable compares two tables by the words of their first two lines; what the page shows as * may be anything.
func (w *world) wantTable(page, got string) {
	w.Helper()
	pageLines, gotLines := strings.Split(page, "\n"), strings.Split(got, "\n")
	for i := range 2 {
		if i >= len(gotLines) {
			w.Fatalf("the table has no line %d:\n%s", i, got)
		}
		want, words := strings.Fields(pageLines[i]), strings.Fields(gotLines[i])
		for j := range max(len(want), len(words)) {
			if j >= len(want) || j >= len(words) || want[j] != "*" && want[j] != words[j] {
				w.Errorf("the page has\n%s\nthe command prints\n%s", pageLines[i], gotLines[i])
				break
			}
		}
	}
}

// TestPageChangedBlockRange executes the console blocks of docs/changedblockrange.md on the ChangedBlockRange of that page.
func TestPageChangedBlockRange(t *testing.T) {
	t.Parallel()
	const page = "docs/changedblockrange.md"
	w := newWorld(t)
	w.guide("monday", "tuesday")
	w.create(ranges("monday-to-tuesday", "monday", "tuesday"), listClaim("list", "monday-to-tuesday"))
	w.awaitBound("list")

	status, outputs := w.typed(w.onPage(page, "Reading its status", "console"))
	if len(status) != 2 {
		t.Fatalf("the page has the commands %q, want a look and a wait", status)
	}
	if out := w.shell(status[1]); !strings.Contains(out, "monday-to-tuesday condition met") {
		t.Errorf("%s prints %s", status[1], out)
	}
	w.wantTable(strings.Replace(outputs[0], " 41s", " *", 1), w.shell(status[0]))

	handle, _ := w.typed(w.onPage(page, "Writing one", "console"))
	w.tools("reader", "list")
	header := w.readList("reader", "list", "JSON").header
	if out := w.shell(handle[0]); out == "" || out != header.TargetSnapshotHandle {
		t.Errorf("%s prints %q, the list's target is %q", handle[0], out, header.TargetSnapshotHandle)
	}
}

// TestPageKubectlCbr executes what docs/kubectl-cbr.md has for a cluster: its permissions (newPlugin gives them to a pod's
// service account), and with no others create and list. The pod's kubectl-cbr takes the place of `kubectl cbr`.
func TestPageKubectlCbr(t *testing.T) {
	t.Parallel()
	const page = "docs/kubectl-cbr.md"
	w := newWorld(t)
	w.guide("monday", "tuesday")
	p := w.newPlugin()

	create, outputs := w.typed(w.onPage(page, "create", "console"))
	// The local cluster has no default StorageClass.
	out := p.inPod(strings.TrimPrefix(create[0], "kubectl cbr ") + " --storage-class " + storageClass + " 2>&1")
	for line := range strings.SplitSeq(strings.TrimSpace(outputs[0]), "\n") {
		line, _, _ = strings.Cut(line, " 728 B") // the list names this test's namespace and handles, so it is longer
		// Whether one sees it being populated depends on how fast that is.
		if !strings.HasPrefix(line, "Populating: ") {
			p.wantWords(create[0], out, line)
		}
	}

	list, outputs := w.typed(w.onPage(page, "list and describe", "console"))
	want := strings.NewReplacer(" 5m ", " * ", " 728 B ", " * * ", " 5m\n", " *\n").Replace(outputs[0])
	w.wantTable(want, p.inPod(strings.TrimPrefix(list[0], "kubectl cbr ")))
}

// sampleDriver is the name of the local cluster's CSI driver.
const sampleDriver = "sample-csi.cbt-populator.test"

// TestPagePopulator executes what docs/populator.md has for those who want a list without the controller.
func TestPagePopulator(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	w.kubectl("apply", "-f", "../../examples/list-without-claim/rbac.yaml")
	dir := t.TempDir()
	if err := compiled.Program(filepath.Join(dir, "program"), "../../cmd/populator"); err != nil {
		t.Fatal(err)
	}
	// The address can be reached in the cluster's network only.
	inside := "#!/bin/sh\nexec nsenter --net=/run/netns/cbt-cluster " + filepath.Join(dir, "program") + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "populator"), []byte(inside), 0o755); err != nil {
		t.Fatal(err)
	}
	commands := w.placed(w.onPage("docs/populator.md", "Without the controller", "sh"), map[string]string{
		"DRIVER": sampleDriver, "CONTENT": w.kubectl("get", "volumesnapshot", "snap-1", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}"),
		"SERVICE_ACCOUNT": "lister", "--namespace demo": "--namespace " + w.ns,
	})
	w.shell("cd " + dir + "\nPATH=$PWD:$PATH\n" + commands)
	raw, err := os.ReadFile(filepath.Join(dir, "changed-blocks.json"))
	if err != nil {
		t.Fatal(err)
	}
	w.wantExtents("the list without the controller", w.parse(raw), blocks(2, 4, 9))
}

// TestPageOperations executes the checks of an installation in docs/operations.md.
func TestPageOperations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(ranges("waiting", "snap-1", "snap-2"))
	out := w.shell(w.onPage("docs/operations.md", "Check it", "sh"))
	w.wantLines("the check", out, `deployment "cbt-populator-controller" successfully rolled out`, sampleDriver, w.ns)
}
