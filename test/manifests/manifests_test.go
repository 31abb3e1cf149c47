// Package manifests checks what is installed: that the Helm chart installs what kustomize does, that every component
// builds, that alerts fire for their causes, and that dashboards ask for metrics that exist.
//
// The tests need kubectl, helm and promtool, in the folder that CBT_BIN names, and one of them an API server; `make test` builds them
// there.
package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/test/inputs"
)

const (
	root  = "../.."
	chart = root + "/charts/cbt-populator"
)

// images are what the chart requires.
var images = []string{"--set=images.controller=registry.test/controller:1", "--set=images.populator=registry.test/populator:1"}

// sources are what tools and scripts read.
var sources = sync.OnceValue(func() error {
	return inputs.Files(root+"/Makefile", root+"/charts", root+"/config", root+"/hack")
})

func tool(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	bin := os.Getenv("CBT_BIN")
	if bin == "" {
		t.Fatal("CBT_BIN is not set: run make test, or name the folder with kubectl, helm and promtool")
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, name), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return append(out, stderr.Bytes()...), err
	}
	return out, nil
}

func mustTool(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := tool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// objects returns the objects of a stream by kind, namespace and name.
func objects(t *testing.T, stream []byte) map[string]*unstructured.Unstructured {
	t.Helper()
	found := map[string]*unstructured.Unstructured{}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096)
	for {
		var o unstructured.Unstructured
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) > 0 {
			found[key(&o)] = &o
		}
	}
}

// key is kind, namespace and name.
func key(o *unstructured.Unstructured) string {
	return strings.Join([]string{o.GetKind(), o.GetNamespace(), o.GetName()}, "/")
}

func template(t *testing.T, args ...string) map[string]*unstructured.Unstructured {
	t.Helper()
	args = append([]string{"template", "any-name", chart, "--namespace=cbt-populator"}, args...)
	return objects(t, mustTool(t, "helm", append(args, images...)...))
}

// kustomize builds config/default with components of this checkout.
func kustomize(t *testing.T, components ...string) map[string]*unstructured.Unstructured {
	t.Helper()
	dir := t.TempDir()
	var folders []string
	for _, component := range components {
		folders = append(folders, relative(t, dir, root+"/config/"+component))
	}
	return objects(t, build(t, dir, "resources: ["+relative(t, dir, root+"/config/default")+"]\ncomponents: ["+strings.Join(folders, ", ")+"]\n"))
}

// build writes a kustomization into dir and builds it.
func build(t *testing.T, dir, text string) []byte {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return mustTool(t, "kubectl", "kustomize", dir)
}

