package manifests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"
)

var (
	// shown is a kustomization on a page.
	shown = regexp.MustCompile("(?ms)^```yaml\n(# kustomization\\.yaml\n.*?)^```")
	// ours is a folder of this repository as kustomize fetches it.
	ours = regexp.MustCompile(`github\.com/cbt-populator/cbt-populator//?([a-z/-]+)(\?ref=v[0-9.]+)?`)
	// unresolved is an image that ko has not built yet.
	unresolved = regexp.MustCompile(`ko://\S+/cmd/(\w+)`)
)

// TestKustomizationsOfThePages builds what the pages show, with this checkout in place of the repository and with a release's install.yaml
// beside it, as ko makes it. What is installed must be images, and labelled as the kustomization says.
func TestKustomizationsOfThePages(t *testing.T) {
	install := unresolved.ReplaceAll(mustTool(t, "kubectl", "kustomize", root+"/config/default"), []byte("registry.test/$1@sha256:"+strings.Repeat("0", 64)))
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	checked := map[string]int{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range shown.FindAllSubmatch(text, -1) {
			name := filepath.Base(page)
			checked[name]++
			t.Run(fmt.Sprintf("%s %d", name, i+1), func(t *testing.T) {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "install.yaml"), install, 0o644); err != nil {
					t.Fatal(err)
				}
				kustomization := ours.ReplaceAllStringFunc(string(m[1]), func(folder string) string {
					found := ours.FindStringSubmatch(folder)
					if found[2] == "" {
						t.Errorf("%s is of no release", folder)
					}
					return relative(t, dir, filepath.Join(root, found[1]))
				})
				checkInstallable(t, kustomization, build(t, dir, kustomization))
			})
		}
	}
	if checked["operations.md"] == 0 || checked["cross-namespace.md"] == 0 {
		t.Errorf("kustomizations on pages: %v", checked)
	}
}

func checkInstallable(t *testing.T, kustomization string, built []byte) {
	t.Helper()
	if bytes.Contains(built, []byte("ko://")) {
		t.Errorf("it installs images that were not built:\n%s", regexp.MustCompile(`.*ko://.*`).FindAll(built, -1))
	}
	rendered := objects(t, built)
	container := podSpec(t, rendered["Deployment/cbt-populator/cbt-populator-controller"])["containers"].([]any)[0].(map[string]any)
	variable := container["env"].([]any)[0].(map[string]any)
	for what, image := range map[string]any{"controller": container["image"], "populator": variable["value"]} {
		if name := fmt.Sprint(image); !strings.HasPrefix(name, "registry.") || !strings.Contains(name, "/"+what) {
			t.Errorf("the image of the %s is %s", what, name)
		}
	}
	var said struct {
		Labels []struct{ Pairs map[string]string }
	}
	if err := sigsyaml.Unmarshal([]byte(kustomization), &said); err != nil {
		t.Fatal(err)
	}
	for _, add := range said.Labels {
		for label, value := range add.Pairs {
			for _, key := range []string{"ServiceMonitor/cbt-populator/cbt-populator", "PrometheusRule/cbt-populator/cbt-populator"} {
				if rendered[key] == nil || rendered[key].GetLabels()[label] != value {
					t.Errorf("%s lacks the label %s: %s", key, label, value)
				}
			}
		}
	}
}

// TestReadmeListsEveryPageOnce: whoever looks for a page finds one row for it.
func TestReadmeListsEveryPageOnce(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, row := range regexp.MustCompile(`(?m)^\| \[.*`).FindAllString(string(text), -1) {
		first, _, _ := strings.Cut(row[1:], "|")
		for _, link := range regexp.MustCompile(`\]\((docs/[a-z-]+\.md)\)`).FindAllStringSubmatch(first, -1) {
			listed[link[1]]++
		}
	}
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	for _, page := range pages {
		if name := "docs/" + filepath.Base(page); listed[name] != 1 {
			t.Errorf("%s is listed %d times", name, listed[name])
		}
	}
}
