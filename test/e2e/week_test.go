//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The tests of this file take longest. Go lets parallel tests go on in the reverse order of their files and lines, so that these
// begin first and nothing waits for them alone in the end.

// TestExampleNightly runs four nights, and restores the last one from what the pruning has left.
func TestExampleNightly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.example("nightly")
	for _, kind := range []string{"volumesnapshot", "changedblockrange"} {
		if left := strings.Fields(w.kubectl("get", kind, "-o", "name")); len(left) != 1 {
			t.Errorf("after the last night there are %v, want one", left)
		}
	}
	last := strings.TrimPrefix(strings.TrimSpace(w.kubectl("get", "volumesnapshot", "-o", "name")), "volumesnapshot.snapshot.storage.k8s.io/")
	w.create(restored("expected", "128Mi", last), claim("restored", "128Mi", corev1.PersistentVolumeBlock))
	w.awaitBound("expected", "restored")
	w.tools("look", "backups", "expected", "restored")
	found := strings.Fields(string(w.exec("look", "cd /mnt/backups && ls -d night-* && cd night-* && ls *.cbl | sort")))
	if len(found) != 3 || found[1] != found[0]+".cbl" || found[2] != last+".cbl" {
		t.Fatalf("on the volume are the chain and lists %v, want one chain with a full backup and the increment %s", found, last)
	}
	lists := "/backups/" + found[0] + "/"
	steps := []corev1.Container{{
		Name: "check", Image: w.cbrImage(), Args: []string{"union", lists + found[1], lists + found[2], "-o", "tsv"},
	}}
	for i, list := range found[1:] {
		backup := "/backups/" + found[0] + "/" + strings.TrimSuffix(list, ".cbl")
		steps = append(steps, corev1.Container{
			Name: fmt.Sprintf("apply-%d", i), Image: w.cbrImage(),
			Args: []string{"apply", "--list", backup + ".cbl", "--source", backup + ".img", "--target", "/dev/restored"},
		})
	}
	w.pod("restore", steps, corev1.Container{Name: "compare", Image: toolsImage, Command: []string{"cmp", "/dev/restored", "/dev/expected"}},
		map[string]string{"/backups": "backups", "/dev/restored": "restored", "/dev/expected": "expected"})
}

// TestExampleWeek runs a full backup, six increments and a restore of each day, which the last page compares with that
// day's snapshot, byte for byte.
func TestExampleWeek(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.wantLines("the full backup", w.example("full-backup"), "read 16 MiB of 128 MiB (12.50 %)")
	increments := w.example("increments")
	restored := w.example("restore")
	for _, day := range []string{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"} {
		w.wantLines("the week", increments, day+": copied ")
		w.wantLines("the restore", restored, "the volume is the snapshot of "+day)
	}
}