// relative returns path as seen from dir: kustomize takes no absolute ones.
func relative(t *testing.T, dir, path string) string {
	t.Helper()
	absolute, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	name, err := filepath.Rel(dir, absolute)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestChartInstallsWhatKustomizeDoes compares the two object by object. They may differ in the labels of the release, in
// how the configuration's ConfigMap is called, in the images, and in the namespace, which helm is given.
func TestChartInstallsWhatKustomizeDoes(t *testing.T) {
	for name, test := range map[string]struct{ components, values []string }{
		"by default": {nil, nil},
		"on OpenShift": {[]string{"components/openshift", "components/openshift-block-volumes"},
			[]string{"--set=openshift.enabled=true", "--set=openshift.blockVolumes=true"}},
	} {
		t.Run(name, func(t *testing.T) {
			ours := kustomize(t, test.components...)
			theirs := template(t, append(test.values, "--no-hooks")...)
			delete(ours, "Namespace//cbt-populator")
			ours, theirs = neutralised(t, ours), neutralised(t, theirs)
			if len(ours) < 15 {
				t.Fatalf("only %d objects in config/default", len(ours))
			}
			if diff := cmp.Diff(ours, theirs); diff != "" {
				t.Errorf("the chart differs from config/default (-kustomize +chart):\n%s", diff)
			}
		})
	}
}

// neutralised takes off what may differ from all objects, and the digest from the name of the configuration.
func neutralised(t *testing.T, set map[string]*unstructured.Unstructured) map[string]*unstructured.Unstructured {
	t.Helper()
	plain := map[string]*unstructured.Unstructured{}
	for key, o := range set {
		if o.GetKind() == "ConfigMap" {
			key = "ConfigMap"
		}
		plain[key] = neutral(t, o)
	}
	return plain
}

// neutral takes off what may differ.
func neutral(t *testing.T, o *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	o = o.DeepCopy()
	labels := o.GetLabels()
	for _, l := range []string{"app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"} {
		delete(labels, l)
	}
	if len(labels) == 0 {
		labels = nil
	}
	o.SetLabels(labels)
	annotations := o.GetAnnotations()
	delete(annotations, "helm.sh/resource-policy")
	o.SetAnnotations(annotations)
	switch o.GetKind() {
	case "ConfigMap":
		o.SetName("")
		var configuration any
		text, _, _ := unstructured.NestedString(o.Object, "data", "controller.yaml")
		if err := sigsyaml.Unmarshal([]byte(text), &configuration); err != nil {
			t.Fatal(err)
		}
		o.Object["data"] = configuration
	case "Deployment":
		// The API server's default, of which TestOneControllerAtATime makes sure.
		delete(o.Object["spec"].(map[string]any), "strategy")
		spec := o.Object["spec"].(map[string]any)["template"].(map[string]any)
		delete(spec["metadata"].(map[string]any)["annotations"].(map[string]any), "checksum/configuration")
		pod := spec["spec"].(map[string]any)
		container := pod["containers"].([]any)[0].(map[string]any)
		container["image"] = ""
		// The API server's default for a tag.
		delete(container, "imagePullPolicy")
		container["env"].([]any)[0].(map[string]any)["value"] = ""
		pod["volumes"].([]any)[0].(map[string]any)["configMap"].(map[string]any)["name"] = ""
	}
	return o
}

func TestChartValues(t *testing.T) {
	for name, test := range map[string]struct {
		values  []string
		has     []string
		without []string
	}{
		"two replicas":              {[]string{"--set=replicas=2"}, []string{"PodDisruptionBudget/cbt-populator/cbt-populator-controller"}, nil},
		"one replica":               {nil, nil, []string{"PodDisruptionBudget/cbt-populator/cbt-populator-controller"}},
		"monitoring":                {[]string{"--set=monitoring.enabled=true"}, []string{"ServiceMonitor/cbt-populator/cbt-populator", "PrometheusRule/cbt-populator/cbt-populator", "ConfigMap/cbt-populator/cbt-populator-dashboard"}, nil},
		"no network policy":         {[]string{"--set=networkPolicy.enabled=false"}, nil, []string{"NetworkPolicy/cbt-populator/nobody-connects"}},
		"snapshots of some only":    {[]string{"--set=worker.namespaces={a,b}"}, []string{"RoleBinding/a/cbt-populator-worker", "RoleBinding/b/cbt-populator-worker", "ClusterRole//cbt-populator-worker"}, []string{"ClusterRoleBinding//cbt-populator-worker"}},
		"other namespaces":          {[]string{"--set=configuration.crossNamespace.enabled=true"}, []string{"ClusterRole//cbt-populator-cross-namespace", "ClusterRoleBinding//cbt-populator-cross-namespace"}, nil},
		"its own namespaces only":   {nil, nil, []string{"ClusterRole//cbt-populator-cross-namespace"}},
		"the validator's object":    {[]string{"--set=volumePopulator.register=true"}, []string{"VolumePopulator//cbt-populator"}, nil},
		"without the CRD":           {[]string{"--set=crds.install=false"}, nil, []string{"CustomResourceDefinition//changedblockranges.cbt.storage.k8s.io"}},
		"without roles for tenants": {[]string{"--set=roles.aggregate=false"}, nil, []string{"ClusterRole//cbt-populator-edit"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := template(t, test.values...)
			for _, key := range test.has {
				if got[key] == nil {
					t.Errorf("%s is missing among %v", key, slices.Sorted(maps.Keys(got)))
				}
			}
			for _, key := range test.without {
				if got[key] != nil {
					t.Errorf("%s is there", key)
				}
			}
		})
	}
}

// TestChartInAnotherNamespace looks for the default's name where the release's belongs.
func TestChartInAnotherNamespace(t *testing.T) {
	args := append([]string{"template", "x", chart, "--namespace=backup", "--set=monitoring.enabled=true", "--set=replicas=2"}, images...)
	for key, o := range objects(t, mustTool(t, "helm", args...)) {
		if ns := o.GetNamespace(); ns != "" && ns != "backup" {
			t.Errorf("%s is in namespace %s", key, ns)
		}
		subjects, _, _ := unstructured.NestedSlice(o.Object, "subjects")
		for _, s := range subjects {
			if ns := s.(map[string]any)["namespace"]; ns != "backup" {
				t.Errorf("%s binds a subject of namespace %v", key, ns)
			}
		}
		rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
		for _, r := range rules {
			if names, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "resourceNames"); slices.Contains(names, "cbt-populator") {
				t.Errorf("%s grants access to namespace %v", key, names)
			}
		}
	}
}

