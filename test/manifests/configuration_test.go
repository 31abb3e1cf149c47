package manifests

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/internal/config"
)

// configuration returns the file that the chart makes of values, and what the controller reads from it. It must be valid.
func configuration(t *testing.T, rendered map[string]*unstructured.Unstructured) (string, *config.ControllerConfiguration) {
	t.Helper()
	text, _, err := unstructured.NestedString(rendered["ConfigMap/cbt-populator/cbt-populator-controller"].Object, "data", "controller.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "controller.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	// The Deployment says these in its environment.
	c.Namespace, c.Populator.Image = "cbt-populator", "registry.test/populator:1"
	if errs := c.Validate(); len(errs) > 0 {
		t.Errorf("the controller refuses its configuration: %v\n%s", errs.ToAggregate(), text)
	}
	return text, c
}

// podSpec returns the pod's part of a Deployment or Job.
func podSpec(t *testing.T, o *unstructured.Unstructured) map[string]any {
	t.Helper()
	if o == nil {
		t.Fatal("the object is missing")
	}
	spec, found, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
	if err != nil || !found {
		t.Fatalf("%s %s has no pod: %v", o.GetKind(), o.GetName(), err)
	}
	return spec
}

// TestPullSecretsReachAllPods: those of the chart's own pods are in their specs, those of the populators in the configuration.
func TestPullSecretsReachAllPods(t *testing.T) {
	for name, test := range map[string]struct{ values, own, populators []string }{
		"none":                            {nil, nil, nil},
		"both images":                     {[]string{"--set=images.pullSecrets={a,b}"}, []string{"a", "b"}, []string{"a", "b"}},
		"others for the populators":       {[]string{"--set=images.pullSecrets={a}", "--set=configuration.populator.imagePullSecrets={c}"}, []string{"a"}, []string{"c"}},
		"none for the populators":         {[]string{"--set=images.pullSecrets={a}", "--set-json=configuration.populator.imagePullSecrets=[]"}, []string{"a"}, nil},
		"other settings of the populator": {[]string{"--set=images.pullSecrets={a}", "--set=configuration.populator.streams=2"}, []string{"a"}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			rendered := template(t, test.values...)
			for _, key := range []string{"Deployment/cbt-populator/cbt-populator-controller", "Job/cbt-populator/cbt-populator-let-go"} {
				secrets, _, err := unstructured.NestedSlice(podSpec(t, rendered[key]), "imagePullSecrets")
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, secret := range secrets {
					got = append(got, secret.(map[string]any)["name"].(string))
				}
				if !slices.Equal(got, test.own) {
					t.Errorf("%s has the secrets %v, want %v", key, got, test.own)
				}
			}
			text, c := configuration(t, rendered)
			if got := c.Machinery().Pod.ImagePullSecrets; !slices.Equal(got, test.populators) {
				t.Errorf("populator pods have the secrets %v, want %v:\n%s", got, test.populators, text)
			}
		})
	}
}

// TestPopulatorResourcesAreTakenAsAWhole: as docs/configuration.md says, resources that are given replace requests and limits together.
func TestPopulatorResourcesAreTakenAsAWhole(t *testing.T) {
	shipped := `{requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 256Mi}}`
	for name, test := range map[string]struct{ given, want string }{
		"nothing":                           {"", shipped},
		"a request above the shipped limit": {`{"requests":{"memory":"512Mi"}}`, `{requests: {memory: 512Mi}}`},
		"a limit below the shipped request": {`{"limits":{"memory":"32Mi"}}`, `{limits: {memory: 32Mi}}`},
		"both":                              {`{"requests":{"cpu":"1"},"limits":{"cpu":"2"}}`, `{requests: {cpu: "1"}, limits: {cpu: "2"}}`},
		"neither":                           {`{}`, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			var values []string
			if test.given != "" {
				values = append(values, "--set-json=configuration.populator.resources="+test.given)
			}
			text, _ := configuration(t, template(t, values...))
			var file struct {
				Populator struct{ Resources any }
			}
			if err := sigsyaml.Unmarshal([]byte(text), &file); err != nil {
				t.Fatal(err)
			}
			var want any
			if err := sigsyaml.Unmarshal([]byte(test.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, file.Populator.Resources); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
