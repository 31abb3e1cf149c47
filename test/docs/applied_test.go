package docs

import (
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestHandlesAreNoYAML: what a driver calls a snapshot is its own affair; manifests into which a handle is put must have it as it is.
func TestHandlesAreNoYAML(t *testing.T) {
	t.Parallel()
	const handle = `a|b&c\d"e'f: g #h`
	var list v1alpha1.ChangedBlockRange
	if err := yaml.UnmarshalStrict([]byte(applied(t, "increments/delta.yaml", "DAY=tuesday", "BASE="+handle)), &list); err != nil {
		t.Fatal(err)
	}
	if got := list.Spec.FromSnapshotHandle; got != handle {
		t.Errorf("the base is %q, want %q", got, handle)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(applied(t, "list-without-claim/pod.yaml", "AUDIENCE=a", "BASE="+handle)), &pod); err != nil {
		t.Fatal(err)
	}
	if got := pod.Spec.InitContainers[0].Args; !slices.Contains(got, "--base-snapshot-handle="+handle) {
		t.Errorf("the populator's arguments are %q", got)
	}
}

// applied returns what apply.sh applies of a manifest of the examples.
func applied(t *testing.T, path string, values ...string) (manifest string) {
	t.Helper()
	script, err := filepath.Abs(filepath.Join(root, "examples", "apply.sh"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"CBR_IMAGE=kubectl-cbr", "POPULATOR_IMAGE=populator", "KUBECTL_IMAGE=kubectl"}
	command := append([]string{"bash", script, filepath.Base(path)}, values...)
	printed, err := newKubectl(t).shell(t, filepath.Join(root, "examples", filepath.Dir(path)), env, command, func(c call) (string, error) {
		manifest = c.input
		return "", nil
	})
	if err != nil {
		t.Fatalf("apply.sh %s: %v\n%s", path, err, printed)
	}
	return manifest
}
