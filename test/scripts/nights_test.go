package scripts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/cli"
)

// fate is what becomes of a backup's Job: by itself it is complete.
type fate struct {
	before string // the container before which it fails
	fails  bool   // after all containers
	again  string // the container before which its pod goes, or "end": another pod does all of it
	late   bool   // it is not over when it is first waited for
	list   string // why there is no list, and never will be
	mounts bool   // it has all its volumes, and what list says is about another claim
	waits  bool   // a claim of it waits for ever
	// nodes are those of its pods at each time that it is waited for before it goes on; none: that one still waits for its volumes.
	nodes []string
	// allocated has a list of allocated blocks in place of an increment.
	allocated bool
}

// changes is a ChangedBlockRange of the example.
type changes struct {
	labels              labels.Set
	chain, number, base string
}

// shot is a VolumeSnapshot of the example.
type shot struct {
	labels labels.Set
	size   string
	// deleted is when that was asked for.
	deleted string
}

// run is a Job of a CronJob of the example.
type run struct {
	labels     labels.Set
	conditions string
}

// job is a Job that makes a backup.
type job struct {
	labels labels.Set
	// conditions are empty as long as it runs; who asks for the first time sees the first one only.
	conditions string
	asked      bool
	// node is its pod's.
	node string
	fate fate
	// keep is how many chains it was told to keep.
	keep     int
	manifest batchv1.Job
}

// nights plays the cluster and the volume with the backups for examples/nightly. An image holds the name of the snapshot that it
// shows, a list those of its base and of its snapshot.
type nights struct {
	*testing.T
	kubectl *kubectl
	shell   []string
	// backups and list are the volumes, scripts the folder with the scripts.
	backups, list, checked, scripts string

	// volume is the claim that is backed up, of a size.
	volume, size  string
	perFull, keep int
	mountMinutes  int
	clock         time.Time
	// seconds are what the script's clock shows: a wait in vain takes a minute.
	seconds   int
	ranges    map[string]*changes
	jobs      map[string]*job
	snapshots map[string]*shot
	runs      map[string]*run

	fate fate
	// failAt is the call of kubectl in a night that fails, with outage all later ones as well; killAt is the one that the night's pod does
	// not survive, 0: none. What such a call asks for happens nevertheless if its number is even. killAtWait is the wait for the backup.
	failAt, killAt     int
	outage, killAtWait bool
	// calls were made in this night; printed is what it said, logs what the containers said, lastGood each volume's last successful one.
	calls         int
	printed, logs string
	lastGood      map[string]string
	damaged       bool
}

func newNights(t *testing.T, shell []string) *nights {
	t.Helper()
	n := &nights{
		T: t, kubectl: newKubectl(t), shell: shell, backups: t.TempDir(), list: t.TempDir(), checked: t.TempDir(), scripts: t.TempDir(), volume: "data", size: "128Mi", perFull: 7, keep: 2, mountMinutes: 60,
		clock: time.Date(2026, 1, 1, 2, 30, 0, 0, time.UTC), ranges: map[string]*changes{}, jobs: map[string]*job{}, snapshots: map[string]*shot{}, runs: map[string]*run{},
		lastGood: map[string]string{},
	}
	// To flush the whole machine's caches would only take time.
	flush := regexp.MustCompile(`\bsync\b`)
	for _, name := range []string{"prepare.sh", "commit.sh"} {
		n.write(filepath.Join(n.scripts, name), flush.ReplaceAllString(n.placed(textOf(t, "nightly/"+name)), "true"))
	}
	n.write(filepath.Join(n.scripts, "night.sh"), replaced(t, textOf(t, "nightly/night.sh"), "date -u +%Y%m%d-%H%M%S", `echo "$NOW"`, "date +%s", "cat seconds", "sleep 1", "true"))
	n.pass(0)
	for _, name := range []string{"snapshot.yaml", "list.yaml"} {
		n.write(filepath.Join(n.scripts, name), textOf(t, "nightly/"+name))
	}
	n.write(filepath.Join(n.scripts, "backup.yaml"), replaced(t, textOf(t, "nightly/backup.yaml"), "${CBR_IMAGE}", "kubectl-cbr"))
	return n
}

