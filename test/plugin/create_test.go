package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/claimsize"
)

func (w *world) exists(name string, o client.Object) bool {
	w.Helper()
	err := w.Get(w.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, o)
	if err != nil && !apierrors.IsNotFound(err) {
		w.Fatal(err)
	}
	return err == nil
}

// requested is the storage that the claim asks for, in bytes.
func (w *world) requested(name string) int64 {
	w.Helper()
	var claim corev1.PersistentVolumeClaim
	w.get(name, &claim)
	return claim.Spec.Resources.Requests.Storage().Value()
}

func TestCreate(t *testing.T) {
	w := newWorld(t)
	out := w.cbr("create", "full", "--from", "monday", "--to", "tuesday", "--format", "Binary", "--granularity", "64Ki",
		"--max-size", "1Gi", "--merge=false", "--when-delta-unavailable", "UseAllocated",
		"--pvc", "changes", "--size", "50Mi", "--storage-class", "fast", "--access-mode", "ReadWriteOncePod", "--volume-mode", "Block").must(t).stdout
	has(t, out, "changedblockrange.cbt.storage.k8s.io/full created\n", "persistentvolumeclaim/changes created\n")
	var cbr v1alpha1.ChangedBlockRange
	w.get("full", &cbr)
	want := v1alpha1.ChangedBlockRangeSpec{
		FromVolumeSnapshotName: "monday", ToVolumeSnapshotName: "tuesday", Format: v1alpha1.FormatBinary,
		GranularityBytes: ptr.To[int64](65536), MaxSizeInBytes: ptr.To[int64](1 << 30), MergeExtents: ptr.To(false), WhenDeltaUnavailable: v1alpha1.FallbackUseAllocated,
	}
	if got, expected := asJSON(t, cbr.Spec), asJSON(t, want); got != expected {
		t.Errorf("got %s\nwant %s", got, expected)
	}
	var claim corev1.PersistentVolumeClaim
	w.get("changes", &claim)
	ref := claim.Spec.DataSourceRef
	if *claim.Spec.StorageClassName != "fast" || claim.Spec.AccessModes[0] != corev1.ReadWriteOncePod || *claim.Spec.VolumeMode != corev1.PersistentVolumeBlock ||
		w.requested("changes") != 50<<20 || ref == nil || ref.Name != "full" || *ref.APIGroup != v1alpha1.GroupName {
		t.Errorf("claim %+v", claim.Spec)
	}
	w.cbr("create", "full", "--to", "tuesday").refused(t, 1, "it exists already: choose another name")

	w.cbr("create", "handle", "--from-handle", "h", "--to", "tuesday").must(t)
	w.get("handle", &cbr)
	if cbr.Spec.FromSnapshotHandle != "h" || cbr.Spec.Format != v1alpha1.FormatJSON {
		t.Errorf("spec %+v", cbr.Spec)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestCreateIsRefusedInOneLine: in the API's own words, and before anything is made.
func TestCreateIsRefusedInOneLine(t *testing.T) {
	w := newWorld(t)
	for name, test := range map[string]struct {
		args []string
		code int
		says string
	}{
		"two bases":       {[]string{"--to", "b", "--from", "a", "--from-handle", "h"}, 1, "fromVolumeSnapshotName and fromSnapshotHandle both name the base: set one of them, or neither to list the allocated blocks of the target"},
		"the same twice":  {[]string{"--to", "a", "--from", "a"}, 1, "fromVolumeSnapshotName and toVolumeSnapshotName are the same snapshot"},
		"bad name":        {[]string{"--to", "Not/Me"}, 1, "toVolumeSnapshotName must be the name of a VolumeSnapshot"},
		"odd granularity": {[]string{"--to", "b", "--granularity", "1000"}, 1, "granularityBytes must be a power of two from 512"},
		"no size at all":  {[]string{"--to", "b", "--max-size", "0"}, 1, "maxSizeInBytes must be greater than 0"},
		"format":          {[]string{"--to", "b", "--format", "XML"}, 1, `format: Unsupported value: "XML": supported values: "JSON", "Binary"`},
		"access mode":     {[]string{"--to", "b", "--pvc", "p", "--size", "1Mi", "--access-mode", "Sometimes"}, 1, "Sometimes"},
		"no target":       {nil, 2, "--to is missing"},
		"size alone":      {[]string{"--to", "b", "--size", "1Gi"}, 2, "--size is about a claim: name one with --pvc"},
		"block and JSON":  {[]string{"--to", "b", "--pvc", "p", "--volume-mode", "Block"}, 2, "add --format Binary"},
		"size":            {[]string{"--to", "b", "--pvc", "p", "--size", "large"}, 2, "use auto, bound, or a quantity"},
		"number":          {[]string{"--to", "b", "--granularity", "x"}, 2, "such as 65536 or 64Ki"},
		"wait for naught": {[]string{"--to", "b", "--wait", "--dry-run=server"}, 2, "exclude each other"},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.cbr(append([]string{"create", "refused"}, test.args...)...)
			r.refused(t, test.code, test.says)
			if lines := strings.Count(strings.TrimSpace(r.stderr), "\n"); test.code == 1 && lines != 0 {
				t.Errorf("%d lines more than one:\n%s", lines, r.stderr)
			}
			if w.exists("refused", &v1alpha1.ChangedBlockRange{}) {
				t.Error("it was made")
			}
		})
	}
	w.cbr("create", "x", "--to", "b", "--as", "nobody").refused(t, 1, "create ChangedBlockRange "+w.ns+"/x", "forbidden", "ask the cluster's administrator")
}

