package scripts

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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

// TestExamplesShareANamespace: what two examples call by one name is the same for both, because their pages may be typed in one namespace.
func TestExamplesShareANamespace(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join(root, "examples", "*", "*.yaml"))
	if err != nil || len(paths) < 20 {
		t.Fatalf("manifests of examples: %q, %v", paths, err)
	}
	placeholder := regexp.MustCompile(`\$\{\w+\}|@[A-Z_]+@`)
	seen, of := map[string]any{}, map[string]string{}
	for _, path := range paths {
		folder := filepath.Base(filepath.Dir(path))
		if folder == "guide" {
			continue // it makes a namespace of its own
		}
		text := placeholder.ReplaceAllString(textOf(t, folder+"/"+filepath.Base(path)), "placeholder")
		for document := range strings.SplitSeq(text, "\n---\n") {
			var object unstructured.Unstructured
			if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
				t.Fatalf("%s: %v\n%s", path, err, document)
			}
			key := strings.Join([]string{object.GetKind(), object.GetNamespace(), object.GetName()}, " ")
			if strings.Contains(key, "placeholder") {
				continue
			}
			if other, ok := seen[key]; ok && !reflect.DeepEqual(other, object.Object) {
				t.Errorf("%s and %s have different objects %s", of[key], path, key)
			}
			seen[key], of[key] = object.Object, path
		}
	}
}

// TestCommitsHaveNamesOfTheirOwn checks the examples' backups, several of which may run beside each other on one volume: what
// each renames at its end must be a file that no other one writes.
func TestCommitsHaveNamesOfTheirOwn(t *testing.T) {
	manifests, err := filepath.Glob(root + "/examples/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob(root + "/examples/*/*.sh")
	if err != nil {
		t.Fatal(err)
	}
	rename := regexp.MustCompile(`\bmv "?\S*?/\.([^\s"]+)"? \S*/([^\s/"]+\.cbl)`)
	checked := 0
	for _, path := range append(manifests, scripts...) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range rename.FindAllStringSubmatch(string(text), -1) {
			checked++
			if m[1] != m[2] {
				t.Errorf("%s: %q: the temporary file of %s is called .%s, as that of another backup may be", path, m[0], m[2], m[1])
			}
		}
	}
	if checked < 2 {
		t.Errorf("only %d renames were found", checked)
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