// pass moves the clock that the script reads.
func (n *nights) pass(seconds int) {
	n.Helper()
	n.seconds += seconds
	n.write(filepath.Join(n.scripts, "seconds"), fmt.Sprintln(n.seconds))
}

// placed returns a text with the test's folders in place of the volumes.
func (n *nights) placed(text string) string {
	return strings.NewReplacer("/backups", n.backups, "/list/", n.list+"/", "/checked/", n.checked+"/", "/nightly/", n.scripts+"/").Replace(text)
}

func (n *nights) write(path, text string) {
	n.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		n.Fatal(err)
	}
}

// remove takes something from the volume that the example must not take.
func (n *nights) remove(path ...string) {
	n.Helper()
	n.damaged = true
	if err := os.RemoveAll(n.path(path...)); err != nil {
		n.Fatal(err)
	}
}

// night runs the script of the next night, and checks what is there afterwards.
func (n *nights) night() (name string, err error) {
	n.Helper()
	n.clock = n.clock.Add(24 * time.Hour)
	return n.nightNow()
}

// nightNow is night at the time of the one before it.
func (n *nights) nightNow() (name string, err error) {
	n.Helper()
	now := n.clock.Format("20060102-150405")
	name = "night-" + n.volume + "-" + now
	of, id := n.run(), "nightly-"+n.volume+"-"+now
	n.runs[id], n.calls, n.logs = of, 0, ""
	whole, keep := n.chains(), n.keep
	for _, j := range n.jobs {
		if j.conditions == "" {
			// It may commit tonight, and was told so in its own night.
			keep = min(keep, j.keep)
		}
	}
	env := []string{"NOW=" + now, "JOB=" + id, "VOLUME=" + n.volume, "LIST_SIZE=10Mi", fmt.Sprint("NIGHTS_PER_FULL=", n.perFull), fmt.Sprint("KEEP_CHAINS=", n.keep), fmt.Sprint("MOUNT_MINUTES=", n.mountMinutes)}
	script := append(slices.Clone(n.shell), filepath.Join(n.scripts, "night.sh"))
	n.printed, err = n.kubectl.shell(n.T, n.scripts, env, script, n.answer)
	of.conditions = "Complete"
	if err != nil {
		of.conditions = "FailureTarget Failed"
	}
	n.Logf("%s, fate %+v, fails at %d (outage %t), killed at %d (wait %t): %v\n%s%s",
		name, n.fate, n.failAt, n.outage, n.killAt, n.killAtWait, err, n.printed, n.logs)
	if err == nil {
		n.lastGood[n.volume] = name
		if r := n.ranges[name]; r == nil || r.labels["nightly"] != "complete" || !slices.Contains(n.lists(), r.chain+"/"+name) {
			n.Fatalf("%s is successful, but %+v is not complete, or not among %q", name, r, n.lists())
		}
	}
	if !n.damaged {
		n.check(whole, keep)
	}
	return name, err
}

// check demands that every chain on the volume can be restored, that no good one was lost, and that the last successful night's
// backup, or a newer one, is there. whole are the chains that there were, keep is how many of them are to be kept.
func (n *nights) check(whole []string, keep int) {
	n.Helper()
	newest := ""
	for _, chain := range n.chains() {
		at := "none"
		for _, list := range n.lists() {
			if filepath.Dir(list) != chain {
				continue
			}
			base, target := n.ends(list + ".cbl")
			image := n.content(list + ".img")
			if base != at {
				n.Fatalf("chain %s is wrong: the list before %s ends at %s, and it begins at %s", chain, list, at, base)
			}
			if image != target {
				n.Fatalf("%s.img shows %q, its list ends at %q", list, image, target)
			}
			at, newest = target, max(newest, filepath.Base(list))
		}
	}
	if newest < n.lastGood[n.volume] {
		n.Fatalf("%s was successful, and the newest backup is %q", n.lastGood[n.volume], newest)
	}
	if left := len(n.chains()); left < min(keep, len(whole)) {
		n.Fatalf("there were the chains %q, %d are to be kept, and %d are left", whole, keep, left)
	}
}

