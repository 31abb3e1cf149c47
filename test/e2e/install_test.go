//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const (
	// localRegistry is the local cluster's; images of the release go there.
	localRegistry = "127.0.0.1:15000"
	release       = "v0.0.1-e2e"
	// releaseDeadline bounds a release, which compiles the programs for all platforms.
	releaseDeadline = 25 * time.Minute
)

// releasePlatforms returns the platforms of a release's images and of its plugin, and what has make build no others. With -short
// it is the machine's only: to compile for all takes minutes.
func releasePlatforms() (images, plugins, arguments []string) {
	if !testing.Short() {
		return []string{"linux/amd64", "linux/arm64"}, []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}, nil
	}
	own := []string{"linux/" + runtime.GOARCH}
	return own, own, []string{"PLATFORMS=" + own[0], "PLUGIN_PLATFORMS=" + own[0]}
}

// make runs a target of the checkout's Makefile.
func (w *world) make(limit time.Duration, args ...string) {
	w.Helper()
	if err := runMake(limit, args...); err != nil {
		w.Fatal(err)
	}
}

func runMake(limit time.Duration, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", append([]string{"--no-print-directory", "-C", "../.."}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (w *world) helm(args ...string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "helm", args...).CombinedOutput(); err != nil {
		w.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestInstallations removes the controller while claims wait and others are filled, installs a release by its static manifest
// and by its chart, upgrades that in the middle of populations, and puts back what the other tests expect. It is not
// parallel: nothing else runs meanwhile.
func TestInstallations(t *testing.T) {
	w := newWorldAlone(t)
	_, _, platforms := releasePlatforms()
	released := make(chan error, 1)
	go func() {
		released <- runMake(releaseDeadline, append(platforms, "release-manifests", "VERSION="+release, "KO_DOCKER_REPO="+localRegistry+"/release",
			"KO_FLAGS=--base-import-paths --insecure-registry", "KO_DEFAULTBASEIMAGE="+localRegistry+"/base")...)
	}()
	w.guide("snap-1", "snap-2")
	installing.from = time.Now()
	t.Cleanup(func() {
		w.make(5*time.Minute, "deploy-local")
		installing.to = time.Now()
	})

	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("filled", "delta"))
	w.awaitBound("filled")
	w.create(listClaim("waiting", "not-there-yet"), ranges("refused", "snap-1", "gone"), listClaim("stuck", "refused"))
	// Two runs of make would write the same folder.
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	w.checkRelease("../../dist")
	w.make(5*time.Minute, "undeploy", "KUSTOMIZATION=config/with-cross-namespace")
	w.wantNothingHanging("waiting", "stuck")
	w.tools("reader", "filled")
	w.wantExtents("the list, after the controller has gone", w.readList("reader", "filled", "JSON"), blocks(2, 4, 9))

	w.run(nil, "apply", "--server-side", "-f", "../../dist/install.yaml")
	w.awaitController(1)
	w.wantVersionLabels()
	w.create(ranges("again", "snap-1", "snap-2"), listClaim("by-manifest", "again"))
	w.awaitBound("by-manifest")
	w.shell(strings.Replace(w.onPage("docs/operations.md", "Uninstall", "sh"), "-f install.yaml", "-f dist/install.yaml", 1))
	w.wantNothingHanging("waiting", "stuck")

	w.upgradeInMidFlight("../../dist")
	held := listClaim("held", "held")
	held.Spec.StorageClassName = w.classWithoutProvisioner(storagev1.VolumeBindingImmediate)
	w.create(ranges("held", "snap-1", "snap-2"), held)
	w.eventually("the claim is being populated", patience, func(ctx context.Context) (bool, string) {
		var primes corev1.PersistentVolumeClaimList
		err := api.List(ctx, &primes, client.InNamespace(populatorNS), client.HasLabels{v1alpha1.LabelClaimUID})
		return len(primes.Items) == 1, fmt.Sprint(len(primes.Items), " prime claims, ", err)
	})
	w.helm("uninstall", "cbt-populator", "--namespace", populatorNS, "--wait")
	w.wantLetGo("held", "held")
	w.run(nil, "delete", "changedblockranges", "--all", "--all-namespaces", "--timeout=60s")
	// Helm keeps the CustomResourceDefinition, and whoever installs otherwise later owns it.
	w.run(nil, "delete", "namespace", populatorNS, "--wait")
	w.run(nil, "delete", "crd", "changedblockranges.cbt.storage.k8s.io", "--wait")
}

