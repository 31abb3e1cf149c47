package plugin

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// claim makes a claim that refers to a ChangedBlockRange.
func (w *world) claim(name, cbr string) *corev1.PersistentVolumeClaim {
	w.Helper()
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: w.meta(name),
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:     corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("33Mi")}},
			DataSourceRef: &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: cbr},
		},
	}
	w.create(c)
	return c
}

// event makes an event about an object.
func (w *world) event(name, kind, reason, message string, about metav1.Object) {
	w.Helper()
	w.create(&corev1.Event{
		ObjectMeta: w.meta(name), Type: kind, Reason: reason, Message: message, LastTimestamp: metav1.Now(),
		InvolvedObject: corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: w.ns, Name: about.GetName(), UID: about.GetUID()},
	})
}

// populated writes what the controller writes after a success.
func (w *world) populated(cbr *v1alpha1.ChangedBlockRange) {
	w.Helper()
	s := &cbr.Status
	s.State, s.Mode, s.Message = v1alpha1.StateReady, v1alpha1.ModeDelta, "the list has 3 extents, 12 KiB changed"
	s.EntryCount, s.ChangedBytes, s.NumBytesWritten, s.VolumeCapacityBytes = ptr.To[int64](3), ptr.To[int64](12288), ptr.To[int64](700), ptr.To[int64](capacity)
	s.Changed, s.ListSize, s.ListDigest, s.BlockMetadataType, s.BlockSize = "12 KiB", "700 B", "sha256:00ff", "FIXED_LENGTH", ptr.To[int64](4096)
	s.PopulatedClaims = 1
	w.condition(cbr, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonPopulated, s.Message)
}

// failed writes what the controller writes after a failure for good.
func (w *world) failed(cbr *v1alpha1.ChangedBlockRange, reason, message string) {
	w.Helper()
	cbr.Status.State, cbr.Status.Message = v1alpha1.StateFailed, message
	w.condition(cbr, v1alpha1.ConditionReady, metav1.ConditionFalse, reason, message)
}

// has fails the test unless text contains all words.
func has(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q is missing from:\n%s", word, text)
		}
	}
}

// gallery makes a ChangedBlockRange in each state.
func (w *world) gallery() {
	w.Helper()
	good := w.newRange("good", func(c *v1alpha1.ChangedBlockRange) { c.Labels = map[string]string{"app": "shop"} })
	w.resolved(good)
	w.populated(good)
	bad := w.newRange("bad")
	w.resolved(bad)
	w.failed(bad, v1alpha1.ReasonVolumeFull, "the volume is full")
	busy := w.newRange("busy", func(c *v1alpha1.ChangedBlockRange) {
		c.Spec.FromVolumeSnapshotName, c.Spec.FromSnapshotHandle = "", "0123456789abcdef"
	})
	busy.Status.State = v1alpha1.StatePopulating
	busy.Status.Progress = &v1alpha1.PopulationProgress{EntryCount: 1000, OffsetBytes: 4 << 20, Percent: 40, Done: "40%"}
	w.condition(busy, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonPopulating, "claim is being populated")
	w.newRange("new", func(c *v1alpha1.ChangedBlockRange) { c.Spec.FromVolumeSnapshotName = "" })
}

