package build

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/modfile"
)

func TestStampChangesWithEveryInput(t *testing.T) {
	base := stamp([]byte("mod"), []byte("sum"), "go1.26 linux amd64", "./x", "-s -w")
	for name, other := range map[string]string{
		"go.mod":    stamp([]byte("mod2"), []byte("sum"), "go1.26 linux amd64", "./x", "-s -w"),
		"go.sum":    stamp([]byte("mod"), []byte("sum2"), "go1.26 linux amd64", "./x", "-s -w"),
		"toolchain": stamp([]byte("mod"), []byte("sum"), "go1.27 linux amd64", "./x", "-s -w"),
		"package":   stamp([]byte("mod"), []byte("sum"), "go1.26 linux amd64", "./y", "-s -w"),
		"flags":     stamp([]byte("mod"), []byte("sum"), "go1.26 linux amd64", "./x", "-s"),
		"border":    stamp([]byte("mods"), []byte("um"), "go1.26 linux amd64", "./x", "-s -w"),
	} {
		if other == base {
			t.Errorf("a different %s has the same stamp", name)
		}
	}
	if again := stamp([]byte("mod"), []byte("sum"), "go1.26 linux amd64", "./x", "-s -w"); again != base {
		t.Error("the same inputs have two stamps")
	}
}

func TestCurrentNeedsBinaryAndStamp(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "tool")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if current(binary, "abc") {
		t.Error("a missing binary is current")
	}
	write(binary, "program")
	if current(binary, "abc") {
		t.Error("a binary without stamp is current")
	}
	write(stampFile(binary), "abc\n")
	if !current(binary, "abc") {
		t.Error("a stamped binary is not current")
	}
	if current(binary, "abd") {
		t.Error("a binary with another stamp is current")
	}
	write(binary, "")
	if current(binary, "abc") {
		t.Error("an empty binary, as an interrupted copy leaves it, is current")
	}
}

func TestKubernetesLearnsItsVersion(t *testing.T) {
	got := ldflags(Component{Module: "k8s.io/kubernetes"}, "v1.36.3")
	want := "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3" +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := ldflags(Component{Module: "github.com/google/ko"}, "v0.19.1"); got != "-s -w" {
		t.Errorf("another module's flags are %q", got)
	}
}

const kubernetesMod = `module k8s.io/kubernetes
require (
	k8s.io/api v0.0.0
	k8s.io/apiserver v0.0.0
	k8s.io/klog/v2 v2.140.0
	k8s.io/kube-openapi v0.0.0-20260317180543-43fb72c5454a
	golang.org/x/net v0.0.0
)`

func parse(t *testing.T, text string) *modfile.File {
	t.Helper()
	f, err := modfile.ParseLax("go.mod", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStagingReplaces(t *testing.T) {
	got, err := stagingReplaces(parse(t, kubernetesMod), "v1.36.3")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"k8s.io/api => k8s.io/api v0.36.3", "k8s.io/apiserver => k8s.io/apiserver v0.36.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := stagingReplaces(parse(t, kubernetesMod), "v2.0.0"); err == nil {
		t.Error("a version that is not v1.x has staging modules")
	}
}

func TestHalfDoneBumpIsNamed(t *testing.T) {
	kubernetes := parse(t, kubernetesMod)
	const good = "module x\nreplace k8s.io/api => k8s.io/api v0.36.3\nreplace k8s.io/apiserver => k8s.io/apiserver v0.36.3\n"
	// The strict parser, because the lenient one drops replace lines.
	component := func(text string) *modfile.File {
		f, err := modfile.Parse("go.mod", []byte(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if err := checkStaging(component(good), kubernetes, "v1.36.3"); err != nil {
		t.Error(err)
	}
	err := checkStaging(component(good), kubernetes, "v1.36.4")
	if err == nil || !strings.Contains(err.Error(), "replace k8s.io/api => k8s.io/api v0.36.4") {
		t.Errorf("the missing line is not named: %v", err)
	}
}

// The pins in this checkout: every component names a module that its go.mod
// requires, and the Kubernetes replaces fit its version.
func TestPins(t *testing.T) {
	root := "../../../.."
	for _, c := range append(Components(), Tools()...) {
		if c.Module == "" {
			continue
		}
		version, err := ModuleVersion(filepath.Join(root, c.Dir), c.Module)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if c.Module != "k8s.io/kubernetes" {
			continue
		}
		f, err := parseGoMod(filepath.Join(root, c.Dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range f.Replace {
			if want := "v0." + strings.TrimPrefix(version, "v1."); r.New.Version != want {
				t.Errorf("%s is replaced by %s; kubernetes %s needs %s", r.Old.Path, r.New.Version, version, want)
			}
		}
	}
}

func TestSelect(t *testing.T) {
	got, err := Select([]string{"kubectl", "helm", "etcd"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"etcd", "kubectl", "helm"}, Names(got)); diff != "" {
		t.Error(diff)
	}
	all, err := Select(nil)
	if err != nil || slices.Contains(Names(all), "helm") {
		t.Errorf("all components: %v, %v", Names(all), err)
	}
	if _, err := Select([]string{"etcd", "kubelt"}); err == nil || !strings.Contains(err.Error(), `"kubelt"`) {
		t.Errorf("an unknown component is not named: %v", err)
	}
}

func TestProgressIsOneLineAComponent(t *testing.T) {
	var out bytes.Buffer
	p := &Progress{Out: &out}
	p.reuse("etcd")
	p.reuse("kubectl")
	p.start("building kubelet v1.36.3 (3/4)")("12 s")
	p.reuse("ko")
	p.finish()
	want := "built already: etcd kubectl\nbuilding kubelet v1.36.3 (3/4) … 12 s\nbuilt already: ko\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