// upgradeInMidFlight installs the chart, and upgrades it while claims are being filled: all of them become Bound.
func (w *world) upgradeInMidFlight(dist string) {
	w.Helper()
	charts, err := filepath.Glob(filepath.Join(dist, "cbt-populator-*.tgz"))
	if err != nil || len(charts) != 1 {
		w.Fatalf("charts in the release: %v, %v", charts, err)
	}
	w.helm("install", "cbt-populator", charts[0], "--namespace", populatorNS, "--create-namespace", "--wait")
	w.create(ranges("upgraded", "snap-1", "snap-2"))
	var claims []string
	for i := range 12 {
		name := fmt.Sprintf("by-chart-%d", i)
		claims = append(claims, name)
		w.create(listClaim(name, "upgraded"))
	}
	w.eventually("populators run", patience, func(ctx context.Context) (bool, string) { return w.runningPopulators(ctx) > 0, "none" })
	w.helm("upgrade", "cbt-populator", charts[0], "--namespace", populatorNS, "--set", "replicas=2", "--set", "configuration.logging.verbosity=1", "--wait")
	w.awaitBound(claims...)
	w.awaitController(2)
}

// wantNothingHanging says which claims still carry a finalizer of ours, and which of our objects are still there.
func (w *world) wantNothingHanging(claims ...string) {
	w.Helper()
	w.eventually("nothing of ours is left", patience, func(ctx context.Context) (bool, string) {
		for _, name := range claims {
			var c corev1.PersistentVolumeClaim
			if err := w.get(name, &c); err != nil {
				return false, err.Error()
			}
			for _, f := range c.Finalizers {
				if strings.Contains(f, v1alpha1.GroupName) {
					return false, fmt.Sprintf("claim %s has the finalizer %s", name, f)
				}
			}
		}
		err := api.Get(ctx, client.ObjectKey{Name: populatorNS}, &corev1.Namespace{})
		return apierrors.IsNotFound(err), "the namespace is still there"
	})
}

// wantLetGo says what Helm left on a claim that was being populated and on its ChangedBlockRange, of what was made for them, and of
// what did the work.
func (w *world) wantLetGo(claim, cbr string) {
	w.Helper()
	var c corev1.PersistentVolumeClaim
	var r v1alpha1.ChangedBlockRange
	if err := errors.Join(w.get(claim, &c), w.get(cbr, &r)); err != nil {
		w.Fatal(err)
	}
	for _, f := range append(c.Finalizers, r.Finalizers...) {
		if strings.Contains(f, v1alpha1.GroupName) {
			w.Errorf("after helm uninstall, claim %s or its ChangedBlockRange has the finalizer %s", claim, f)
		}
	}
	left := string(w.run(nil, "-n", populatorNS, "get", "pods,persistentvolumeclaims,jobs,roles,rolebindings,serviceaccounts", "-o", "name"))
	for name := range strings.Lines(left) {
		if strings.Contains(name, "cbt-populator") || strings.Contains(name, "prime-") || strings.Contains(name, "populate-") {
			w.Errorf("after helm uninstall there is %s", name)
		}
	}
}

