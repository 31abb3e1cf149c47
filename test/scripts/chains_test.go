package scripts

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/cli"
	"github.com/cbt-populator/cbt-populator/test/seeded"
)

// restoring plays the cluster for nightly/restore.sh: folders are the claims, and the Jobs run as they are, with the real kubectl-cbr.
type restoring struct {
	*testing.T
	shell []string
	// backups, restored and checked are what the Jobs find as /backups, /dev/restored and /checked.
	backups, restored, checked string
	jobs                       []string
	failed                     map[string]bool
	logs                       map[string]string
}

// chain puts a chain of backups on the volume, and returns what each night's snapshot held.
func (r *restoring) chain(rng *rand.Rand, volume string, nights ...string) map[string][]byte {
	r.Helper()
	const piece = 4096
	states, state := map[string][]byte{}, make([]byte, listedVolume)
	from := ""
	for _, night := range nights {
		var changed []blocklist.Extent
		for at := int64(0); at < listedVolume; at += piece {
			if rng.IntN(8) > 0 {
				continue
			}
			data := make([]byte, piece)
			if rng.IntN(4) > 0 { // zeros count, too
				for i := range data {
					data[i] = byte(1 + rng.IntN(255))
				}
			}
			copy(state[at:], data)
			changed = append(changed, blocklist.Extent{Offset: at, Length: piece})
		}
		states[night] = slices.Clone(state)
		source := filepath.Join(r.TempDir(), "snapshot")
		r.write(source, state)
		place := filepath.Join(r.backups, volume, nights[0], night)
		listOf(r.T, place+".cbl", blocklist.Binary, from, night, changed...)
		if out, code := r.cbr("apply", "--list", place+".cbl", "--source", source, "--target", place+".img"); code != 0 {
			r.Fatalf("kubectl-cbr ends with %d:\n%s", code, out)
		}
		from = night
	}
	return states
}

func (r *restoring) write(path string, data []byte) {
	r.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
		r.Fatal(err)
	}
}

func (r *restoring) cbr(args ...string) (string, int) {
	var out bytes.Buffer
	code := cli.Execute(r.Context(), cli.Streams{In: strings.NewReader(""), Out: &out, Err: &out}, "test", args)
	return out.String(), code
}

// answer is what the cluster says.
func (r *restoring) answer(c call) (string, error) {
	named := regexp.MustCompile(`\bjob/(\S+)`).FindStringSubmatch(c.args)
	switch {
	case c.args == "apply -f -":
		var job batchv1.Job
		if err := yaml.UnmarshalStrict([]byte(c.input), &job); err != nil || job.Labels["restore"] != "chain" {
			r.Errorf("%v in\n%s", err, c.input)
		}
		r.run(job)
		return "", nil
	case c.args == "delete job -l restore=chain --cascade=foreground":
		r.jobs, r.failed, r.logs = nil, map[string]bool{}, map[string]string{}
		return "", nil
	case named != nil && slices.Contains(r.jobs, named[1]) && strings.HasPrefix(c.args, "wait --for=condition=Complete "):
		if r.failed[named[1]] {
			return "", errors.New("timed out waiting for the condition")
		}
		return "", nil
	case named != nil && slices.Contains(r.jobs, named[1]) && strings.HasPrefix(c.args, "wait --for=jsonpath={.status.conditions[0].type} "):
		return "", nil
	case named != nil && slices.Contains(r.jobs, named[1]) && strings.HasPrefix(c.args, "logs "):
		return r.logs[named[1]], nil
	}
	r.Errorf("kubectl %s", c.args)
	return "", errors.New("not found")
}

// run has a Job's pod do its work.
func (r *restoring) run(job batchv1.Job) {
	r.Helper()
	r.jobs = append(r.jobs, job.Name)
	pod := job.Spec.Template.Spec
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		out, ok := r.container(c)
		r.logs[job.Name] += out
		if !ok {
			r.failed[job.Name] = true
			return
		}
	}
}

