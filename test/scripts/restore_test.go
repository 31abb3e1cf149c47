package scripts

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/cli"
)

// TestRestoreOfADay: the day that is wanted is the last one, its chain is looked at, and no other day is taken for it.
func TestRestoreOfADay(t *testing.T) {
	t.Parallel()
	text := loops(t, "restore")[0]
	for compare, want := range map[string][]string{
		"": {"check-chain", "wipe", "restore-monday", "restore-tuesday", "restore-wednesday"},
		"yes": {
			"check-chain", "wipe", "restore-monday", "compare-monday", "restore-tuesday", "compare-tuesday", "restore-wednesday", "compare-wednesday",
		},
	} {
		var jobs []string
		calls, _, _ := pasted(t, "restore", text, "", "WANTED=wednesday", "COMPARE="+compare)
		for _, line := range calls {
			if job, ok := strings.CutPrefix(line, "apply -f - "); ok {
				jobs = append(jobs, job)
			}
		}
		if !slices.Equal(jobs, want) {
			t.Errorf("with COMPARE=%s the Jobs are %q, want %q", compare, jobs, want)
		}
	}
	calls, status, printed := pasted(t, "restore", text, "", "WANTED=someday")
	if len(calls) > 0 || status == "0" || !strings.Contains(printed, "there is no backup of someday") {
		t.Errorf("a day that is none ends with %s after %q:\n%s", status, calls, printed)
	}
}

// TestRestoreWithoutSnapshots: the Jobs of a restore are valid, and use the backups and the volume that is restored, and nothing else.
func TestRestoreWithoutSnapshots(t *testing.T) {
	t.Parallel()
	for _, manifest := range []string{
		applied(t, "restore/restore.yaml", "NAME=monday", "BACKUP=monday", "DAY=monday"), applied(t, "restore/check.yaml", "CHECK=cat, /backups/monday.cbl"),
		applied(t, "restore/wipe.yaml"), applied(t, "nightly/chain.yaml", "VOLUME=data", "NIGHT=latest"),
	} {
		var job batchv1.Job
		if err := yaml.UnmarshalStrict([]byte(manifest), &job); err != nil {
			t.Fatalf("%v in\n%s", err, manifest)
		}
		pod := job.Spec.Template.Spec
		if len(pod.Containers) == 0 {
			t.Errorf("the Job %s has no containers", job.Name)
		}
		for _, v := range pod.Volumes {
			claim := v.PersistentVolumeClaim
			if v.EmptyDir == nil && (claim == nil || claim.ClaimName != "backups" && claim.ClaimName != "restored") {
				t.Errorf("the Job %s needs the volume %s", job.Name, v.Name)
			}
		}
	}
}

