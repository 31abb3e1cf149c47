package manifests

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// scriptDeadline bounds a script whose kubectl answers at once.
const scriptDeadline = 2 * time.Minute

// fakeKubectl leaves in its folder what it was called with, in the file calls, and the file that it was first given to delete, as deleted.
// Calls whose arguments begin with ANSWERED print ANSWER, the first TIMES of them; others print nothing. Those that begin with FAILS
// fail. What kustomize builds comes from the real kubectl.
const fakeKubectl = `#!/usr/bin/env bash
if [[ $1 == kustomize ]]; then exec "$REAL_KUBECTL" "$@"; fi
cd "${0%/*}" || exit 1
echo "$*" >> calls
if [[ $1 == delete && ${*: -2:1} == -f && ! -e deleted ]]; then cp "${*: -1}" deleted; fi
if [[ -n "${ANSWERED:-}" && "$*" == "$ANSWERED"* && $(grep -c "^$ANSWERED" calls) -le ${TIMES:-1000} ]]; then echo "$ANSWER"; fi
if [[ -n "${FAILS:-}" && "$*" == "$FAILS"* ]]; then exit 1; fi
`

// fake is the folder of a kubectl without a cluster.
type fake string

func newFake(t *testing.T) fake {
	t.Helper()
	f := fake(t.TempDir())
	if err := os.WriteFile(f.kubectl(), []byte(fakeKubectl), 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

// run runs a command from the top of the checkout, with variables of its own.
func (f fake) run(t *testing.T, env []string, command ...string) (string, error) {
	t.Helper()
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), scriptDeadline)
	defer cancel()
	realKubectl, err := filepath.Abs(filepath.Join(os.Getenv("CBT_BIN"), "kubectl"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = root
	// Without the flags of a make that runs the tests.
	cmd.Env = append(os.Environ(), append(env, "REAL_KUBECTL="+realKubectl, "KUBECTL="+f.kubectl(), "MAKEFLAGS=", "MAKELEVEL=")...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (f fake) kubectl() string { return filepath.Join(string(f), "kubectl") }

// calls returns what kubectl was called with, but for kustomize.
func (f fake) calls(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(f), "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
}

// undeploy runs it for a folder.
func (f fake) undeploy(t *testing.T, folder string) (string, error) {
	t.Helper()
	return f.run(t, nil, "make", "--no-print-directory", "undeploy", "KUBECTL="+f.kubectl(), "BIN="+t.TempDir(), "KUSTOMIZATION="+folder)
}

// TestUndeployDeletesWhatWasDeployed: what the kustomization adds goes as well, and the switch for other namespaces also when nobody names
// it.
func TestUndeployDeletesWhatWasDeployed(t *testing.T) {
	components, err := filepath.Glob(root + "/config/components/*")
	if err != nil || len(components) < 3 {
		t.Fatalf("components: %v, %v", components, err)
	}
	dir := t.TempDir()
	var folders []string
	for _, component := range components {
		if filepath.Base(component) != "network-policy" { // part of config/default
			folders = append(folders, relative(t, dir, component))
		}
	}
	everything := "resources: [" + relative(t, dir, root+"/config/default") + "]\ncomponents: [" + strings.Join(folders, ", ") + "]\n"
	for name, test := range map[string]struct {
		folder   string
		deployed []byte
	}{
		"config/default":              {"config/default", mustTool(t, "kubectl", "kustomize", root+"/config/default")},
		"all components":              {dir, build(t, dir, everything)},
		"a switch that was not named": {"config/default", mustTool(t, "kubectl", "kustomize", root+"/config/with-cross-namespace")},
	} {
		t.Run(name, func(t *testing.T) {
			kubectl := newFake(t)
			if out, err := kubectl.undeploy(t, test.folder); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			stream, err := os.ReadFile(filepath.Join(string(kubectl), "deleted"))
			if err != nil {
				t.Fatalf("nothing is deleted: %v; calls: %q", err, kubectl.calls(t))
			}
			deleted := objects(t, stream)
			for key := range objects(t, test.deployed) {
				// The name of a ConfigMap ends in a digest; it goes with the namespace.
				if deleted[key] == nil && !strings.HasPrefix(key, "ConfigMap/") {
					t.Errorf("%s is left", key)
				}
			}
		})
	}
}

// TestUndeployLetsGoTwice: what has begun between the first time and the end of the controller is let go as well, or the deletion of the
// CustomResourceDefinition does not end. The controller is gone before its rights are, so that it is not refused in its last moment.
func TestUndeployLetsGoTwice(t *testing.T) {
	kubectl := newFake(t)
	t.Setenv("ANSWERED", "get --ignore-not-found -f ")
	t.Setenv("ANSWER", "somewhere controller")
	if out, err := kubectl.undeploy(t, "config/default"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var steps []string
	for _, call := range kubectl.calls(t) {
		switch {
		case strings.HasPrefix(call, "get crd "):
			steps = append(steps, "let go")
		case call == "-n somewhere delete deployment controller --cascade=foreground":
			steps = append(steps, "delete the controller")
		case strings.HasPrefix(call, "delete --ignore-not-found --wait -f "):
			steps = append(steps, "delete")
		}
	}
	if want := []string{"let go", "delete the controller", "let go", "delete"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q; calls: %q", steps, want, kubectl.calls(t))
	}
}

// TestUndeployKnowsWhatItDeletesFirst: a folder that does not build costs no ChangedBlockRange.
func TestUndeployKnowsWhatItDeletesFirst(t *testing.T) {
	kubectl := newFake(t)
	out, err := kubectl.undeploy(t, t.TempDir())
	if err == nil {
		t.Errorf("it succeeds:\n%s", out)
	}
	if calls := kubectl.calls(t); len(calls) > 0 {
		t.Errorf("a folder without a kustomization: %q\n%s", calls, out)
	}
}

// TestLetGoWithoutTheKind: claims are let go also when the definition of ChangedBlockRanges has gone before them.
func TestLetGoWithoutTheKind(t *testing.T) {
	// This one says so for good: the script ends with the words that the claim is still held.
	kubectl := newFake(t)
	out, err := kubectl.run(t, []string{"PATIENCE=0", "ANSWERED=get persistentvolumeclaims", "ANSWER=backup changes 0"}, "hack/let-go.sh")
	calls := kubectl.calls(t)
	if !slices.ContainsFunc(calls, func(call string) bool {
		return strings.HasPrefix(call, "-n backup patch persistentvolumeclaim changes ")
	}) {
		t.Errorf("the claim is not patched: %v, %q\n%s", err, calls, out)
	}
	if slices.ContainsFunc(calls, func(call string) bool {
		return strings.HasPrefix(call, "delete ") || strings.HasPrefix(call, "get changedblockranges")
	}) {
		t.Errorf("it asks for a kind that is not there: %q", calls)
	}
}

// TestLetGoWhileTheKindGoes: the definition may go between two questions. Then no range is held, and claims are asked for all the same.
func TestLetGoWhileTheKindGoes(t *testing.T) {
	for _, fails := range []string{"delete changedblockranges", "get changedblockranges"} {
		t.Run(fails, func(t *testing.T) {
			kubectl := newFake(t)
			out, err := kubectl.run(t, []string{"PATIENCE=0", "ANSWERED=get crd ", "ANSWER=customresourcedefinition", "TIMES=1", "FAILS=" + fails}, "hack/let-go.sh")
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			calls := kubectl.calls(t)
			for _, want := range []string{fails, "get persistentvolumeclaims"} {
				if !slices.ContainsFunc(calls, func(call string) bool { return strings.HasPrefix(call, want) }) {
					t.Errorf("no call begins with %q: %q", want, calls)
				}
			}
		})
	}
}
