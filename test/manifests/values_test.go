package manifests

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// port returns the port of an address of the configuration, or 0 if it is none that others reach.
func port(t *testing.T, address string) int64 {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if address == "0" || host == "localhost" {
		return 0
	}
	n, failed := strconv.ParseInt(text, 10, 32)
	if err != nil || failed != nil {
		t.Fatalf("address %q: %v, %v", address, err, failed)
	}
	return n
}

// TestPortsFollowTheConfiguration: where the controller listens is where the kubelet and Prometheus ask.
func TestPortsFollowTheConfiguration(t *testing.T) {
	for name, test := range map[string]struct {
		values          []string
		probes, metrics int64
	}{
		"by default":                {nil, 8081, 8080},
		"others":                    {[]string{"--set=configuration.healthProbe.bindAddress=:9081", "--set=configuration.metrics.bindAddress=0.0.0.0:9080", "--set=monitoring.enabled=true"}, 9081, 9080},
		"of IPv6":                   {[]string{"--set-json=configuration.healthProbe.bindAddress=\"[::]:9081\""}, 9081, 8080},
		"exchanged":                 {[]string{"--set=configuration.healthProbe.bindAddress=:8080", "--set=configuration.metrics.bindAddress=:8081"}, 8080, 8081},
		"no metrics":                {[]string{"--set-string=configuration.metrics.bindAddress=0"}, 8081, 0},
		"metrics for the pod alone": {[]string{"--set=configuration.metrics.bindAddress=localhost:8080"}, 8081, 0},
	} {
		t.Run(name, func(t *testing.T) {
			rendered := template(t, test.values...)
			_, c := configuration(t, rendered)
			if probes, metrics := port(t, c.HealthProbe.BindAddress), port(t, c.Metrics.BindAddress); probes != test.probes || metrics != test.metrics {
				t.Fatalf("the controller listens at %d and %d, want %d and %d", probes, metrics, test.probes, test.metrics)
			}
			want := map[string]int64{"probes": test.probes}
			service := rendered["Service/cbt-populator/cbt-populator-metrics"]
			if test.metrics != 0 {
				want["metrics"] = test.metrics
			}
			if (service != nil) != (test.metrics != 0) {
				t.Errorf("there is a metrics service: %t", service != nil)
			}
			if diff := cmp.Diff(want, containerPorts(t, rendered["Deployment/cbt-populator/cbt-populator-controller"])); diff != "" {
				t.Errorf("ports of the controller (-want +got):\n%s", diff)
			}
			if service == nil {
				return
			}
			ports, _, err := unstructured.NestedSlice(service.Object, "spec", "ports")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]any{map[string]any{"name": "metrics", "port": test.metrics, "targetPort": "metrics"}}, ports); diff != "" {
				t.Errorf("ports of the metrics service (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOneControllerAtATime: without a lease for which they compete, an upgrade does not start the new controller beside the old one.
func TestOneControllerAtATime(t *testing.T) {
	for enabled, want := range map[string]map[string]any{
		"true":  {"type": "RollingUpdate", "rollingUpdate": map[string]any{"maxSurge": "25%", "maxUnavailable": "25%"}}, // the default
		"false": {"type": "Recreate"},
	} {
		deployment := template(t, "--set=configuration.leaderElection.enabled="+enabled)["Deployment/cbt-populator/cbt-populator-controller"]
		strategy, _, err := unstructured.NestedMap(deployment.Object, "spec", "strategy")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, strategy); diff != "" {
			t.Errorf("leader election %s: the strategy (-want +got):\n%s", enabled, diff)
		}
	}
}

// TestLabelsOfABuild: a version may say of which build it is, behind a +, which no label has.
func TestLabelsOfABuild(t *testing.T) {
	dir := t.TempDir()
	mustTool(t, "helm", "package", chart, "--version=1.2.3+build.1", "--app-version=v1.2.3+build.1", "--destination="+dir)
	args := []string{"template", "x", filepath.Join(dir, "cbt-populator-1.2.3+build.1.tgz"), "--namespace=cbt-populator", "--set=monitoring.enabled=true"}
	for key, o := range objects(t, mustTool(t, "helm", append(args, images...)...)) {
		pod, _, err := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "labels")
		if err != nil {
			t.Fatal(err)
		}
		for _, labels := range []map[string]string{o.GetLabels(), pod} {
			if errs := metavalidation.ValidateLabels(labels, field.NewPath(key)); len(errs) > 0 {
				t.Error(errs.ToAggregate())
			}
		}
		if version, ok := o.GetLabels()["app.kubernetes.io/version"]; ok && version != "v1.2.3_build.1" {
			t.Errorf("%s has the version %s", key, version)
		}
	}
}

// containerPorts returns the ports of the only container by name. Its probes must ask one of them.
func containerPorts(t *testing.T, deployment *unstructured.Unstructured) map[string]int64 {
	t.Helper()
	container := podSpec(t, deployment)["containers"].([]any)[0].(map[string]any)
	ports := map[string]int64{}
	for _, p := range container["ports"].([]any) {
		ports[p.(map[string]any)["name"].(string)] = p.(map[string]any)["containerPort"].(int64)
	}
	for _, probe := range []string{"livenessProbe", "readinessProbe"} {
		if asked, _, _ := unstructured.NestedString(container, probe, "httpGet", "port"); asked != "probes" {
			t.Errorf("the %s asks the port %q", probe, asked)
		}
	}
	return ports
}

// TestChartRefusesWhatDoesNotFit: a field of the configuration that the rest of the release does not follow is refused with a sentence
// that says what to do; what agrees with the rest is taken.
func TestChartRefusesWhatDoesNotFit(t *testing.T) {
	for name, test := range map[string]struct {
		values []string
		// says is what the message must contain; nothing: the values are taken.
		says []string
	}{
		"no probes":                      {[]string{"--set-string=configuration.healthProbe.bindAddress=0"}, []string{"configuration.healthProbe.bindAddress", "leave it out"}},
		"probes for the pod alone":       {[]string{"--set=configuration.healthProbe.bindAddress=localhost:8081"}, []string{"configuration.healthProbe.bindAddress", "localhost:8081", ":PORT"}},
		"probes at a port of chance":     {[]string{"--set=configuration.healthProbe.bindAddress=:0"}, []string{"configuration.healthProbe.bindAddress"}},
		"monitoring without metrics":     {[]string{"--set=monitoring.enabled=true", "--set-string=configuration.metrics.bindAddress=0"}, []string{"configuration.metrics.bindAddress", "monitoring.enabled"}},
		"monitoring of the pod alone":    {[]string{"--set=monitoring.enabled=true", "--set=configuration.metrics.bindAddress=127.0.0.1:8080"}, []string{"configuration.metrics.bindAddress", "monitoring.enabled"}},
		"one port for both":              {[]string{"--set=configuration.metrics.bindAddress=:8081"}, []string{"configuration.healthProbe.bindAddress", "configuration.metrics.bindAddress", "8081"}},
		"a number for an address":        {[]string{"--set=configuration.metrics.bindAddress=0"}, []string{"metrics", "bindAddress", "string"}},
		"nothing for an object":          {[]string{"--set=configuration.populator=null"}, []string{"configuration/populator", "object"}},
		"another namespace":              {[]string{"--set=configuration.namespace=other"}, []string{"configuration.namespace", "--namespace other"}},
		"the release's namespace":        {[]string{"--set=configuration.namespace=cbt-populator"}, nil},
		"another account":                {[]string{"--set=configuration.populator.serviceAccountName=mine"}, []string{"configuration.populator.serviceAccountName", "cbt-populator-worker"}},
		"the release's account":          {[]string{"--set=configuration.populator.serviceAccountName=cbt-populator-worker"}, nil},
		"an image beside images":         {[]string{"--set=configuration.populator.image=registry.test/other:1"}, []string{"configuration.populator.image", "images.populator"}},
		"several leaders":                {[]string{"--set=replicas=2", "--set=configuration.leaderElection.enabled=false"}, []string{"configuration.leaderElection.enabled", "replicas"}},
		"Block volumes of OpenShift":     {[]string{"--set=openshift.blockVolumes=true"}, []string{"openshift.blockVolumes", "openshift.enabled"}},
		"one that does not wait to lead": {[]string{"--set=configuration.leaderElection.enabled=false"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"template", "x", chart, "--namespace=cbt-populator"}, test.values...)
			out, err := tool(t, "helm", append(args, images...)...)
			if len(test.says) == 0 {
				if err != nil {
					t.Errorf("refused: %v\n%s", err, out)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("the message does not contain %q:\n%s", want, out)
				}
			}
		})
	}
}
