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

// fakeKo leaves its arguments in the file calls and names two images.
const fakeKo = `#!/usr/bin/env bash
echo "$*" >> "${0%/*}/calls"
for argument in "$@"; do
  case $argument in
    --image-refs=*) printf 'registry.test/%s:v1@sha256:1\n' controller populator > "${argument#*=}" ;;
  esac
done
[[ $1 != resolve ]] || cat
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
