package docs

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// The questions that the script asks, word for word: what they mean for a real cluster is seen there.
const (
	askRuns       = `get job -l cronjob=nightly -o jsonpath={range .items[*]}{.metadata.name} {.status.conditions[*].type}{"\n"}{end}`
	askUnsettled  = `get job -l nightly=started -o jsonpath={.items[*].metadata.name}`
	askComplete   = `get changedblockrange -l nightly=complete -o jsonpath={range .items[*]}{.metadata.name} {.metadata.annotations.chain} {.metadata.annotations.number} {.status.toSnapshotHandle}{"\n"}{end}`
	askConditions = `get job (\S+) -o jsonpath={.status.conditions[*].type}`
	awaitSnapshot = `wait --for=jsonpath={.status.readyToUse}=true volumesnapshot/(\S+) --timeout=10m`
	awaitJob      = `wait --for=jsonpath={.status.conditions[0].type} job/(\S+) --timeout=10m`
	setComplete   = `label (\S+) -l nightly-name=(\S+) nightly=complete --overwrite`
	deleteJob     = `delete job (\S+) --cascade=foreground --timeout=10m`
	deleteOthers  = `delete (\S+) -l nightly,nightly-name!=(\S+) --wait=false`
)

// answer is what the cluster says to a night's call of kubectl, with the faults that are planned.
func (n *nights) answer(c call) (string, error) {
	n.calls++
	fails, killed := n.calls == n.failAt || n.outage && n.failAt > 0 && n.calls > n.failAt, n.calls == n.killAt
	if (fails || killed) && n.calls%2 == 1 {
		if killed {
			return "", errKilled
		}
		return "", errors.New("the API server is gone")
	}
	out, err := n.does(c)
	switch {
	case killed:
		return "", errKilled
	case fails:
		return "", errors.New("the API server's answer is lost")
	}
	return out, err
}

func (n *nights) does(c call) (string, error) {
	if c.args == "create -f -" {
		return "", n.create(c.input)
	}
	var out string
	err := errors.New("not found")
	is := func(question string) []string {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(question), regexp.QuoteMeta(`(\S+)`), `(\S+)`)
		return regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(c.args)
	}
	if is(askRuns) != nil {
		for name, conditions := range n.runs {
			out += name + " " + conditions + "\n"
		}
		return out, nil
	}
	if is(askUnsettled) != nil {
		for _, name := range slices.Sorted(maps.Keys(n.jobs)) {
			if n.jobs[name].label == "started" {
				out += name + " "
			}
		}
		return strings.TrimSpace(out), nil
	}
	if is(askComplete) != nil {
		for name, r := range n.ranges {
			if r.label == "complete" {
				out += fmt.Sprintln(name, r.chain, r.number, r.handle)
			}
		}
		return out, nil
	}
	if m := is(askConditions); m != nil && n.jobs[m[1]] != nil {
		j := n.jobs[m[1]]
		first, _, _ := strings.Cut(j.conditions, " ")
		if !j.asked {
			j.asked = true
			return first, nil
		}
		return j.conditions, nil
	}
	if m := is(awaitSnapshot); m != nil && n.snapshots[m[1]] {
		return "", nil
	}
	if m := is(awaitJob); m != nil && n.jobs[m[1]] != nil {
		return "", n.await(n.jobs[m[1]])
	}
	if m := is(setComplete); m != nil {
		return "", n.setComplete(m[1], m[2])
	}
	if m := is(deleteJob); m != nil && n.jobs[m[1]] != nil {
		delete(n.jobs, m[1])
		return "", nil
	}
	if m := is(deleteOthers); m != nil {
		return "", n.deleteOthers(m[1], m[2])
	}
	n.Errorf("kubectl %s: %v", c.args, err)
	return "", err
}

// await lets a Job go on.
func (n *nights) await(j *job) error {
	late := j.fate.late
	j.fate.late = false
	if j.conditions == "" && !late {
		n.perform(j)
	}
	if n.killAtWait {
		return errKilled
	}
	if j.conditions == "" {
		return errors.New("timed out waiting for the condition")
	}
	return nil
}

func (n *nights) setComplete(kind, night string) error {
	switch r, j := n.ranges[night], n.jobs[night]; {
	case kind == "changedblockrange" && r != nil:
		r.label = "complete"
	case kind == "job" && j != nil:
		j.label = "complete"
	}
	return nil
}

func (n *nights) deleteOthers(kind, night string) error {
	switch kind {
	case "job":
		maps.DeleteFunc(n.jobs, func(name string, _ *job) bool { return name != night })
	case "changedblockrange":
		maps.DeleteFunc(n.ranges, func(name string, _ *changes) bool { return name != night })
	case "volumesnapshot":
		maps.DeleteFunc(n.snapshots, func(name string, _ bool) bool { return name != night })
	default:
		return fmt.Errorf("the example makes no %s", kind)
	}
	return nil
}

// create makes what a manifest says, which must be valid.
func (n *nights) create(manifest string) error {
	var kind metav1.TypeMeta
	var snapshot snapshotv1.VolumeSnapshot
	var list v1alpha1.ChangedBlockRange
	var backup batchv1.Job
	if err := yaml.Unmarshal([]byte(manifest), &kind); err != nil {
		return err
	}
	var err error
	switch kind.Kind {
	case "VolumeSnapshot":
		err = yaml.UnmarshalStrict([]byte(manifest), &snapshot)
		n.snapshots[snapshot.Name] = true
	case v1alpha1.Kind:
		err = yaml.UnmarshalStrict([]byte(manifest), &list)
		n.ranges[list.Name] = &changes{
			label: list.Labels["nightly"], chain: list.Annotations["chain"], number: list.Annotations["number"],
			base: list.Spec.FromSnapshotHandle, handle: "h-" + list.Name,
		}
	case "Job":
		err = yaml.UnmarshalStrict([]byte(manifest), &backup)
		n.jobs[backup.Name] = &job{label: backup.Labels["nightly"], fate: n.fate, manifest: backup}
	default:
		err = errors.New("no objects passed to create")
	}
	if err != nil {
		n.Errorf("%v in\n%s", err, manifest)
	}
	return err
}