func TestChartRefusesBadValues(t *testing.T) {
	for _, bad := range []string{"imagess.controller=x", "replicas=two", "images.pullPolicy=Sometimes", "monitoring.enabled=perhaps", "monitoring.labels.release=1", "openshift.enabled=perhaps"} {
		out, err := tool(t, "helm", append([]string{"template", "x", chart, "--set=" + bad}, images...)...)
		if err == nil {
			t.Errorf("%s is accepted", bad)
		} else if name, _, _ := strings.Cut(bad, "="); !strings.Contains(string(out), strings.Split(name, ".")[0]) {
			t.Errorf("%s: the message does not name it:\n%s", bad, out)
		}
	}
	if out, err := tool(t, "helm", "template", "x", chart); err == nil || !strings.Contains(string(out), "images.controller") {
		t.Errorf("a chart without images: %v\n%s", err, out)
	}
	mustTool(t, "helm", append([]string{"lint", "--strict", chart}, images...)...)
}

// TestComponents builds config/default with each component.
func TestComponents(t *testing.T) {
	base := len(kustomize(t))
	found, err := filepath.Glob(root + "/config/components/*")
	if err != nil || len(found) < 3 {
		t.Fatalf("components: %v, %v", found, err)
	}
	for _, component := range append(found, root+"/config/monitoring") {
		t.Run(filepath.Base(component), func(t *testing.T) {
			if filepath.Base(component) == "network-policy" {
				return // part of config/default, so it is built already
			}
			if got := len(kustomize(t, strings.TrimPrefix(component, root+"/config/"))); got <= base {
				t.Errorf("%d objects with the component, %d without it", got, base)
			}
		})
	}
}

// TestAlerts has promtool check the rules, and play causes to them.
func TestAlerts(t *testing.T) {
	dir := t.TempDir()
	text, err := os.ReadFile(root + "/config/monitoring/prometheus_rule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rule struct{ Spec any }
	if err := sigsyaml.Unmarshal(text, &rule); err != nil {
		t.Fatal(err)
	}
	rules, err := sigsyaml.Marshal(rule.Spec)
	if err != nil {
		t.Fatal(err)
	}
	cases, err := os.ReadFile(root + "/config/monitoring/alerts.test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"rules.yaml": rules, "alerts.test.yaml": cases} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustTool(t, "promtool", "check", "rules", filepath.Join(dir, "rules.yaml"))
	mustTool(t, "promtool", "test", "rules", filepath.Join(dir, "alerts.test.yaml"))

	operations, err := os.ReadFile(root + "/docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllSubmatch(text, -1)
	if len(alerts) < 5 {
		t.Fatalf("only %d alerts", len(alerts))
	}
	for _, alert := range alerts {
		if !bytes.Contains(operations, append([]byte("### "), alert[1]...)) {
			t.Errorf("docs/operations.md does not say what to do about %s", alert[1])
		}
	}
}

// TestMetricsExist looks up every metric of ours that the alerts and the dashboard ask for in the documentation's table,
// which a test of internal/controller keeps in step with the code.
func TestMetricsExist(t *testing.T) {
	page, err := os.ReadFile(root + "/docs/controller.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(cbt_populator_[a-z_]+)`").FindAllSubmatch(page, -1) {
		documented[string(m[1])] = true
	}
	var dashboard map[string]any
	text, err := os.ReadFile(root + "/config/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatalf("dashboard.json: %v", err)
	}
	rules, err := os.ReadFile(root + "/config/monitoring/prometheus_rule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asked := regexp.MustCompile(`cbt_populator_[a-z_]+`).FindAll(append(text, rules...), -1)
	if len(asked) < 10 {
		t.Fatalf("only %d metrics are asked for", len(asked))
	}
	for _, m := range asked {
		name := string(m)
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); documented[base] {
				name = base
			}
		}
		if !documented[name] {
			t.Errorf("%s is asked for and not documented", name)
		}
	}
}
