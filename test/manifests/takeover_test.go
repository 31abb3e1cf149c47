package manifests

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// notOwned is what Helm says of objects that it has not made for this release.
const notOwned = "invalid ownership metadata"

// cluster is an API server, and a folder with a release, in which commands run.
type cluster struct {
	*testing.T
	kubeconfig, dir string
}

// try runs commands with the tools of CBT_BIN.
func (c cluster) try(script string) (string, error) {
	c.Helper()
	bin, err := filepath.Abs(os.Getenv("CBT_BIN"))
	if err != nil {
		c.Fatal(err)
	}
	cmd := exec.CommandContext(c.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c cluster) run(script string) string {
	c.Helper()
	out, err := c.try(script)
	if err != nil {
		c.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return out
}

// wantNotOwned runs a command that Helm must refuse.
func (c cluster) wantNotOwned(script string) {
	c.Helper()
	if out, err := c.try(script); err == nil || !strings.Contains(out, notOwned) {
		c.Errorf("%s: %v, want %q:\n%s", script, err, notOwned, out)
	}
}

// wantInstalled says which objects of the manifest are missing, but for its configuration, whose name ends in a digest, and which are not
// Helm's. There is one configuration, and the ChangedBlockRange is still there.
func (c cluster) wantInstalled(keys []string, byHelm bool) {
	c.Helper()
	var list unstructured.UnstructuredList
	if err := list.UnmarshalJSON([]byte(c.run("kubectl get -f install.yaml --ignore-not-found -o json"))); err != nil {
		c.Fatal(err)
	}
	there := map[string]bool{}
	for _, o := range list.Items {
		there[key(&o)] = o.GetAnnotations()["meta.helm.sh/release-name"] != ""
	}
	for _, want := range keys {
		kind, _, _ := strings.Cut(want, "/")
		ofHelm, found := there[want]
		if !found && kind != "ConfigMap" {
			c.Errorf("%s is missing", want)
		}
		if found && byHelm && !ofHelm && kind != "Namespace" {
			c.Errorf("Helm does not own %s", want)
		}
	}
	if found := strings.Fields(c.run("kubectl -n cbt-populator get configmap -l app.kubernetes.io/component=controller -o name")); len(found) != 1 {
		c.Errorf("configurations: %q", found)
	}
	if out := c.run("kubectl get changedblockranges -A -o name"); !strings.Contains(out, "/kept") {
		c.Errorf("the ChangedBlockRange is gone; there is %q", out)
	}
}

// TestChangeTheWayOfInstallation runs the page's commands on an API server, from a manifest to the chart and back, and to a release of
// another name.
func TestChangeTheWayOfInstallation(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Change the way of installation\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(section, -1)
	if len(blocks) != 2 {
		t.Fatalf("blocks of commands on the page: %q", blocks)
	}
	toChart, toManifest := blocks[0][1], blocks[1][1]

	dist, _ := release(t)
	install := unresolved.ReplaceAll(mustTool(t, "kubectl", "kustomize", root+"/config/default"), []byte("registry.test/$1:v0"))
	if err := os.WriteFile(filepath.Join(dist, "install.yaml"), install, 0o644); err != nil {
		t.Fatal(err)
	}
	keys := slices.Sorted(maps.Keys(objects(t, install)))
	c := cluster{T: t, kubeconfig: apiserver.Start(t).Kubeconfig, dir: dist}

	c.run("kubectl apply --server-side --force-conflicts -f install.yaml")
	c.run(`kubectl create -f - <<< '{apiVersion: cbt.storage.k8s.io/v1alpha1, kind: ChangedBlockRange, metadata: {namespace: default, name: kept}, spec: {toVolumeSnapshotName: s}}'`)
	helm := "helm upgrade --install cbt-populator cbt-populator-1.2.3.tgz --namespace cbt-populator"
	c.wantNotOwned(helm)
	c.run(toChart)
	c.wantInstalled(keys, true)
	c.run(helm) // an ordinary upgrade from now on

	// To another strategy, beside which the API server refuses what is left of the first one, and back.
	for _, upgrade := range []struct{ leads, want string }{{"false", "Recreate"}, {"true", "RollingUpdate"}} {
		c.run(helm + " --set configuration.leaderElection.enabled=" + upgrade.leads)
		if got := c.run("kubectl -n cbt-populator get deployment cbt-populator-controller -o jsonpath='{.spec.strategy.type}'"); got != upgrade.want {
			t.Errorf("leader election %s: the strategy is %s, want %s", upgrade.leads, got, upgrade.want)
		}
	}

	// Without the Job: nothing runs it here.
	c.run("helm uninstall cbt-populator --namespace cbt-populator --no-hooks")
	another := "helm install another cbt-populator-1.2.3.tgz --namespace cbt-populator"
	c.wantNotOwned(another)
	c.run(another + " --set crds.install=false")
	c.run("helm uninstall another --namespace cbt-populator --no-hooks")
	c.run(another + " --take-ownership")
	c.wantInstalled(keys, true)

	c.run(strings.ReplaceAll(toManifest, "name=cbt-populator", "name=another"))
	c.wantInstalled(keys, false)
	if out := c.run("helm list --all-namespaces --short"); strings.TrimSpace(out) != "" {
		t.Errorf("Helm knows of %s", out)
	}
}