// checkRelease looks at what a release consists of.
func (w *world) checkRelease(dist string) {
	w.Helper()
	imagePlatforms, pluginPlatforms, _ := releasePlatforms()
	files := []string{"install.yaml", "let-go.sh", "images.txt", "cbr.yaml", "SHA256SUMS"}
	for _, platform := range pluginPlatforms {
		files = append(files, "kubectl-cbr_"+strings.ReplaceAll(platform, "/", "_")+".tar.gz")
	}
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(dist, name)); err != nil {
			w.Errorf("the release lacks %s", name)
		}
	}
	manifest, err := os.ReadFile(filepath.Join(dist, "install.yaml"))
	if err != nil {
		w.Fatal(err)
	}
	if strings.Contains(string(manifest), "ko://") {
		w.Error("install.yaml has images that were not built")
	}
	images := regexp.MustCompile(`127\.0\.0\.1:15000/release/\S+@sha256:[0-9a-f]{64}`).FindAllString(string(manifest), -1)
	if len(images) != 2 {
		w.Fatalf("install.yaml names the images %v, want two by digest", images)
	}
	for _, image := range images {
		name, digest, _ := strings.Cut(strings.TrimPrefix(image, localRegistry+"/"), "@")
		name, _, _ = strings.Cut(name, ":")
		base := "http://" + localRegistry + "/v2/" + name + "/manifests/"
		index := w.fetch(base + digest)
		for _, platform := range imagePlatforms {
			// The image of a single platform has no index.
			if _, architecture, _ := strings.Cut(platform, "/"); len(imagePlatforms) > 1 && !strings.Contains(index, `"`+architecture+`"`) {
				w.Errorf("%s has no image for %s:\n%s", image, architecture, index)
			}
		}
		if sbom := w.fetch(base + strings.Replace(digest, ":", "-", 1) + ".sbom"); !strings.Contains(sbom, "spdx") {
			w.Errorf("%s has no bill of materials:\n%s", image, sbom)
		}
	}
	krew, err := os.ReadFile(filepath.Join(dist, "cbr.yaml"))
	if err != nil {
		w.Fatal(err)
	}
	for _, platform := range pluginPlatforms {
		if digest := "{{SHA256_" + strings.ReplaceAll(platform, "/", "_"); strings.Contains(string(krew), digest) || strings.Contains(string(krew), "{{VERSION") {
			w.Errorf("the krew manifest was not filled in for %s:\n%s", platform, krew)
		}
	}
}

// fetch reads a manifest of the local registry.
func (w *world) fetch(url string) string {
	w.Helper()
	out, err := exec.Command("curl", "-sSf", "-H", "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json", url).CombinedOutput()
	if err != nil {
		w.Errorf("get %s: %v\n%s", url, err, out)
	}
	return string(out)
}

func (w *world) awaitController(replicas int) {
	w.Helper()
	w.run(nil, "-n", populatorNS, "rollout", "status", "deployment/cbt-populator-controller", "--timeout=180s")
	var pods corev1.PodList
	w.eventually(fmt.Sprintf("%d controllers run", replicas), patience, func(ctx context.Context) (bool, string) {
		if err := api.List(ctx, &pods, client.InNamespace(populatorNS), client.MatchingLabels{"app.kubernetes.io/component": "controller"}); err != nil {
			return false, err.Error()
		}
		return len(pods.Items) == replicas, fmt.Sprintf("%d do", len(pods.Items))
	})
}

// wantVersionLabels looks for the release's version on what was installed.
func (w *world) wantVersionLabels() {
	w.Helper()
	for _, list := range []client.ObjectList{&corev1.PodList{}, &corev1.ServiceAccountList{}} {
		if err := api.List(context.Background(), list, client.InNamespace(populatorNS), client.MatchingLabels{"app.kubernetes.io/version": release}); err != nil {
			w.Fatal(err)
		}
		var items []metav1.Object
		switch l := list.(type) {
		case *corev1.PodList:
			for i := range l.Items {
				items = append(items, &l.Items[i])
			}
		case *corev1.ServiceAccountList:
			for i := range l.Items {
				items = append(items, &l.Items[i])
			}
		}
		if len(items) == 0 {
			w.Errorf("no %T has the label of version %s", list, release)
		}
	}
}
