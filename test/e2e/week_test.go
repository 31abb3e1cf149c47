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

// TestExampleNightly runs four nights, and restores the last one from what the pruning has left. Another volume has two nights
// beside that.
func TestExampleNightly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.example("nightly")
	last := w.lastNight("data")
	w.create(claim("other", "64Mi", corev1.PersistentVolumeBlock))
	w.awaitBound("other")
	for _, night := range []string{"other-1", "other-2"} {
		w.kubectl("create", "job", "--from=cronjob/nightly-other", night)
		w.kubectl("wait", "--for=condition=Complete", "job/"+night, "--timeout=180s")
	}
	other := w.lastNight("other")
	if again := w.lastNight("data"); again != last {
		t.Errorf("the nights of another volume have changed the last one from %s to %s", last, again)
	}
	w.create(restored("expected", "128Mi", last), claim("restored", "128Mi", corev1.PersistentVolumeBlock))
	w.awaitBound("expected", "restored")
	w.tools("look", "backups", "expected", "restored")
	if lists := strings.Fields(string(w.exec("look", "cd /mnt/backups/other/night-* && ls *.cbl | sort"))); len(lists) != 2 || lists[1] != other+".cbl" {
		t.Errorf("the other volume has the lists %v, want a full backup and the increment %s", lists, other)
	}
	found := strings.Fields(string(w.exec("look", "cd /mnt/backups/data && ls -d night-* && cd night-* && ls *.cbl | sort")))
	if len(found) != 3 || found[1] != found[0]+".cbl" || found[2] != last+".cbl" {
		t.Fatalf("on the volume are the chain and lists %v, want one chain with a full backup and the increment %s", found, last)
	}
	lists := "/backups/data/" + found[0] + "/"
	steps := []corev1.Container{{
		Name: "check", Image: w.cbrImage(), Args: []string{"union", lists + found[1], lists + found[2], "-o", "tsv"},
	}}
	for i, list := range found[1:] {
		backup := lists + strings.TrimSuffix(list, ".cbl")
		steps = append(steps, corev1.Container{
			Name: fmt.Sprintf("apply-%d", i), Image: w.cbrImage(),
			Args: []string{"apply", "--list", backup + ".cbl", "--source", backup + ".img", "--target", "/dev/restored"},
		})
	}
	w.pod("restore", steps, corev1.Container{Name: "compare", Image: toolsImage, Command: []string{"cmp", "/dev/restored", "/dev/expected"}},
		map[string]string{"/backups": "backups", "/dev/restored": "restored", "/dev/expected": "expected"})
}

// lastNight returns the one night of a volume that has a snapshot and a ChangedBlockRange.
func (w *world) lastNight(volume string) string {
	w.Helper()
	var name string
	for _, kind := range []string{"volumesnapshot", "changedblockrange"} {
		left := strings.Fields(w.kubectl("get", kind, "-l", "nightly-volume="+volume, "-o", "jsonpath={.items[*].metadata.name}"))
		if len(left) != 1 || name != "" && left[0] != name {
			w.Fatalf("after the last night of %s there are %v, want one", volume, left)
		}
		name = left[0]
	}
	return name
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
