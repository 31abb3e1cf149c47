// Package build makes the cluster's binaries from pinned Go modules and
// keeps each one until what it was built from changes.
package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// Component is one binary.
type Component struct {
	// Name is the binary's name in bin.
	Name string
	// Dir is the folder, relative to the checkout, whose go.mod pins it.
	Dir string
	// Package is what `go build` is given there.
	Package string
	// Module is the module whose version is the component's; empty for the
	// project's own programs, which are always built (the Go cache knows what changed).
	Module string
}

const pinned = "test/cluster/components/"

// Components are all binaries, in the order in which they are built: the
// three that tests with only an API server need come first.
func Components() []Component {
	kubernetes := func(name string) Component {
		return Component{Name: name, Dir: pinned + "kubernetes", Package: "k8s.io/kubernetes/cmd/" + name, Module: "k8s.io/kubernetes"}
	}
	snapshotter := func(name string) Component {
		const module = "github.com/kubernetes-csi/external-snapshotter/v8"
		return Component{Name: name, Dir: pinned + "external-snapshotter", Package: module + "/cmd/" + name, Module: module}
	}
	return []Component{
		{Name: "etcd", Dir: pinned + "etcd", Package: "go.etcd.io/etcd/server/v3", Module: "go.etcd.io/etcd/server/v3"},
		kubernetes("kube-apiserver"),
		kubernetes("kubectl"),
		kubernetes("kube-controller-manager"),
		kubernetes("kube-scheduler"),
		kubernetes("kubelet"),
		kubernetes("kube-proxy"),
		snapshotter("snapshot-controller"),
		snapshotter("csi-snapshotter"),
		{Name: "csi-provisioner", Dir: pinned + "external-provisioner",
			Package: "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
			Module:  "github.com/kubernetes-csi/external-provisioner/v6"},
		{Name: "csi-snapshot-metadata", Dir: pinned + "external-snapshot-metadata",
			Package: "github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata",
			Module:  "github.com/kubernetes-csi/external-snapshot-metadata"},
		{Name: "csidriver", Dir: "test/csidriver", Package: "."},
		{Name: "pause", Dir: "test/cluster", Package: "./pause"},
		{Name: "cluster", Dir: "test/cluster", Package: "."},
	}
}

// Tools are the programs that the Makefile uses beside the cluster. They are built on request only.
func Tools() []Component {
	tool := func(name, module, folder string) Component {
		return Component{Name: name, Dir: pinned + name, Package: module + folder, Module: module}
	}
	return []Component{
		tool("ko", "github.com/google/ko", ""),
		tool("controller-gen", "sigs.k8s.io/controller-tools", "/cmd/controller-gen"),
		tool("golangci-lint", "github.com/golangci/golangci-lint/v2", "/cmd/golangci-lint"),
		tool("go-licenses", "github.com/google/go-licenses", ""),
		tool("govulncheck", "golang.org/x/vuln", "/cmd/govulncheck"),
		tool("helm", "helm.sh/helm/v4", "/cmd/helm"),
	}
}

// Select returns the named components and tools in build order, for no name all components.
func Select(names []string) ([]Component, error) {
	if len(names) == 0 {
		return Components(), nil
	}
	all := append(Components(), Tools()...)
	var chosen []Component
	for _, c := range all {
		if slices.Contains(names, c.Name) {
			chosen = append(chosen, c)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(c Component) bool { return c.Name == name }) {
			return nil, fmt.Errorf("component %q is unknown; there are %s", name, strings.Join(Names(all), ", "))
		}
	}
	return chosen, nil
}

// Names returns the components' names in their order.
func Names(components []Component) []string {
	names := make([]string, len(components))
	for i, c := range components {
		names[i] = c.Name
	}
	return names
}

// ModuleVersion returns the version of a module that the go.mod in dir
// requires.
func ModuleVersion(dir, module string) (string, error) {
	f, err := parseGoMod(dir)
	if err != nil {
		return "", err
	}
	for _, r := range f.Require {
		if r.Mod.Path == module {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", filepath.Join(dir, "go.mod"), module)
}

func parseGoMod(dir string) (*modfile.File, error) {
	path := filepath.Join(dir, "go.mod")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("pinned version: %w", err)
	}
	f, err := modfile.Parse(path, data, nil)
	if err != nil {
		return nil, fmt.Errorf("pinned version: %w", err)
	}
	return f, nil
}

// ldflags returns the linker flags of a component. Kubernetes learns its
// version from the linker; without it the API server calls itself v0.0.0 and
// clients that compare versions refuse it.
func ldflags(c Component, version string) string {
	flags := "-s -w"
	if c.Module == "k8s.io/kubernetes" {
		major, minor, _ := strings.Cut(strings.TrimPrefix(semver.MajorMinor(version), "v"), ".")
		const at = " -X k8s.io/component-base/version."
		flags += at + "gitVersion=" + version + at + "gitMajor=" + major + at + "gitMinor=" + minor
	}
	return flags
}

// stagingReplaces returns the replace lines, "path => path version", that a
// module needs which requires k8s.io/kubernetes at the given version: its own
// go.mod asks for its staging modules at v0.0.0, which exist nowhere.
func stagingReplaces(kubernetes *modfile.File, version string) ([]string, error) {
	rest, ok := strings.CutPrefix(version, "v1.")
	if !ok {
		return nil, fmt.Errorf("kubernetes version %q is not v1.x.y", version)
	}
	var lines []string
	for _, r := range kubernetes.Require {
		if strings.HasPrefix(r.Mod.Path, "k8s.io/") && r.Mod.Version == "v0.0.0" {
			lines = append(lines, fmt.Sprintf("%s => %s v0.%s", r.Mod.Path, r.Mod.Path, rest))
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// checkStaging reports the staging modules whose replace lines do not fit
// the required Kubernetes version, as after a bump that forgot them.
func checkStaging(component, kubernetes *modfile.File, version string) error {
	want, err := stagingReplaces(kubernetes, version)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, r := range component.Replace {
		have[fmt.Sprintf("%s => %s %s", r.Old.Path, r.New.Path, r.New.Version)] = true
	}
	var missing []string
	for _, line := range want {
		if !have[line] {
			missing = append(missing, "replace "+line)
		}
	}
	if len(missing) > 0 {
		return errors.New("its go.mod lacks these lines, which kubernetes " + version + " needs:\n" + strings.Join(missing, "\n"))
	}
	return nil
}

// dir returns the component's folder in the checkout.
func (c Component) dir(l layout.Layout) string { return filepath.Join(l.Source, c.Dir) }
