package scripts

import (
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/test/seeded"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// shells are those in which the pods of the examples may run their scripts.
func shells(t *testing.T) [][]string {
	t.Helper()
	found := [][]string{{"sh"}}
	if path, err := exec.LookPath("busybox"); err == nil {
		found = append(found, []string{path, "sh"})
	}
	return found
}

// inEachShell runs a test of the nightly example once for every shell.
func inEachShell(t *testing.T, test func(t *testing.T, n *nights)) {
	t.Helper()
	for _, shell := range shells(t) {
		t.Run(filepath.Base(shell[0]), func(t *testing.T) { test(t, newNights(t, shell)) })
	}
}

// TestNightlyGoesOn has nights without a fault: seven in two chains and a half.
func TestNightlyGoesOn(t *testing.T) {
	t.Parallel()
	inEachShell(t, func(t *testing.T, n *nights) {
		n.perFull, n.keep = 3, 2
		var names []string
		for range 7 {
			names = append(names, n.mustPass())
		}
		want := []string{names[3] + "/" + names[3], names[3] + "/" + names[4], names[3] + "/" + names[5], names[6] + "/" + names[6]}
		if got := n.lists(); !slices.Equal(got, want) {
			t.Errorf("on the volume are the lists %q, want %q", got, want)
		}
		if len(n.ranges) != 1 || len(n.jobs) != 1 || len(n.snapshots) != 1 {
			t.Errorf("in the cluster are %d ChangedBlockRanges, %d Jobs and %d snapshots, want one of each", len(n.ranges), len(n.jobs), len(n.snapshots))
		}
	})
}

// TestNightlyOfTwoVolumes: volumes that are backed up in one namespace and to one claim, at the same time even, have nothing to do with
// each other.
func TestNightlyOfTwoVolumes(t *testing.T) {
	t.Parallel()
	inEachShell(t, func(t *testing.T, n *nights) {
		n.perFull, n.keep = 2, 1
		// One name begins with the other one.
		volumes := []string{"data", "data-2"}
		last := map[string]string{}
		for range 3 {
			n.clock = n.clock.Add(24 * time.Hour)
			for _, n.volume = range volumes {
				name, err := n.nightNow()
				if err != nil {
					t.Fatalf("%v\n%s", err, n.printed)
				}
				if base := n.ranges[name].base; base != "" && base != last[n.volume] {
					t.Errorf("the base of %s is %s, want that of %s", name, base, last[n.volume])
				}
				last[n.volume] = name
			}
		}
		for _, n.volume = range volumes {
			if got, want := n.lists(), []string{last[n.volume] + "/" + last[n.volume]}; !slices.Equal(got, want) {
				t.Errorf("%s has the lists %q, want %q", n.volume, got, want)
			}
			if n.snapshots[last[n.volume]] == nil || n.ranges[last[n.volume]] == nil {
				t.Errorf("%s has lost its snapshot or its ChangedBlockRange", last[n.volume])
			}
		}
		if len(n.ranges) != 2 || len(n.jobs) != 2 || len(n.snapshots) != 2 {
			t.Errorf("in the cluster are %d ChangedBlockRanges, %d Jobs and %d snapshots, want two of each", len(n.ranges), len(n.jobs), len(n.snapshots))
		}
		// A night of one volume does not keep another volume from its own.
		n.volume = volumes[0]
		n.runs["nightly-data-by-hand"] = n.run()
		n.volume = volumes[1]
		n.mustPass()
	})
}

// TestNightlyPruningCountsWholeChains: what a failed full backup has left does not count as a chain, and the chain that is in use
// stays.
func TestNightlyPruningCountsWholeChains(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(n *nights){
		"a folder of later that has no list": func(n *nights) {
			n.write(n.path("night-data-99990101-000000", "night-data-99990101-000000.img"), "half of it")
		},
		"a full backup that failed, and more nights to a chain": func(n *nights) {
			n.perFull = 1
			n.fate = fate{before: "commit"}
			n.mustFail("the backup failed")
			n.perFull = 3
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inEachShell(t, func(t *testing.T, n *nights) {
				n.perFull, n.keep = 3, 1
				full := n.mustPass()
				// Not of the example's making, so it stays.
				aside := n.path(full+".aside", "image")
				n.write(aside, "a copy that somebody has put aside")
				prepare(n)
				next := n.mustPass()
				if got, want := n.lists(), []string{full + "/" + full, full + "/" + next}; !slices.Equal(got, want) {
					t.Errorf("on the volume are the lists %q, want %q", got, want)
				}
				if got, want := n.folders(), []string{full, full + ".aside"}; !slices.Equal(got, want) {
					t.Errorf("on the volume are the folders %q, want %q", got, want)
				}
			})
		})
	}
}

