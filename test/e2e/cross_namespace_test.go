//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// TestCrossNamespace executes the example's page: the claim of another namespace is refused until the grant is there, is
// filled then, and keeps its list when the grant is withdrawn, while the next one is refused.
func TestCrossNamespace(t *testing.T) {
	t.Parallel()
	app, backup := newWorld(t), newWorld(t)
	app.guide("monday", "tuesday")
	page := crossNamespacePage(app, backup)
	ask, consent, found := strings.Cut(page.script, "kubectl apply -f 3-grant.yaml")
	if !found {
		t.Fatalf("the page does not apply the grant:\n%s", page.script)
	}
	page.run(ask)
	if got := backup.kubectl("get", "pvc", "changes", "-o", "jsonpath={.spec.dataSourceRef.namespace}"); got != app.ns {
		t.Fatalf("the claim refers to namespace %q: the API server lacks the feature gate CrossNamespaceVolumeDataSource; "+
			"start the cluster afresh with make cluster-down cluster-up", got)
	}
	backup.awaitEvent("changes", reference.ReasonNotGranted)
	cbr := &v1alpha1.ChangedBlockRange{}
	if err := app.get("monday-to-tuesday", cbr); err != nil || len(cbr.Finalizers) > 0 || strings.Contains(cbr.Status.Message, "changes") {
		t.Errorf("a claim without a grant is felt by the ChangedBlockRange: %v %+v, error %v", cbr.Finalizers, cbr.Status, err)
	}

	page.run("kubectl apply -f 3-grant.yaml" + consent)
	backup.awaitBound("changes")
	backup.tools("reader", "changes")
	got := backup.readList("reader", "changes", blocklist.JSON)
	backup.wantExtents("the list in another namespace", got, blocks(2, 4, 9))
	if got.header.Namespace != app.ns {
		t.Errorf("the list is about namespace %q, want %q", got.header.Namespace, app.ns)
	}
	app.checkStatus("monday-to-tuesday", got)

	app.kubectl("delete", "referencegrant", "backups")
	next := listClaim("next", "monday-to-tuesday")
	next.Spec.DataSourceRef.Namespace = ptr.To(app.ns)
	backup.create(next)
	backup.awaitEvent("next", reference.ReasonNotGranted)
	backup.wantExtents("the list after the grant is gone", backup.readList("reader", "changes", blocklist.JSON), blocks(2, 4, 9))
}

// rewritten is the example's page for the test's namespaces, which exist.
type rewritten struct {
	*world
	dir, script string
}

// crossNamespacePage copies the example with its namespaces replaced.
func crossNamespacePage(app, backup *world) rewritten {
	app.Helper()
	const example = "../../examples/cross-namespace"
	own := strings.NewReplacer("namespace: app\n", "namespace: "+app.ns+"\n", "namespace: backup\n", "namespace: "+backup.ns+"\n",
		"name: app\n", "name: "+app.ns+"\n", "name: backup\n", "name: "+backup.ns+"\n",
		"-n app ", "-n "+app.ns+" ", "-n backup ", "-n "+backup.ns+" ")
	page := rewritten{world: app, dir: app.TempDir(), script: own.Replace(app.shellOf(filepath.Join(example, "README.md")))}
	manifests, err := filepath.Glob(filepath.Join(example, "*.yaml"))
	if err != nil || len(manifests) == 0 {
		app.Fatalf("%s has no manifests: %v", example, err)
	}
	for _, path := range manifests {
		text, err := os.ReadFile(path)
		if err != nil {
			app.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(page.dir, filepath.Base(path)), []byte(own.Replace(string(text))), 0o600); err != nil {
			app.Fatal(err)
		}
	}
	return page
}

// run executes commands of the page in the copy of the example's folder.
func (p rewritten) run(script string) {
	p.Helper()
	p.Logf("%s", p.shell("cd "+p.dir+"\n"+script))
}

// awaitEvent waits until an event with the reason tells about the claim.
func (w *world) awaitEvent(claim, reason string) {
	w.Helper()
	w.eventually("the claim "+claim+" is told "+reason, patience, func(ctx context.Context) (bool, string) {
		var events corev1.EventList
		if err := api.List(ctx, &events, client.InNamespace(w.ns)); err != nil {
			return false, err.Error()
		}
		var told []string
		for _, e := range events.Items {
			if e.InvolvedObject.Name == claim {
				told = append(told, e.Reason)
			}
		}
		return strings.Contains(strings.Join(told, " "), reason), strings.Join(told, " ")
	})
}