func (n *nights) content(path string) string {
	raw, err := os.ReadFile(n.path(path))
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// ends returns the snapshots from which to which a list on the volume is. One of allocated blocks is from none.
func (n *nights) ends(path string) (base, target string) {
	n.Helper()
	list, err := blocklist.Open(n.path(path))
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = list.Close() }() // it was only read
	base, target = "none", list.Header().TargetSnapshot
	if list.Header().Mode == blocklist.Delta {
		base = strings.TrimPrefix(list.Header().BaseSnapshotHandle, "h-")
	}
	return base, target
}

// path returns a place in the volume's folder.
func (n *nights) path(elements ...string) string {
	return filepath.Join(append([]string{n.backups, n.volume}, elements...)...)
}

// run returns a new Job of the volume's CronJob.
func (n *nights) run() *run {
	n.Helper()
	var cron batchv1.CronJob
	manifest := replaced(n.T, textOf(n.T, "nightly/cronjob.yaml"), "${VOLUME}", n.volume, "${KUBECTL_IMAGE}", "kubectl")
	if err := yaml.Unmarshal([]byte(manifest), &cron); err != nil {
		n.Fatal(err)
	}
	return &run{labels: cron.Spec.JobTemplate.Labels}
}

// folders returns the folders of the volume's backups, chains those of them that have a whole full backup, and lists the lists in
// these, as CHAIN/NIGHT.
func (n *nights) folders() []string {
	entries, err := os.ReadDir(n.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (n *nights) chains() []string {
	return slices.DeleteFunc(n.folders(), func(name string) bool {
		_, err := os.Stat(n.path(name, name+".cbl"))
		return err != nil
	})
}

func (n *nights) lists() []string {
	var lists []string
	for _, chain := range n.chains() {
		found, err := filepath.Glob(n.path(chain, "*.cbl"))
		if err != nil {
			n.Fatal(err)
		}
		for _, path := range found {
			lists = append(lists, chain+"/"+strings.TrimSuffix(filepath.Base(path), ".cbl"))
		}
	}
	return lists
}

// hangs says that a Job's pod does not get its volumes.
func (f fate) hangs() bool { return f.list != "" && !f.mounts || f.waits }

// perform has a Job's pod do what its fate allows.
func (n *nights) perform(j *job) {
	n.Helper()
	pod := j.manifest.Spec.Template.Spec
	containers := append(slices.Clone(pod.InitContainers), pod.Containers...)
	until := func(end string) bool {
		for _, c := range containers {
			if c.Name == end {
				return false
			}
			if !n.container(j.manifest.Name, c) {
				return false
			}
		}
		return true
	}
	if j.fate.again != "" {
		until(j.fate.again)
	}
	if until(j.fate.before) && !j.fate.fails {
		j.conditions = "SuccessCriteriaMet Complete"
		return
	}
	j.conditions = "FailureTarget Failed"
}

// container runs one container of a backup's pod.
func (n *nights) container(night string, c corev1.Container) bool {
	n.Helper()
	if c.Name == "copy" {
		i := slices.Index(c.Args, "--target")
		n.write(n.placed(c.Args[i+1]), night)
		return true
	}
	of, list := n.ranges[night], filepath.Join(n.list, "changed-blocks.cbl")
	if of.base != "" && n.jobs[night].fate.allocated {
		fallbackOf(n.T, list, of.base, night)
	} else {
		listOf(n.T, list, blocklist.Binary, of.base, night)
	}
	if len(c.Command) == 0 {
		var args []string
		for _, arg := range c.Args {
			args = append(args, n.placed(arg))
		}
		var out bytes.Buffer
		code := cli.Execute(n.Context(), cli.Streams{In: strings.NewReader(""), Out: &out, Err: &out}, "test", args)
		n.logs += out.String()
		return code == 0
	}
	command := slices.Clone(n.shell[:len(n.shell)-1])
	for _, arg := range c.Command {
		command = append(command, n.placed(arg))
	}
	out, err := exec.CommandContext(n.Context(), command[0], command[1:]...).CombinedOutput()
	n.logs += string(out)
	return err == nil
}
