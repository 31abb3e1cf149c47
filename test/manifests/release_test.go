package manifests

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"
)

// fakeKo leaves its arguments in the file calls. Its images have the digest 1; where it is to list all, it begins with those of a
// platform.
const fakeKo = `#!/usr/bin/env bash
echo "$*" >> "${0%/*}/calls"
for argument in "$@"; do
  case $argument in
    --image-refs=*) printf 'registry.test/%s:v1@sha256:%d\n' controller 2 populator 2 controller 1 populator 1 > "${argument#*=}" ;;
  esac
done
case $1 in
  resolve) printf 'image: registry.test/%s:v1@sha256:1\n' controller populator ;;
  build) echo registry.test/kubectl-cbr:v1@sha256:1 ;;
esac
`

// release runs hack/release.sh beside a copy of what it reads, because it replaces the folder dist, and returns that and ko's calls.
func release(t *testing.T) (dist string, calls []string) {
	t.Helper()
	return releaseOf(t, "v1.2.3")
}

func releaseOf(t *testing.T, version string) (dist string, calls []string) {
	t.Helper()
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	top, bin := t.TempDir(), t.TempDir()
	for _, name := range []string{"charts", "config", "hack"} {
		if err := os.CopyFS(filepath.Join(top, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	helm, err := filepath.Abs(filepath.Join(os.Getenv("CBT_BIN"), "helm"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(helm, filepath.Join(bin, "helm")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "ko"), []byte(fakeKo), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(top, "hack", "release.sh"))
	// Without a platform no plugin is compiled.
	cmd.Env = append(os.Environ(), "VERSION="+version, "KO_DOCKER_REPO=registry.test", "BIN="+bin, "KUBECTL=true", "PLATFORMS=", "PLUGIN_PLATFORMS= ")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(bin, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(top, "dist"), strings.Split(strings.TrimSpace(string(text)), "\n")
}

// TestReleasePlatforms: the images of a release are for the platforms of every other build, which the pages name.
func TestReleasePlatforms(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, ".ko.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ko struct{ DefaultPlatforms []string }
	if err := sigsyaml.Unmarshal(text, &ko); err != nil || len(ko.DefaultPlatforms) == 0 {
		t.Fatalf("platforms of .ko.yaml: %v, %v", ko.DefaultPlatforms, err)
	}
	want := "--platform=" + strings.Join(ko.DefaultPlatforms, ",")
	_, calls := release(t)
	if len(calls) != 2 {
		t.Fatalf("calls of ko: %q", calls)
	}
	for _, call := range calls {
		if !slices.Contains(strings.Fields(call), want) {
			t.Errorf("ko is called without %s: %s", want, call)
		}
	}
}

// TestReleaseImages: the chart installs the images that install.yaml does, which are for every platform, and the list is of those.
func TestReleaseImages(t *testing.T) {
	dist, _ := release(t)
	list, err := os.ReadFile(filepath.Join(dist, "images.txt"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "registry.test/controller:v1@sha256:1\nregistry.test/populator:v1@sha256:1\nregistry.test/kubectl-cbr:v1@sha256:1\n"
	if string(list) != want {
		t.Errorf("images.txt has\n%swant\n%s", list, want)
	}
	charts, err := filepath.Glob(filepath.Join(dist, "*.tgz"))
	if err != nil || len(charts) != 1 {
		t.Fatalf("charts: %q, %v", charts, err)
	}
	values := mustTool(t, "helm", "show", "values", charts[0])
	for image := range strings.SplitSeq(strings.TrimSpace(want), "\n") {
		if named := strings.Contains(string(values), `"`+image+`"`); named == strings.Contains(image, "kubectl-cbr") {
			t.Errorf("%s: named by the chart: %v", image, named)
		}
	}
}

// TestPrereleasesAreNotTheLatest: neither for whoever pulls an image nor for whoever looks for a release.
func TestPrereleasesAreNotTheLatest(t *testing.T) {
	workflow, err := os.ReadFile(filepath.Join(root, ".github", "workflows", "release.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ci struct {
		Jobs map[string]struct{ Steps []struct{ Run string } }
	}
	if err := sigsyaml.Unmarshal(workflow, &ci); err != nil {
		t.Fatal(err)
	}
	steps := ci.Jobs["release"].Steps
	if len(steps) == 0 {
		t.Fatal("the workflow has no steps")
	}
	for version, tags := range map[string]string{
		"v1.2.3": "v1.2.3,latest", "v1.2.3+build-1": "v1.2.3_build-1,latest", "v1.2.3-rc.1": "v1.2.3-rc.1", "v1.2.3-rc.1+build": "v1.2.3-rc.1_build",
		"171351f": "171351f",
	} {
		t.Run(version, func(t *testing.T) {
			_, calls := releaseOf(t, version)
			for _, call := range calls {
				if !slices.Contains(strings.Fields(call), "--tags="+tags) {
					t.Errorf("ko is called without --tags=%s: %s", tags, call)
				}
			}
			if version[0] != 'v' {
				return // no tag of the workflow's
			}
			cmd := exec.CommandContext(t.Context(), "bash", "-ec", `gh() { echo "$*"; }`+"\n"+steps[len(steps)-1].Run)
			cmd.Env = append(os.Environ(), "GITHUB_REF_NAME="+version)
			out, err := cmd.CombinedOutput()
			words := strings.Fields(string(out))
			if err != nil || len(words) < 3 || words[2] != version || slices.Contains(words, "--prerelease") == strings.HasSuffix(tags, ",latest") {
				t.Errorf("%v, the release is created with %q", err, words)
			}
		})
	}
}

// TestReleaseIsOnThePage: docs/operations.md says of every file of a release what it is for.
func TestReleaseIsOnThePage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n### What a release has\n")
	section, _, _ = strings.Cut(section, "\n### ")
	dist, _ := release(t)
	files, err := os.ReadDir(dist)
	if err != nil || len(files) < 5 {
		t.Fatalf("files of a release: %v, %v", files, err)
	}
	for _, file := range files {
		if !strings.Contains(section, "`"+file.Name()+"`") {
			t.Errorf("the page does not name %s", file.Name())
		}
	}
}
