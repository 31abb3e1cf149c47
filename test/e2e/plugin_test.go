//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/claimsize"
)

// plugin is kubectl-cbr as a user has it: on the PATH of this machine, and in a pod with a service account that may do what
// examples/kubectl-cbr/permissions.yaml says and nothing else.
type plugin struct {
	*world
	dir string
}

const pluginPod = "user"

func (w *world) newPlugin() *plugin {
	w.Helper()
	p := &plugin{world: w, dir: w.TempDir()}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(p.dir, "kubectl-cbr"), "../../cmd/kubectl-cbr")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		w.Fatalf("build kubectl-cbr: %v\n%s", err, out)
	}
	w.permit()

	w.tools(pluginPod)
	binary, err := os.ReadFile(filepath.Join(p.dir, "kubectl-cbr"))
	if err != nil {
		w.Fatal(err)
	}
	w.run(strings.NewReader(string(binary)), "-n", w.ns, "exec", "-i", pluginPod, "--", "sh", "-c", "cat > /tmp/kubectl-cbr && chmod +x /tmp/kubectl-cbr")
	return p
}

// permitting lets one test at a time apply the ClusterRoles, which all of them share.
var permitting sync.Mutex

// permit executes what docs/kubectl-cbr.md says under Permissions, for the test's namespace and the service account of its pods.
func (w *world) permit() {
	w.Helper()
	commands := w.onPage("docs/kubectl-cbr.md", "Permissions", "sh")
	commands = w.placed(commands, map[string]string{"-n shop": "-n " + w.ns, "kubectl-cbr-jane": w.ns, "--user=jane": "--serviceaccount=" + w.ns + ":default"})
	permitting.Lock()
	defer permitting.Unlock()
	w.shell(commands)
	w.Cleanup(func() { w.kubectl("delete", "clusterrolebinding", w.ns) })
}

// inPod runs a command in the pod and returns its standard output. It finds the cluster by the pod's service account.
func (p *plugin) inPod(args string) string {
	p.Helper()
	return string(p.exec(pluginPod, "/tmp/kubectl-cbr "+args))
}

// here runs `kubectl cbr`, which has to find the plugin on the PATH.
func (p *plugin) here(args ...string) string {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", append(append([]string{"cbr"}, args...), "-n", p.ns)...)
	cmd.Env = append(os.Environ(), "PATH="+p.dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.Fatalf("kubectl cbr %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func (p *plugin) wantWords(what, text string, words ...string) {
	p.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			p.Errorf("%s: %q is missing from:\n%s", what, word, text)
		}
	}
}

// TestPlugin: create makes a claim of the right size and waits for the list, list and describe tell of it, and preview prints
// the same bytes that were populated.
func TestPlugin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	p := w.newPlugin()

	for _, format := range []struct {
		name, flags, preview string
		format               blocklist.Format
	}{
		{"json", "", "", blocklist.JSON},
		{"binary", "--format Binary --granularity 64Ki", "-o cbl", blocklist.Binary},
	} {
		name := "delta-" + format.name
		created := p.inPod(fmt.Sprintf("create %s --from snap-1 --to snap-2 %s --pvc %s --storage-class %s --wait --timeout 2m 2>&1", name, format.flags, name, storageClass))
		p.wantWords("create", created, "persistentvolumeclaim/"+name+" created", "the list takes", "claimName: "+name, blocklist.FileName(format.format))
		w.tools("backup-"+format.name, name)
		populated := w.exec("backup-"+format.name, "cat /mnt/"+name+"/"+blocklist.FileName(format.format))
		if preview := p.inPod("preview " + name + " " + format.preview); preview != string(populated) {
			t.Errorf("%s: the preview differs from the populated list:\n%q\n%q", name, preview, populated)
		}
		var claim corev1.PersistentVolumeClaim
		if err := w.get(name, &claim); err != nil {
			t.Fatal(err)
		}
		if got, want := claim.Spec.Resources.Requests.Storage().Value(), claimsize.For(int64(len(populated))); got != want {
			t.Errorf("%s: the claim asks for %d bytes, want %d", name, got, want)
		}
	}
	w.wantExtents("delta", w.readList("backup-json", "delta-json", blocklist.JSON), blocks(2, 4, 9))

	page := p.inPod("preview --from snap-1 --to snap-2 --offset 1 --limit 1")
	p.wantWords("page", page, `{"byte_offset":16384,"size_bytes":4096}`, `"next_offset": 2`)
	p.wantWords("list in the pod", p.inPod("list"), "delta-json", "Ready", "12 KiB")
	p.wantWords("list", p.here("list"), "delta-json", "delta-binary", "snap-1", "Ready", "12 KiB")
	p.wantWords("describe", p.here("describe", "delta-json"), "changed blocks", "12 KiB of 10 MiB", "Populated", "Bound", "33 MiB")
	p.wantWords("claims of a Block volume", p.here("create", "block", "--from", "snap-1", "--to", "snap-2", "--format", "Binary", "--pvc", "block",
		"--size", "bound", "--volume-mode", "Block", "--storage-class", storageClass, "--wait"), "devicePath: /dev/changes")
}
