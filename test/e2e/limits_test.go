//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestQuota forbids more pods in the populator's namespace, and allows them once a claim has been refused. Quotas hold for everyone, so
// it does not run beside others.
func TestQuota(t *testing.T) {
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: w.ns, Namespace: populatorNS},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
	}
	if err := api.Create(context.Background(), quota); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(api.Delete(context.Background(), quota)); err != nil {
			t.Error(err)
		}
	})
	w.eventually("the quota counts", patience, func(ctx context.Context) (bool, string) {
		err := api.Get(ctx, client.ObjectKeyFromObject(quota), quota)
		_, counted := quota.Status.Hard[corev1.ResourcePods]
		return err == nil && counted, fmt.Sprint(err, quota.Status)
	})
	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"))
	refused := w.awaitNote("list", "PopulatorRejected")
	if !strings.Contains(refused, "exceeded quota: "+w.ns) {
		t.Errorf("the event does not name the quota: %s", refused)
	}
	w.kubectl("-n", populatorNS, "patch", "resourcequota", quota.Name, "--type=merge", "-p", `{"spec":{"hard":{"pods":"50"}}}`)
	w.eventually("the claim goes on", patience, func(context.Context) (bool, string) {
		var c corev1.PersistentVolumeClaim
		err := w.get("list", &c)
		return err == nil && c.Status.Phase == corev1.ClaimBound, fmt.Sprint(err, c.Status.Phase)
	})
	w.tools("backup", "list")
	w.wantExtents("after the quota", w.readList("backup", "list", blocklist.JSON), blocks(2, 4, 9))
}

// awaitNote waits for an event about a claim and returns its note.
func (w *world) awaitNote(claim, reason string) string {
	w.Helper()
	w.awaitEvent(claim, reason)
	return w.kubectl("get", "events", "--field-selector", "involvedObject.name="+claim+",reason="+reason, "-o", "jsonpath={.items[*].message}")
}

// TestFailedPodRetention has a controller that keeps failed pods for five seconds: the pod goes, and what it had to say stays. It
// replaces the controller's configuration, so it does not run beside others.
func TestFailedPodRetention(t *testing.T) {
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	w.configure(func(file string) string {
		return strings.Replace(file, "failedPodRetention: 1h", "failedPodRetention: 5s", 1)
	})
	list := listClaim("list", "delta")
	w.create(ranges("delta", "snap-1", "snap-2", func(s *v1alpha1.ChangedBlockRangeSpec) { s.MaxSizeInBytes = ptr.To[int64](100) }), list)
	w.awaitRefusal("delta", "list", v1alpha1.ReasonListTooLarge)
	w.eventually("the failed pod is gone", patience, func(ctx context.Context) (bool, string) {
		var pod corev1.Pod
		return apierrors.IsNotFound(api.Get(ctx, clientKey(populatorNS, "populate-"+string(list.UID)), &pod)), string(pod.Status.Phase)
	})
	w.awaitRefusal("delta", "list", v1alpha1.ReasonListTooLarge)

	// A ChangedBlockRange that asks for less takes its place.
	gone := ranges("delta", "", "")
	gone.Namespace = w.ns
	if err := api.Delete(context.Background(), gone); err != nil {
		t.Fatal(err)
	}
	w.eventually("the ChangedBlockRange is gone", terminating, func(context.Context) (bool, string) {
		var cbr v1alpha1.ChangedBlockRange
		return apierrors.IsNotFound(w.get("delta", &cbr)), strings.Join(cbr.Finalizers, ", ")
	})
	w.create(ranges("delta", "snap-1", "snap-2"))
	w.awaitBound("list")
}

// configure replaces the controller's configuration file until the test ends.
func (w *world) configure(change func(string) string) {
	w.Helper()
	const deployment = "deployment/cbt-populator-controller"
	const volume = `{.spec.template.spec.volumes[?(@.name=="configuration")].configMap.name}`
	own := w.ns + "-controller"
	use := func(configMap string) {
		w.run(nil, "-n", populatorNS, "patch", deployment, "-p",
			fmt.Sprintf(`{"spec":{"template":{"spec":{"volumes":[{"name":"configuration","configMap":{"name":%q}}]}}}}`, configMap))
		w.run(nil, "-n", populatorNS, "rollout", "status", deployment, "--timeout=180s")
	}
	before := string(w.run(nil, "-n", populatorNS, "get", deployment, "-o", "jsonpath="+volume))
	var configuration corev1.ConfigMap
	if err := api.Get(context.Background(), clientKey(populatorNS, before), &configuration); err != nil {
		w.Fatal(err)
	}
	changed := change(configuration.Data["controller.yaml"])
	if changed == configuration.Data["controller.yaml"] {
		w.Fatalf("the configuration %s does not have what is to be replaced:\n%s", before, changed)
	}
	replacement := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: own, Namespace: populatorNS},
		Data:       map[string]string{"controller.yaml": changed},
	}
	if err := api.Create(context.Background(), replacement); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		use(before)
		if err := api.Delete(context.Background(), replacement); err != nil {
			w.Error(err)
		}
	})
	use(own)
}

// TestNodeGivenUp plays a provisioner that cannot make the volume on the node which the scheduler chose: the scheduler is asked to
// choose again, for the claim and not for the prime claim that it does not know. There is only one node to choose.
func TestNodeGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.guide("snap-1", "snap-2")
	list := listClaim("list", "delta")
	list.Spec.StorageClassName = w.classWithoutProvisioner(storagev1.VolumeBindingWaitForFirstConsumer)
	w.create(ranges("delta", "snap-1", "snap-2"), list, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "backup"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "tools", Image: toolsImage, Command: []string{"true"}, VolumeMounts: []corev1.VolumeMount{{Name: "list", MountPath: "/mnt"}}}},
			Volumes: []corev1.Volume{{Name: "list", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "list"},
			}}},
		},
	})
	first := w.awaitPrime(list, "")
	w.run(nil, "-n", populatorNS, "annotate", "pvc", first.Name, "volume.kubernetes.io/selected-node-")
	if note := w.awaitNote("list", "NodeGivenUp"); !strings.Contains(note, first.Annotations[annotationSelectedNode]) {
		t.Errorf("the event does not name the node %s: %s", first.Annotations[annotationSelectedNode], note)
	}
	w.awaitPrime(list, string(first.UID))
}

// classWithoutProvisioner returns the name of a StorageClass whose provisioner only the test can play.
func (w *world) classWithoutProvisioner(mode storagev1.VolumeBindingMode) *string {
	w.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: w.ns}, Provisioner: "played-by-the-test.example.com", VolumeBindingMode: &mode,
	}
	if err := api.Create(context.Background(), class); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := api.Delete(context.Background(), class); err != nil {
			w.Error(err)
		}
	})
	return &class.Name
}

const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// awaitPrime waits for the claim's prime claim, other than the one with the UID, with a node chosen for it.
func (w *world) awaitPrime(claim *corev1.PersistentVolumeClaim, but string) *corev1.PersistentVolumeClaim {
	w.Helper()
	var prime corev1.PersistentVolumeClaim
	w.eventually("a prime claim has a node", patience, func(ctx context.Context) (bool, string) {
		err := api.Get(ctx, clientKey(populatorNS, "prime-"+string(claim.UID)), &prime)
		return err == nil && string(prime.UID) != but && prime.DeletionTimestamp == nil && prime.Annotations[annotationSelectedNode] != "", fmt.Sprint(err, prime.Annotations)
	})
	return &prime
}