// TestNightlyWithoutAnAnswer: kubectl that fails is no empty answer, so no full backup begins that nobody has planned.
func TestNightlyWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	n := newNights(t, []string{"sh"})
	n.perFull, n.keep = 99, 1
	full := n.mustPass()
	for failing, calls := 1, n.calls; failing <= calls; failing++ {
		n.failAt = failing
		_, _ = n.night() // whether it is successful depends on the call
		for name, r := range n.ranges {
			if name != full && r.base == "" {
				t.Fatalf("call %d of kubectl failed, and the full backup %s began", failing, name)
			}
		}
	}
	n.failAt = 0
	n.mustPass()
	if got := n.chains(); !slices.Equal(got, []string{full}) {
		t.Errorf("on the volume are the chains %q, want %q", got, full)
	}
}

// TestNightlyBackupBehindItsPod: the nightly pod goes, its Job goes on. Its backup counts if it is complete, late or not.
func TestNightlyBackupBehindItsPod(t *testing.T) {
	t.Parallel()
	n := newNights(t, []string{"sh"})
	n.perFull, n.keep = 9, 1
	full := n.mustPass()
	for _, late := range []bool{false, true} {
		n.fate, n.killAtWait = fate{late: late}, true
		behind, err := n.night()
		if err == nil {
			t.Fatal("the night's pod was killed, and the night is successful")
		}
		next := n.mustPass()
		if got := n.ranges[next]; got.base != behind || got.chain != full {
			t.Errorf("the next night has the base %q in chain %s, want that of %s in %s", got.base, got.chain, behind, full)
		}
	}
}

// TestNightlyFailedBackup: the night ends when its Job has failed, and what that has left in the chain is gone before the
// next increment, also where it was committed.
func TestNightlyFailedBackup(t *testing.T) {
	t.Parallel()
	inEachShell(t, func(t *testing.T, n *nights) {
		n.volume, n.perFull, n.keep = "data.db", 9, 1 // a claim's name may have dots
		full := n.mustPass()
		for _, f := range []fate{{before: "copy"}, {before: "commit"}, {fails: true}} {
			n.fate = f
			n.mustFail("the backup failed")
			last := n.mustPass()
			if got, want := n.lists(), []string{full + "/" + full, full + "/" + last}; !slices.Equal(got, want) {
				t.Errorf("%+v: on the volume are the lists %q, want %q", f, got, want)
			}
			full = n.restart()
		}
	})
}

// TestNightlyWithoutVolumes: a Job whose claims fail for good ends when that is known, says why, and costs the next night nothing; a
// Job that has its volumes goes on, whatever the list's other claims do.
func TestNightlyWithoutVolumes(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fate{
		"no list: DeltaUnavailable: the driver's words": {list: "DeltaUnavailable"},
		"has not got its volumes in 0 minutes":          {waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inEachShell(t, func(t *testing.T, n *nights) {
				n.perFull, n.keep = 9, 1
				if f.waits {
					n.mountMinutes = 0
				}
				full := n.mustPass()
				n.fate = f
				n.mustFail(name)
				if len(n.jobs) != 1 || n.jobs[full] == nil {
					t.Errorf("there are still the Jobs %v", slices.Collect(maps.Keys(n.jobs)))
				}
				// And when the nightly pod goes before it has seen it.
				n.fate, n.killAtWait = f, true
				if _, err := n.night(); err == nil {
					t.Fatal("the night's pod was killed, and the night is successful")
				}
				if last := n.mustPass(); n.ranges[last].base != full {
					t.Errorf("the next night has the base %q, want %s", n.ranges[last].base, full)
				}
			})
		})
	}
	n := newNights(t, []string{"sh"})
	n.fate = fate{late: true, list: "VolumeFull", mounts: true}
	if _, err := n.night(); err != nil {
		t.Errorf("a Job that has its volumes: %v\n%s", err, n.printed)
	}
}

