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

// TestCrossNamespace applies the example's manifests: the claim of another namespace is refused until the grant is there, is
// filled then, and keeps its list when the grant is withdrawn, while the next one is refused.
func TestCrossNamespace(t *testing.T) {
	t.Parallel()
	app, backup := newWorld(t), newWorld(t)
	app.guide("monday", "tuesday")
	for _, file := range []string{"1-app.yaml", "2-backup.yaml"} {
		apply(app, backup, file)
	}
	if got := backup.kubectl("get", "pvc", "changes", "-o", "jsonpath={.spec.dataSourceRef.namespace}"); got != app.ns {
		t.Fatalf("the claim refers to namespace %q: the API server lacks the feature gate CrossNamespaceVolumeDataSource; "+
			"start the cluster afresh with make cluster-down cluster-up", got)
	}
	backup.awaitEvent("changes", reference.ReasonNotGranted)
	cbr := &v1alpha1.ChangedBlockRange{}
	if err := app.get("monday-to-tuesday", cbr); err != nil || len(cbr.Finalizers) > 0 || strings.Contains(cbr.Status.Message, "changes") {
		t.Errorf("a claim without a grant is felt by the ChangedBlockRange: %v %+v, error %v", cbr.Finalizers, cbr.Status, err)
	}

	apply(app, backup, "3-grant.yaml")
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

// apply applies a manifest of the example with its namespaces replaced by the test's, which exist.
func apply(app, backup *world, file string) {
	app.Helper()
	manifest, err := os.ReadFile(filepath.Join("../../examples/cross-namespace", file))
	if err != nil {
		app.Fatal(err)
	}
	own := strings.NewReplacer("namespace: app\n", "namespace: "+app.ns+"\n", "namespace: backup\n", "namespace: "+backup.ns+"\n",
		"name: app\n", "name: "+app.ns+"\n", "name: backup\n", "name: "+backup.ns+"\n")
	app.run(strings.NewReader(own.Replace(string(manifest))), "apply", "-f", "-")
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