func TestList(t *testing.T) {
	w := newWorld(t)
	has(t, w.cbr("list").must(t).stderr, "No ChangedBlockRanges in namespace "+w.ns)
	w.gallery()

	table := w.cbr("list").must(t)
	lines := strings.Split(strings.TrimSpace(table.stdout), "\n")
	if len(lines) != 5 {
		t.Fatalf("%d lines:\n%s", len(lines), table.stdout)
	}
	for i, want := range [][]string{
		{"NAME", "FROM", "TO", "STATE", "FOR", "ENTRIES", "CHANGED", "LIST", "AGE"},
		{"bad", "monday", "tuesday", "Failed: VolumeFull"},
		{"busy", "handle 0123456789ab…", "Populating 40%"},
		{"good", "Ready", "12 KiB", "700 B"},
		{"new", "New"},
	} {
		has(t, lines[i], want...)
	}
	has(t, table.stderr, "bad: VolumeFull: the claim's volume is too small for the list. What to do: a new, larger claim")
	if strings.Contains(table.stderr, "good") || strings.Contains(table.stderr, "busy") {
		t.Errorf("advice for what has not failed: %s", table.stderr)
	}
	has(t, w.cbr("list", "-A", "-o", "wide").must(t).stdout, "NAMESPACE", w.ns, w.driver, "MESSAGE", "the volume is full", "10 MiB")
	chosen := w.cbr("list", "-l", "app=shop", "--no-headers").must(t).stdout
	if !strings.HasPrefix(chosen, "good ") || strings.Count(chosen, "\n") != 1 {
		t.Errorf("by label:\n%s", chosen)
	}
	if got := w.cbr("list", "--field-selector", "metadata.name=new", "-o", "name").must(t).stdout; got != "changedblockrange.cbt.storage.k8s.io/new\n" {
		t.Errorf("by field: %q", got)
	}
	w.cbr("list", "-l", "((").refused(t, 2, "--selector")
	w.cbr("list", "-o", "xml").refused(t, 2, "--output", "wide")
	w.cbr("list", "--as", "nobody").refused(t, 1, "list ChangedBlockRanges in namespace "+w.ns, "forbidden")
}

// TestListAsObjects: the output is what kubectl takes.
func TestListAsObjects(t *testing.T) {
	w := newWorld(t)
	w.gallery()
	for format, parse := range map[string]func([]byte, any) error{
		"json": json.Unmarshal, "yaml": func(b []byte, v any) error { return yaml.Unmarshal(b, v) },
	} {
		for _, selector := range []string{"", "app=shop", "app=none"} {
			var got struct {
				Kind  string                       `json:"kind"`
				Items []v1alpha1.ChangedBlockRange `json:"items"`
			}
			out := w.cbr("list", "-o", format, "-l", selector).must(t).stdout
			if err := parse([]byte(out), &got); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			want := map[string]int{"": 4, "app=shop": 1, "app=none": 0}[selector]
			if got.Kind != "List" || len(got.Items) != want {
				t.Errorf("%s %q: a %s with %d items, want %d", format, selector, got.Kind, len(got.Items), want)
			}
			for _, item := range got.Items {
				if item.Kind != v1alpha1.Kind || item.UID == "" || item.ManagedFields != nil {
					t.Errorf("%s: %+v", format, item.ObjectMeta)
				}
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	w := newWorld(t)
	w.gallery()
	claim := w.claim("changes", "bad")
	w.claim("another", "good")
	w.event("e1", "Warning", "VolumeFull", "a larger claim is needed", claim)

	has(t, w.cbr("describe", "bad").must(t).stdout,
		"Failed: VolumeFull, for", "the volume is full", "Next step:", "a new, larger claim",
		"VolumeSnapshot monday (handle monday-handle, 10 MiB)", w.driver, "JSON", "none was written yet",
		"SnapshotsResolved   True", "changes   Pending", "33 MiB", "claim changes", "a larger claim is needed")
	good := w.cbr("describe", "good", "busy").must(t).stdout
	has(t, good, "changed blocks", "12 KiB of 10 MiB (0.117 %)", "FIXED_LENGTH, 4 KiB", "sha256:00ff", "another",
		"40%: 4 MiB of the volume listed, 1000 extents so far", "handle 0123456789abcdef")
	if strings.Contains(good, "Next step") {
		t.Errorf("advice for what has not failed:\n%s", good)
	}
	has(t, w.cbr("describe", "new").must(t).stdout, "none: the allocated blocks of the target", "is the controller running?")
	w.cbr("describe", "missing").refused(t, 1, "read ChangedBlockRange "+w.ns+"/missing", "not found")

	w.allow("reader", "jane", rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.Resource}, Verbs: []string{"get"}})
	has(t, w.cbr("describe", "bad", "--as", "jane").must(t).stdout, "Claims: you may not list them", "Events: you may not list them")
}