// TestNightlyOfAnEvictedPod: a pod that takes the place of another one has as long for its volumes, however old the night is.
func TestNightlyOfAnEvictedPod(t *testing.T) {
	t.Parallel()
	inEachShell(t, func(t *testing.T, n *nights) {
		n.mountMinutes = 3
		first, again := []string{"", "", "node-1", "node-1"}, []string{"", "", "node-2"}
		n.fate = fate{nodes: slices.Concat(first, again)}
		if _, err := n.night(); err != nil {
			t.Fatalf("%v\n%s", err, n.printed)
		}
		// Nor has it longer.
		n.fate = fate{nodes: slices.Concat(first, again[:2], again)}
		n.mustFail("has not got its volumes in 3 minutes")
	})
}

// TestNightlyOfAllocatedBlocks: a list that lacks what was freed since its base does not become a part of the chain.
func TestNightlyOfAllocatedBlocks(t *testing.T) {
	t.Parallel()
	inEachShell(t, func(t *testing.T, n *nights) {
		n.perFull, n.keep = 9, 1
		n.fate = fate{allocated: true}
		full, err := n.night()
		if err != nil {
			t.Fatalf("a full backup: %v\n%s", err, n.printed)
		}
		n.fate = fate{allocated: true}
		n.mustFail("blocks that were freed")
		if got, want := n.lists(), []string{full + "/" + full}; !slices.Equal(got, want) {
			t.Errorf("on the volume are the lists %q, want %q", got, want)
		}
		n.restart()
	})
}

// TestNightlyOfAnExpandedVolume: no increment fits a chain of another size, so a new one begins, and the night says so.
func TestNightlyOfAnExpandedVolume(t *testing.T) {
	t.Parallel()
	inEachShell(t, func(t *testing.T, n *nights) {
		n.perFull, n.keep = 9, 2
		before := n.mustPass()
		n.size = "256Mi"
		full := n.mustPass()
		if want := "had 128Mi at the time of " + before + " and has 256Mi now"; !strings.Contains(n.printed, want) {
			t.Errorf("the night does not say %q:\n%s", want, n.printed)
		}
		next := n.mustPass()
		if got, want := n.lists(), []string{before + "/" + before, full + "/" + full, full + "/" + next}; !slices.Equal(got, want) {
			t.Errorf("on the volume are the lists %q, want %q", got, want)
		}
		for _, c := range n.jobs[next].manifest.Spec.Template.Spec.Volumes {
			if e := c.Ephemeral; c.Name == "snapshot" && e.VolumeClaimTemplate.Spec.Resources.Requests.Storage().String() != n.size {
				t.Errorf("the snapshot becomes a volume of another size than %s: %v", n.size, e)
			}
		}
	})
}