func TestDryRun(t *testing.T) {
	w := newWorld(t)
	args := []string{"create", "dry", "--from", "monday", "--to", "tuesday", "--pvc", "changes", "--size", "10Mi"}
	for _, how := range []string{"client", "server"} {
		out := w.cbr(append(args, "--dry-run="+how)...).must(t).stdout
		documents := strings.Split(out, "---\n")
		if len(documents) != 2 {
			t.Fatalf("%s: %d documents:\n%s", how, len(documents), out)
		}
		var cbr v1alpha1.ChangedBlockRange
		var claim corev1.PersistentVolumeClaim
		for i, into := range []any{&cbr, &claim} {
			if err := yaml.UnmarshalStrict([]byte(documents[i]), into); err != nil {
				t.Fatalf("%s: %v in\n%s", how, err, documents[i])
			}
		}
		if cbr.Kind != v1alpha1.Kind || cbr.Spec.ToVolumeSnapshotName != "tuesday" || claim.Kind != "PersistentVolumeClaim" || claim.Spec.DataSourceRef.Name != "dry" {
			t.Errorf("%s:\n%s", how, out)
		}
		if how == "client" && strings.Contains(out, "status") {
			t.Errorf("a manifest has no status:\n%s", out)
		}
		if w.exists("dry", &cbr) || w.exists("changes", &claim) {
			t.Errorf("%s: something was made", how)
		}
	}
	var list struct{ Items []any }
	if err := json.Unmarshal([]byte(w.cbr(append(args, "--dry-run", "-o", "json")...).must(t).stdout), &list); err != nil || len(list.Items) != 2 {
		t.Errorf("%v, %+v", err, list)
	}
	w.cbr("create", "dry", "--to", "x", "--granularity", "3", "--dry-run=server").refused(t, 1, "granularityBytes must be a power of two")
}

// TestSizeAuto: the claim is as large as the list that will be written asks for.
func TestSizeAuto(t *testing.T) {
	w := newWorld(t)
	list := w.cbr("preview", "--from", "monday", "--to", "tuesday").must(t).stdout
	r := w.cbr("create", "counted", "--from", "monday", "--to", "tuesday", "--pvc", "counted").must(t)
	if want := claimsize.For(int64(len(list))); w.requested("counted") != want {
		t.Errorf("got %d, want %d", w.requested("counted"), want)
	}
	has(t, r.stderr, "the list takes")

	bound := w.cbr("create", "bound", "--from", "monday", "--to", "tuesday", "--pvc", "bound", "--size", "bound")
	bound.refused(t, 1, "do not say how large their volume is", "give --size a quantity")
	w.restoreSize("tuesday", 100<<30)
	has(t, w.cbr("create", "bound", "--from", "monday", "--to", "tuesday", "--pvc", "bound", "--size", "bound").must(t).stderr, "the longest list")
	if got := w.requested("bound"); got < (100<<30)/4096*40 || got > (100<<30)/4096*70 {
		t.Errorf("bound %d", got)
	}
	w.cbr("create", "limited", "--to", "tuesday", "--pvc", "limited", "--size", "bound", "--max-size", "1Mi").must(t)
	if got, want := w.requested("limited"), claimsize.For(1<<20); got != want {
		t.Errorf("limited: got %d, want %d", got, want)
	}
}

