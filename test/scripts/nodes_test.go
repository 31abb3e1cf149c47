package scripts

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// TestPodsOfOneClaimShareANode: a ReadWriteOnce claim is for one node, and nothing but an affinity brings pods of several Jobs, or several
// pods of one, to the same node.
func TestPodsOfOneClaimShareANode(t *testing.T) {
	t.Parallel()
	day := applied(t, "full-backup/backup.yaml", "DAY=monday")
	for name, pods := range map[string][2]corev1.PodTemplateSpec{
		"two workers": {podsOf(t, applied(t, "parallel-workers/workers.yaml")), podsOf(t, applied(t, "parallel-workers/workers.yaml"))},
		"two days":    {podsOf(t, day), podsOf(t, strings.ReplaceAll(day, "monday", "tuesday"))},
		"two volumes": {podsOf(t, night(t, "data")), podsOf(t, night(t, "other"))},
	} {
		for _, p := range [][2]corev1.PodTemplateSpec{pods, {pods[0], pods[0]}, {pods[1], pods[0]}} {
			if !together(t, p[0], p[1]) {
				t.Errorf("%s: the pods %v may run on another node than the pods %v", name, p[0].Labels, p[1].Labels)
			}
		}
	}
}

// together says that a pod is only put on a node on which another one of the same claim runs, if there is one.
func together(t *testing.T, pod, other corev1.PodTemplateSpec) bool {
	t.Helper()
	if pod.Spec.Affinity == nil || pod.Spec.Affinity.PodAffinity == nil {
		return false
	}
	for _, term := range pod.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
		selector, err := metav1.LabelSelectorAsSelector(term.LabelSelector)
		if err != nil {
			t.Fatal(err)
		}
		if term.TopologyKey == corev1.LabelHostname && selector.Matches(labels.Set(other.Labels)) {
			return true
		}
	}
	return false
}

// podsOf returns the pods of the Job among manifests, with the label that Kubernetes gives them.
func podsOf(t *testing.T, manifests string) corev1.PodTemplateSpec {
	t.Helper()
	for manifest := range strings.SplitSeq(manifests, "\n---\n") {
		var job batchv1.Job
		if err := yaml.Unmarshal([]byte(manifest), &job); err != nil {
			t.Fatal(err)
		}
		if job.Kind == "Job" {
			pods := job.Spec.Template
			pods.Labels = labels.Merge(pods.Labels, labels.Set{"job-name": job.Name})
			return pods
		}
	}
	t.Fatalf("there is no Job in\n%s", manifests)
	return corev1.PodTemplateSpec{}
}

// night returns the Job of a night as the script makes it.
func night(t *testing.T, volume string) string {
	t.Helper()
	n := newNights(t, []string{"sh"})
	n.volume = volume
	raw, err := yaml.Marshal(n.jobs[n.mustPass()].manifest)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
