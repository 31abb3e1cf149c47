//go:build e2e

package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The tests of this file take longest. Go lets parallel tests go on in the reverse order of their files and lines, so that these
// begin first and nothing waits for them alone in the end.

// TestExampleNightly runs four nights, and looks at the restore of the last one from what the pruning has left. Another volume has two
// nights beside that.
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
	// The page has restored that night.
	w.create(restored("expected", "128Mi", last))
	w.awaitBound("expected")
	w.wantEqual("restored", "expected")
	w.tools("look", "backups")
	for volume, night := range map[string]string{"data": last, "other": other} {
		found := strings.Fields(string(w.exec("look", "cd /mnt/backups/"+volume+" && ls -d night-* && cd night-* && ls *.cbl | sort")))
		if len(found) != 3 || found[1] != found[0]+".cbl" || found[2] != night+".cbl" {
			t.Errorf("%s has the chain and lists %v, want one chain with a full backup and the increment %s", volume, found, night)
		}
	}
}

// wantEqual compares two volumes, byte for byte.
func (w *world) wantEqual(one, two string) {
	w.Helper()
	w.pod("equal", nil, corev1.Container{Name: "compare", Image: toolsImage, Command: []string{"cmp", "/dev/" + one, "/dev/" + two}},
		map[string]string{"/dev/" + one: one, "/dev/" + two: two})
}

// lastNight returns the one night of a volume that has a snapshot and a ChangedBlockRange, when those of earlier nights are gone.
func (w *world) lastNight(volume string) (name string) {
	w.Helper()
	w.eventually("one night of "+volume+" is left", patience, func(context.Context) (bool, string) {
		left := strings.Fields(w.kubectl("get", "volumesnapshot,changedblockrange", "-l", "nightly-volume="+volume, "-o", "jsonpath={.items[*].metadata.name}"))
		if len(left) != 2 || left[0] != left[1] {
			return false, strings.Join(left, " ")
		}
		name = left[0]
		return true, ""
	})
	return name
}

// TestExampleWeek runs a full backup, six increments and a restore of each day, which the last page compares with that
// day's snapshot, byte for byte. Then it restores the last day, with -short one of its middle, when no snapshot is left.
func TestExampleWeek(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.wantLines("the full backup", w.example("full-backup"), "read 16 MiB of 128 MiB (12.50 %)")
	increments := w.example("increments")
	compared := w.example("restore", "COMPARE=yes")
	for _, day := range []string{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"} {
		w.wantLines("the week", increments, day+": copied ")
		w.wantLines("the restore", compared, "the volume is the snapshot "+day)
	}
	wanted := "sunday"
	if testing.Short() {
		wanted = "wednesday"
	}
	w.create(restored("expected", "128Mi", wanted))
	w.awaitBound("expected")
	w.kubectl("delete", "volumesnapshot", "--all", "--timeout=120s")
	w.tools("spoiler", "restored")
	w.exec("spoiler", "dd if=/dev/urandom of=/dev/restored bs=1M count=128 conv=notrunc 2>/dev/null\n"+syncDevice("/dev/restored"))
	w.kubectl("delete", "pod", "spoiler", "--timeout=120s")
	w.example("restore", "WANTED="+wanted)
	w.wantEqual("restored", "expected")
}