// TestSizeAutoSaysWhenItGuesses: whoever may not ask the service gets the bound, with the reason; a list that cannot be had
// is no reason to make anything.
func TestSizeAutoSaysWhenItGuesses(t *testing.T) {
	w := newWorld(t)
	w.restoreSize("tuesday", capacity)
	w.restoreSize("monday", capacity)
	w.allow("editor", "jane",
		rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.Resource}, Verbs: []string{"create"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"persistentvolumeclaims"}, Verbs: []string{"create"}},
		rbacv1.PolicyRule{APIGroups: []string{"snapshot.storage.k8s.io"}, Resources: []string{"volumesnapshots"}, Verbs: []string{"get"}})
	r := w.cbr("create", "guessed", "--from", "monday", "--to", "tuesday", "--pvc", "guessed", "--as", "jane").must(t)
	has(t, r.stderr, "if the driver's blocks have at least 4 KiB", "The list was not counted", "volumesnapshotcontents")
	if got, least := w.requested("guessed"), claimsize.For(capacity/4096*40); got < least {
		t.Errorf("got %d, want at least %d", got, least)
	}

	w.cbr("create", "lost", "--from-handle", "unknown", "--to", "tuesday", "--pvc", "lost").refused(t, 1, "no such snapshot", "nothing was created")
	w.cbr("create", "lost", "--to", "sunday", "--pvc", "lost").refused(t, 1, `VolumeSnapshot "sunday" does not exist`, "nothing was created")
	if w.exists("lost", &v1alpha1.ChangedBlockRange{}) || w.exists("lost", &corev1.PersistentVolumeClaim{}) {
		t.Error("something was made")
	}
}

// restoreSize writes the size that the VolumeSnapshot itself says.
func (w *world) restoreSize(name string, bytes int64) {
	w.Helper()
	s := w.readSnapshot(name)
	s.Status.RestoreSize = quantity(bytes)
	w.writeStatus(s)
}

// started runs a command in the background and returns its result later.
func (w *world) started(ctx context.Context, args ...string) <-chan result {
	done := make(chan result, 1)
	go func() { done <- w.cbrWithin(ctx, args...) }()
	return done
}

// await waits until an object exists and returns it in o.
func (w *world) await(name string, o client.Object) {
	w.Helper()
	err := wait.PollUntilContextTimeout(w.Context(), 20*time.Millisecond, deadline, true, func(ctx context.Context) (bool, error) {
		err := w.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: name}, o)
		return err == nil, client.IgnoreNotFound(err)
	})
	if err != nil {
		w.Fatalf("%T %s: %v", o, name, err)
	}
}

// bind plays the volume binder.
func (w *world) bind(claim *corev1.PersistentVolumeClaim) {
	w.Helper()
	claim.Status.Phase = corev1.ClaimBound
	w.writeStatus(claim)
}

func TestWait(t *testing.T) {
	w := newWorld(t)
	done := w.started(t.Context(), "create", "waited", "--from", "monday", "--to", "tuesday", "--pvc", "changes", "--wait")
	var cbr v1alpha1.ChangedBlockRange
	var claim corev1.PersistentVolumeClaim
	w.await("waited", &cbr)
	w.await("changes", &claim)
	w.resolved(&cbr)
	for _, percent := range []int32{1, 7, 42, 48, 99} {
		cbr.Status.State = v1alpha1.StatePopulating
		cbr.Status.Progress = &v1alpha1.PopulationProgress{Percent: percent, Done: fmt.Sprintf("%d%%", percent), EntryCount: 5}
		w.condition(&cbr, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonPopulating, "claim is being populated")
	}
	cbr.Status.Progress = nil
	w.populated(&cbr)
	select {
	case r := <-done:
		t.Fatalf("it did not wait for the claim: %+v", r)
	default:
	}
	w.bind(&claim)
	r := (<-done).must(t)
	has(t, r.stdout, "the list has 3 extents, 12 KiB changed", "claimName: changes, readOnly: true", "/changes/changed-blocks.json")
	has(t, r.stderr, "Populating 90%")
	if strings.Contains(r.stderr, "Populating 42%") || strings.Contains(r.stderr, "\x1b") {
		t.Errorf("the log is not for logs:\n%s", r.stderr)
	}
}