// TestCheckOfAChain runs what restore/check.yaml runs on chains that are right, and on others.
func TestCheckOfAChain(t *testing.T) {
	t.Parallel()
	backups := t.TempDir()
	for _, link := range [][2]string{{"", "monday"}, {"monday", "tuesday"}, {"tuesday", "wednesday"}, {"", "sunday"}} {
		listOf(t, filepath.Join(backups, link[1]+".cbl"), blocklist.Binary, link[0], link[1])
	}
	// What whenDeltaUnavailable: UseAllocated may make of an increment.
	fallbackOf(t, filepath.Join(backups, "thursday.cbl"), "wednesday", "thursday")
	listOf(t, filepath.Join(backups, "friday.cbl"), blocklist.Binary, "thursday", "friday")
	for _, c := range []struct{ check, refusal string }{
		{"cat, /backups/monday.cbl", ""},
		{"union, /backups/monday.cbl, /backups/tuesday.cbl", ""},
		{"union, /backups/monday.cbl, /backups/tuesday.cbl, /backups/wednesday.cbl", ""},
		{"union, /backups/monday.cbl, /backups/wednesday.cbl", "do not follow each other"},
		{"union, /backups/tuesday.cbl, /backups/monday.cbl", "do not follow each other"},
		{"union, /backups/monday.cbl, /backups/sunday.cbl", "do not follow each other"},
		{"union, /backups/monday.cbl, /backups/tuesday.cbl, /backups/tuesday.cbl", "do not follow each other"},
		{"union, /backups/tuesday.cbl, /backups/wednesday.cbl", "not a full backup"},
		{"cat, /backups/tuesday.cbl", "not a full backup"},
		{"cat, /backups/saturday.cbl", "no such file"},
		{"union, /backups/monday.cbl, /backups/tuesday.cbl, /backups/wednesday.cbl, /backups/thursday.cbl", "blocks that were freed"},
		{"union, /backups/wednesday.cbl, /backups/thursday.cbl, /backups/friday.cbl", "blocks that were freed"},
		{"cat, /backups/thursday.cbl", ""},
		{"union, /backups/thursday.cbl, /backups/friday.cbl", ""},
	} {
		var check batchv1.Job
		lists := strings.ReplaceAll(c.check, "/backups", backups)
		manifest := replaced(t, textOf(t, "restore/check.yaml"), "${CHECK}", lists, "/checked", t.TempDir(), "${CBR_IMAGE}", "kubectl-cbr")
		if err := yaml.UnmarshalStrict([]byte(manifest), &check); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		pod := check.Spec.Template.Spec
		code := cli.Execute(t.Context(), cli.Streams{In: strings.NewReader(""), Out: &out, Err: &out}, "test", pod.InitContainers[0].Args)
		var err error
		if code == 0 {
			err = runContainer(t, pod.Containers[0], &out)
		}
		if ok := code == 0 && err == nil; ok != (c.refusal == "") || !strings.Contains(out.String(), c.refusal) {
			t.Errorf("%s: exit code %d, then %v, want %q:\n%s", c.check, code, err, c.refusal, out.String())
		}
	}
}

// runContainer runs a container's command.
func runContainer(t *testing.T, c corev1.Container, out *bytes.Buffer) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.Command[0], c.Command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}

// listedVolume is the size of the volume of every list.
const listedVolume = 1 << 20

// listOf writes a list from one snapshot to another, and returns its bytes.
func listOf(t *testing.T, path string, f blocklist.Format, from, to string, extents ...blocklist.Extent) []byte {
	t.Helper()
	if len(extents) == 0 {
		extents = []blocklist.Extent{{Offset: 4096, Length: 4096}}
	}
	h := blocklist.Header{
		Mode: blocklist.Allocated, Driver: "hostpath.csi.k8s.io", Namespace: "shop", TargetSnapshot: to, TargetSnapshotHandle: "h-" + to,
		VolumeCapacityBytes: listedVolume, BlockMetadataType: blocklist.FixedLength,
	}
	if from != "" {
		h.Mode, h.BaseSnapshotHandle = blocklist.Delta, "h-"+from
	}
	return encoded(t, path, f, h, extents)
}

// fallbackOf writes a list of allocated blocks in place of one from one snapshot to another.
func fallbackOf(t *testing.T, path, from, to string) {
	t.Helper()
	encoded(t, path, blocklist.Binary, blocklist.Header{
		Mode: blocklist.Allocated, Driver: "hostpath.csi.k8s.io", Namespace: "shop", TargetSnapshot: to, TargetSnapshotHandle: "h-" + to,
		BaseSnapshotHandle: "h-" + from, VolumeCapacityBytes: listedVolume, BlockMetadataType: blocklist.FixedLength,
	}, []blocklist.Extent{{Offset: 4096, Length: 8192}})
}

// encoded writes a list, and returns its bytes.
func encoded(t *testing.T, path string, f blocklist.Format, h blocklist.Header, extents []blocklist.Extent) []byte {
	t.Helper()
	var b bytes.Buffer
	e, err := blocklist.NewEncoder(&b, f, h)
	if err != nil {
		t.Fatal(err)
	}
	err = e.Encode(extents)
	if err == nil {
		_, err = e.Finish()
	}
	if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