// TestNightlyRefuses: nights beside each other, a clock that was put back, a base that does not tell what it is, a chain that is gone,
// and numbers that are none. Nothing is made then.
func TestNightlyRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault   func(n *nights, full string)
		message string
	}{
		"another night":             {func(n *nights, _ string) { n.runs["nightly-other"] = n.run() }, "another night is not over: nightly-other"},
		"a clock put back":          {func(n *nights, _ string) { n.clock = n.clock.AddDate(0, -1, 0) }, "the clock was put back"},
		"no snapshot":               {func(n *nights, full string) { delete(n.snapshots, full) }, "the snapshot of night-data-20260102-023000 is gone"},
		"a snapshot that goes":      {func(n *nights, full string) { n.snapshots[full].deleted = "2026-01-02T12:00:00Z" }, "is gone"},
		"a chain that is none":      {func(n *nights, full string) { n.ranges[full].chain = "night-data-20260102|g" }, "does not tell its chain"},
		"no chain":                  {func(n *nights, full string) { n.ranges[full].chain = "" }, "does not tell its chain"},
		"no number":                 {func(n *nights, full string) { n.ranges[full].number = "" }, "does not tell its chain"},
		"a long name":               {func(n *nights, _ string) { n.volume = strings.Repeat("a", 42) }, "too long a name"},
		"a snapshot without a size": {func(n *nights, _ string) { n.size = "" }, "does not tell its size"},
		"no nights per full":        {func(n *nights, _ string) { n.perFull = 0 }, "NIGHTS_PER_FULL"},
		"no chains to keep":         {func(n *nights, _ string) { n.keep = 0 }, "KEEP_CHAINS"},
		"the base's list":           {func(n *nights, full string) { n.remove(full, full+".cbl") }, "is not there any more"},
		"the base's image":          {func(n *nights, full string) { n.remove(full, full+".img") }, "is not there any more"},
		"the volume is empty":       {func(n *nights, full string) { n.remove(full) }, "is not there any more"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNights(t, []string{"sh"})
			n.perFull, n.keep = 9, 1
			full := n.mustPass()
			c.fault(n, full)
			n.mustFail(c.message)
			if got := n.lists(); len(got) > 1 {
				t.Errorf("on the volume are the lists %q", got)
			}
		})
	}
}

// TestNightlyFaults: whatever fails, every chain on the volume can be restored, no good one is lost, and no night says that it has
// succeeded when it has not.
func TestNightlyFaults(t *testing.T) {
	t.Parallel()
	rng := seeded.Rand(t)
	n := newNights(t, []string{"sh"})
	fates := []fate{{}, {}, {}, {before: "copy"}, {before: "commit"}, {fails: true}, {again: "copy"}, {again: "commit"}, {again: "end"}, {late: true}, {list: "DeltaUnavailable"}, {allocated: true}}
	for range size.Of(500, 30) {
		if rng.IntN(20) == 0 {
			n.size = []string{"128Mi", "256Mi"}[rng.IntN(2)]
		}
		if rng.IntN(6) == 0 {
			n.perFull, n.keep = 1+rng.IntN(4), 1+rng.IntN(3)
		}
		n.fate, n.failAt, n.killAt, n.killAtWait, n.outage = fates[rng.IntN(len(fates))], 0, 0, rng.IntN(8) == 0, rng.IntN(2) == 0
		switch rng.IntN(5) {
		case 0:
			n.failAt = 1 + rng.IntN(18)
		case 1:
			n.killAt = 1 + rng.IntN(18)
		}
		if _, err := n.night(); err == nil && (n.fate.before != "" || n.fate.fails || n.fate.hangs()) {
			t.Fatalf("the backup was to be %+v, and the night was successful", n.fate)
		}
	}
	n.fate, n.failAt, n.killAt, n.killAtWait = fate{}, 0, 0, false
	if _, err := n.night(); err != nil {
		n.restart() // its chain was removed for a newer one that did not count
	}
	n.mustPass()
}

// restart does what a night says that was refused for its chain, and returns the full backup with which the next one begins.
func (n *nights) restart() string {
	n.Helper()
	clear(n.ranges)
	full := n.mustPass()
	if n.ranges[full].base != "" {
		n.Fatal("after its ChangedBlockRanges are gone, the example goes on with an increment")
	}
	return full
}

// mustPass runs a night that must be successful, and returns its name.
func (n *nights) mustPass() string {
	n.Helper()
	n.fate, n.killAtWait = fate{}, false
	name, err := n.night()
	if err != nil {
		n.Fatalf("%v\n%s", err, n.printed)
	}
	return name
}

// mustFail runs a night that must say why it fails.
func (n *nights) mustFail(message string) {
	n.Helper()
	_, err := n.night()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Exited() || !strings.Contains(n.printed+n.logs, message) {
		n.Fatalf("the night ended with %v, want %q\n%s%s", err, message, n.printed, n.logs)
	}
	n.fate = fate{}
}