func TestWaitForSnapshots(t *testing.T) {
	w := newWorld(t)
	done := w.started(t.Context(), "create", "waited", "--from", "monday", "--to", "tuesday", "--wait")
	var cbr v1alpha1.ChangedBlockRange
	w.await("waited", &cbr)
	w.resolved(&cbr)
	has(t, (<-done).must(t).stdout, "Give it a claim")
}

func TestWaitSaysWhatFailed(t *testing.T) {
	w := newWorld(t)
	done := w.started(t.Context(), "create", "failing", "--from", "monday", "--to", "tuesday", "--pvc", "changes", "--format", "Binary", "--volume-mode", "Block", "--wait")
	var cbr v1alpha1.ChangedBlockRange
	w.await("failing", &cbr)
	w.resolved(&cbr)
	w.failed(&cbr, v1alpha1.ReasonVolumeFull, "the volume is full")
	(<-done).refused(t, 1, "failed: the volume is full", "VolumeFull", "What to do: a new, larger claim",
		"ChangedBlockRange failing and claim changes stay", "kubectl delete -n "+w.ns+" pvc/changes cbr/failing")
}

func TestWaitEnds(t *testing.T) {
	w := newWorld(t)
	w.cbr("create", "slow", "--from", "monday", "--to", "tuesday", "--pvc", "slow", "--wait", "--timeout", "1s").refused(t, 1,
		"not done within 1s", "is it running?", "ChangedBlockRange slow and claim slow stay")

	ctx, interrupt := context.WithCancel(t.Context())
	done := w.started(ctx, "create", "stopped", "--from", "monday", "--to", "tuesday", "--pvc", "stopped", "--wait")
	w.await("stopped", &v1alpha1.ChangedBlockRange{})
	w.await("stopped", &corev1.PersistentVolumeClaim{})
	interrupt()
	(<-done).refused(t, 130, "interrupted", "ChangedBlockRange stopped and claim stopped stay")
	if !w.exists("stopped", &corev1.PersistentVolumeClaim{}) {
		t.Error("the claim is gone")
	}

	heard := make(chan struct{})
	ended := make(chan result, 1)
	go func() {
		errs := &listener{word: "seen", heard: heard}
		ended <- w.cbrHeard(t.Context(), errs, "create", "deleted", "--from", "monday", "--to", "tuesday", "--wait")
	}()
	var cbr v1alpha1.ChangedBlockRange
	w.await("deleted", &cbr)
	// It has to be seen before it goes.
	cbr.Status.State, cbr.Status.Message = v1alpha1.StatePending, "seen"
	w.writeStatus(&cbr)
	select {
	case <-heard:
	case r := <-ended:
		t.Fatalf("it did not wait: %+v", r)
	case <-time.After(deadline):
		t.Fatal("it does not say what it waits for")
	}
	if err := w.Delete(t.Context(), &cbr); err != nil {
		t.Fatal(err)
	}
	(<-ended).refused(t, 1, "ChangedBlockRange deleted was deleted")
}

// TestWaitNeedsTheRightToWatch: it says so at once instead of waiting for ever.
func TestWaitNeedsTheRightToWatch(t *testing.T) {
	w := newWorld(t)
	w.allow("maker", "jane", rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.Resource}, Verbs: []string{"create"}})
	w.cbr("create", "blind", "--to", "tuesday", "--wait", "--as", "jane").refused(t, 1, "watch "+w.ns+"/blind", "forbidden")
}

// TestWaitForTheFirstConsumer: the storage class waits for a pod, so the user has to know.
func TestWaitForTheFirstConsumer(t *testing.T) {
	w := newWorld(t)
	class := w.clusterMeta("wffc")
	w.create(&storagev1.StorageClass{ObjectMeta: class, Provisioner: "p", VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)})
	w.cbr("create", "late", "--to", "tuesday", "--pvc", "late", "--storage-class", class.Name, "--wait", "--timeout", "1s").refused(t, 1,
		"waits for the first consumer", "claimName: late")
}
