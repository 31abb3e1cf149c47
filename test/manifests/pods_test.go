package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	sigsyaml "sigs.k8s.io/yaml"
)

// populatorPods returns the pods that the controller makes, by the name of the file that a test of internal/machinery compares
// each with.
func populatorPods(t *testing.T) map[string]*corev1.Pod {
	t.Helper()
	files, err := filepath.Glob(root + "/internal/machinery/testdata/pod-*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("pods: %v, %v", files, err)
	}
	pods := map[string]*corev1.Pod{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var pod corev1.Pod
		if err := sigsyaml.UnmarshalStrict(text, &pod); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		pods[strings.TrimSuffix(filepath.Base(file), ".yaml")] = &pod
	}
	return pods
}

// typed reads an object as what it is. A field that is not known is an error.
func typed(t *testing.T, o *unstructured.Unstructured, into any) {
	t.Helper()
	text, err := sigsyaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	if err := sigsyaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
}

// selector reads a selector, which must not select everything.
func selector(t *testing.T, what string, from *metav1.LabelSelector) labels.Selector {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(from)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if s.Empty() {
		t.Errorf("%s selects every pod of the namespace", what)
	}
	return s
}

// podLabels returns the labels of our pods by component, and of a stranger's, who may live in the same namespace.
func podLabels(t *testing.T, rendered map[string]*unstructured.Unstructured) map[string][]map[string]string {
	t.Helper()
	pods := map[string][]map[string]string{"a stranger": {{"app.kubernetes.io/name": "velero"}, nil}}
	for _, pod := range populatorPods(t) {
		pods["populator"] = append(pods["populator"], pod.Labels)
	}
	for _, o := range rendered {
		if o.GetKind() == "Deployment" || o.GetKind() == "Job" {
			of, _, err := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "labels")
			if err != nil {
				t.Fatal(err)
			}
			who := strings.TrimPrefix(o.GetName(), "cbt-populator-")
			pods[who] = append(pods[who], of)
		}
	}
	return pods
}

// TestNetworkPoliciesSelectOurPods: each policy selects the pods that it is for, and no others.
func TestNetworkPoliciesSelectOurPods(t *testing.T) {
	shared := append([]string{"template", "x", chart, "--namespace=velero"}, images...)
	meant := map[string][]string{
		"nobody-connects":            {"controller", "let-go", "populator"},
		"metrics-of-the-controller":  {"controller"},
		"progress-of-the-populators": {"populator"},
	}
	for name, rendered := range map[string]map[string]*unstructured.Unstructured{
		"config/default":              objects(t, mustTool(t, "kubectl", "kustomize", root+"/config/default")),
		"config/with-cross-namespace": objects(t, mustTool(t, "kubectl", "kustomize", root+"/config/with-cross-namespace")),
		"chart":                       template(t, "--set=replicas=2"),
		"chart in a shared namespace": objects(t, mustTool(t, "helm", shared...)),
	} {
		t.Run(name, func(t *testing.T) {
			pods := podLabels(t, rendered)
			if len(pods["controller"]) != 1 || strings.HasPrefix(name, "chart") && len(pods["let-go"]) != 1 {
				t.Fatalf("pods: %v", pods)
			}
			seen := 0
			for key, o := range rendered {
				if o.GetKind() != "NetworkPolicy" {
					continue
				}
				seen++
				var policy networkingv1.NetworkPolicy
				typed(t, o, &policy)
				checkPolicy(t, key, &policy, pods, meant[o.GetName()])
			}
			if seen != len(meant) {
				t.Errorf("%d policies, want %d", seen, len(meant))
			}
		})
	}
}

// checkPolicy: the policy selects the pods of those whom it is meant for. Whom it lets in is the controller, if it says so at all.
func checkPolicy(t *testing.T, key string, policy *networkingv1.NetworkPolicy, pods map[string][]map[string]string, meant []string) {
	t.Helper()
	selected := selector(t, key, &policy.Spec.PodSelector)
	for who, all := range pods {
		for _, of := range all {
			want := slices.Contains(meant, who)
			if got := selected.Matches(labels.Set(of)); got != want {
				t.Errorf("%s selects the pod of %s with %v: %t, want %t", key, who, of, got, want)
			}
		}
	}
	for _, rule := range policy.Spec.Ingress {
		for _, from := range rule.From {
			if !selector(t, key+", from", from.PodSelector).Matches(labels.Set(pods["controller"][0])) {
				t.Errorf("%s does not let the controller in", key)
			}
		}
	}
}

// TestPodsWantLinux: so do the populators', which a test of internal/machinery checks.
func TestPodsWantLinux(t *testing.T) {
	for name, test := range map[string]struct {
		rendered map[string]*unstructured.Unstructured
		want     map[string]any
	}{
		"config/default":            {kustomize(t), map[string]any{"kubernetes.io/os": "linux"}},
		"chart":                     {template(t), map[string]any{"kubernetes.io/os": "linux"}},
		"chart, with other labels":  {template(t, "--set=nodeSelector.zone=a"), map[string]any{"kubernetes.io/os": "linux", "zone": "a"}},
		"chart, with another value": {template(t, `--set=nodeSelector.kubernetes\.io/os=other`), map[string]any{"kubernetes.io/os": "other"}},
	} {
		t.Run(name, func(t *testing.T) {
			keys := []string{"Deployment/cbt-populator/cbt-populator-controller"}
			if strings.HasPrefix(name, "chart") {
				keys = append(keys, "Job/cbt-populator/cbt-populator-let-go")
			}
			for _, key := range keys {
				got, _, err := unstructured.NestedMap(podSpec(t, test.rendered[key]), "nodeSelector")
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", key, diff)
				}
			}
		})
	}
}

// TestMonitoringLabels: a Prometheus finds by them what it is to scrape, and which rules it is to load.
func TestMonitoringLabels(t *testing.T) {
	rendered := template(t, "--set=monitoring.enabled=true", "--set=monitoring.labels.release=prometheus")
	for key, o := range rendered {
		monitoring := o.GetKind() == "ServiceMonitor" || o.GetKind() == "PrometheusRule"
		got := o.GetLabels()
		if (got["release"] == "prometheus") != monitoring {
			t.Errorf("%s has the labels %v", key, got)
		}
		if monitoring && (got["app.kubernetes.io/name"] != "cbt-populator" || got["app.kubernetes.io/managed-by"] != "Helm") {
			t.Errorf("%s lacks labels of its own: %v", key, got)
		}
	}
	for _, key := range []string{"ServiceMonitor/cbt-populator/cbt-populator", "PrometheusRule/cbt-populator/cbt-populator"} {
		if rendered[key] == nil {
			t.Errorf("%s is missing", key)
		}
	}
}

// TestOldestKubernetes renders the chart for the version that the pages name, and for the one before, which it refuses.
func TestOldestKubernetes(t *testing.T) {
	named := regexp.MustCompile(`needs? Kubernetes 1\.(\d+) or newer`)
	for _, page := range []string{"README.md", "docs/operations.md"} {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		m := named.FindSubmatch(text)
		if m == nil {
			t.Errorf("%s names no version", page)
			continue
		}
		minor, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		for version, want := range map[int]bool{minor: true, minor - 1: false} {
			args := append([]string{"template", "x", chart, "--kube-version=1." + strconv.Itoa(version) + ".0"}, images...)
			out, err := tool(t, "helm", args...)
			if (err == nil) != want {
				t.Errorf("%s names 1.%d; the chart for 1.%d: %v\n%s", page, minor, version, err, out[:min(len(out), 300)])
			}
		}
	}
}