// container runs a container with the test's places, with a file for the device.
func (r *restoring) container(c corev1.Container) (string, bool) {
	r.Helper()
	places := strings.NewReplacer("/backups", r.backups, "/dev/restored", r.restored, "/checked", r.checked, "blockdev --getsize64", "stat -c %s")
	if len(c.Command) == 0 {
		var args []string
		for _, arg := range c.Args {
			args = append(args, places.Replace(arg))
		}
		out, code := r.cbr(args...)
		return out, code == 0
	}
	command := slices.Clone(r.shell[:len(r.shell)-1])
	for _, arg := range c.Command {
		command = append(command, places.Replace(arg))
	}
	var out bytes.Buffer
	err := runContainer(r.T, corev1.Container{Command: command}, &out)
	return out.String(), err == nil
}

// restore runs the script, and returns what it prints and what the target is then.
func (r *restoring) restore(night string) (printed string, target []byte, err error) {
	r.Helper()
	script, err := filepath.Abs(filepath.Join(root, "examples", "nightly", "restore.sh"))
	if err != nil {
		r.Fatal(err)
	}
	command := []string{"bash", script, "data"}
	if night != "" {
		command = append(command, night)
	}
	printed, err = newKubectl(r.T).shell(r.T, r.TempDir(), []string{"CBR_IMAGE=kubectl-cbr"}, command, r.answer)
	target, readErr := os.ReadFile(r.restored)
	if readErr != nil {
		r.Fatal(readErr)
	}
	return printed, target, err
}

// TestRestoreOfANight: restore.sh gives back what the volume held in the night that is wanted, whatever was on the target; a chain
// that is not whole, or a night that is none, costs the target nothing.
func TestRestoreOfANight(t *testing.T) {
	t.Parallel()
	const first, second = "night-data-20260101-023000", "night-data-20260105-023000"
	newer := []string{second, "night-data-20260106-023000", "night-data-20260107-023000"}
	rng := seeded.Rand(t)
	made := &restoring{T: t, backups: t.TempDir()}
	states := made.chain(rng, "data", newer...)
	maps.Copy(states, made.chain(rng, "data", first))
	made.chain(rng, "data-2", "night-data-2-20260109-023000")
	garbage := bytes.Repeat([]byte("old data"), listedVolume/8)
	for name, c := range map[string]struct {
		night string
		// damage is done to the newer chain.
		damage  func(dir string) error
		want    string
		refusal string
	}{
		"the last night":       {want: newer[2]},
		"a night of its chain": {night: newer[1], want: newer[1]},
		"a full backup":        {night: second, want: second},
		"an older chain":       {night: first, want: first},
		"no such night":        {night: "night-data-20260108-023000", refusal: "no whole backup night-data-20260108-023000"},
		"a night is missing":   {damage: func(dir string) error { return os.Remove(filepath.Join(dir, newer[1]+".cbl")) }, refusal: "do not follow each other"},
		"no full backup":       {damage: func(dir string) error { return os.Remove(filepath.Join(dir, second+".cbl")) }, refusal: "no whole backup latest"},
		"an image is missing":  {damage: func(dir string) error { return os.Remove(filepath.Join(dir, newer[2]+".img")) }, refusal: "has no image"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, shell := range shells(t) {
				r := &restoring{
					T: t, shell: shell, backups: filepath.Join(t.TempDir(), "backups"), restored: filepath.Join(t.TempDir(), "restored"), checked: t.TempDir(),
				}
				if err := os.CopyFS(r.backups, os.DirFS(made.backups)); err != nil {
					t.Fatal(err)
				}
				r.write(r.restored, garbage)
				if c.damage != nil {
					if err := c.damage(filepath.Join(r.backups, "data", second)); err != nil {
						t.Fatal(err)
					}
				}
				printed, got, err := r.restore(c.night)
				if c.refusal != "" {
					if err == nil || !strings.Contains(printed, c.refusal) || !strings.Contains(printed, "NOT RESTORED") || !bytes.Equal(got, garbage) {
						t.Errorf("it ends with %v, want %q and an untouched target:\n%s", err, c.refusal, printed)
					}
					continue
				}
				if err != nil || !strings.Contains(printed, "restored: "+c.want) || !bytes.Equal(got, states[c.want]) {
					t.Errorf("%v; the target is not what %s held:\n%s", err, c.want, printed)
				}
			}
		})
	}
}
