package docs

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
	var restored []string
	calls, _, _ := pasted(t, "restore", text, "", "WANTED=wednesday")
	for _, line := range calls {
		if day, ok := strings.CutPrefix(line, "apply -f - restore-"); ok {
			restored = append(restored, day)
		}
	}
	if want := []string{"monday", "tuesday", "wednesday"}; !slices.Equal(restored, want) {
		t.Errorf("restored were %q, want %q", restored, want)
	}
	calls, status, printed := pasted(t, "restore", text, "", "WANTED=someday")
	if len(calls) > 0 || status == "0" || !strings.Contains(printed, "there is no backup of someday") {
		t.Errorf("a day that is none ends with %s after %q:\n%s", status, calls, printed)
	}
}

// TestCheckOfAChain runs what restore/check.yaml runs on chains that are right, and on others.
func TestCheckOfAChain(t *testing.T) {
	t.Parallel()
	backups := t.TempDir()
	for _, link := range [][2]string{{"", "monday"}, {"monday", "tuesday"}, {"tuesday", "wednesday"}, {"", "sunday"}} {
		listOf(t, filepath.Join(backups, link[1]+".cbl"), blocklist.Binary, link[0], link[1])
	}
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
		{"cat, /backups/thursday.cbl", "no such file"},
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

// listOf writes a list from one snapshot to another, and returns its bytes.
func listOf(t *testing.T, path string, f blocklist.Format, from, to string) []byte {
	t.Helper()
	h := blocklist.Header{
		Mode: blocklist.Allocated, Driver: "hostpath.csi.k8s.io", Namespace: "shop", TargetSnapshot: to, TargetSnapshotHandle: "h-" + to,
		VolumeCapacityBytes: 1 << 20, BlockMetadataType: blocklist.FixedLength,
	}
	if from != "" {
		h.Mode, h.BaseSnapshotHandle = blocklist.Delta, "h-"+from
	}
	var b bytes.Buffer
	e, err := blocklist.NewEncoder(&b, f, h)
	if err != nil {
		t.Fatal(err)
	}
	err = e.Encode([]blocklist.Extent{{Offset: 4096, Length: 4096}})
	if err == nil {
		_, err = e.Finish()
	}
	if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
