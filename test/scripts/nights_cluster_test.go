package scripts

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
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// The questions that the script asks, word for word: what they mean for a real cluster is seen there.
const (
	askRuns       = `get job -l (\S+) -o jsonpath={range .items[*]}{.metadata.name} {.status.conditions[*].type}{"\n"}{end}`
	askUnsettled  = `get job -l (\S+) -o jsonpath={.items[*].metadata.name}`
	askComplete   = `get changedblockrange -l (\S+) -o jsonpath={range .items[*]}{.metadata.name} {.metadata.annotations.chain} {.metadata.annotations.number}{"\n"}{end}`
	askConditions = `get job (\S+) -o jsonpath={.status.conditions[*].type}`
	awaitSnapshot = `wait --for=jsonpath={.status.readyToUse}=true volumesnapshot/(\S+) --timeout=10m`
	askSize       = `get volumesnapshot (\S+) -o jsonpath={.status.restoreSize}`
	askBase       = `get volumesnapshot (\S+) --ignore-not-found -o jsonpath={.status.readyToUse}{.metadata.deletionTimestamp} {.status.restoreSize}`
	askNodes      = `get pod -l (\S+) --field-selector=status.phase!=Failed -o jsonpath={.items[*].spec.nodeName}`
	askList       = `get changedblockrange (\S+) --ignore-not-found -o jsonpath={.status.state} {.status.conditions[?(@.type=="Ready")].reason}: {.status.message}`
	awaitJob      = `wait --for=jsonpath={.status.conditions[0].type} job/(\S+) --timeout=1m`
	setComplete   = `label (\S+) -l (\S+) nightly=complete --overwrite`
	deleteJob     = `delete job (\S+) --cascade=foreground --timeout=10m`
	deleteOthers  = `delete (\S+) -l (\S+) --wait=false`
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
	is := c.is
	switch job := is(awaitJob); {
	case c.args == "create -f -":
		return "", n.create(c.input)
	case strings.HasPrefix(c.args, "get "):
		return n.get(c)
	case is(awaitSnapshot) != nil && n.snapshots[is(awaitSnapshot)[1]] != nil:
		return "", nil
	case job != nil && n.jobs[job[1]] != nil:
		return "", n.await(n.jobs[job[1]])
	case is(setComplete) != nil:
		return "", n.setComplete(is(setComplete)[1], is(setComplete)[2])
	case is(deleteJob) != nil && n.jobs[is(deleteJob)[1]] != nil:
		delete(n.jobs, is(deleteJob)[1])
		return "", nil
	case is(deleteOthers) != nil:
		return "", n.deleteOthers(is(deleteOthers)[1], is(deleteOthers)[2])
	}
	return "", n.unknown(c)
}

// is compares a call with a question, and returns it with what stands in the question's gaps.
func (c call) is(question string) []string {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(question), regexp.QuoteMeta(`(\S+)`), `(\S+)`)
	return regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(c.args)
}

func (n *nights) unknown(c call) error {
	err := errors.New("not found")
	n.Errorf("kubectl %s: %v", c.args, err)
	return err
}

// get answers what lists of objects there are.
func (n *nights) get(c call) (string, error) {
	var out strings.Builder
	if m := c.is(askRuns); m != nil {
		for name, r := range n.runs {
			if n.selected(m[1], r.labels) {
				fmt.Fprintln(&out, name, r.conditions)
			}
		}
		return out.String(), nil
	}
	if m := c.is(askUnsettled); m != nil {
		for _, name := range slices.Sorted(maps.Keys(n.jobs)) {
			if n.selected(m[1], n.jobs[name].labels) {
				fmt.Fprint(&out, name, " ")
			}
		}
		return strings.TrimSpace(out.String()), nil
	}
	if m := c.is(askComplete); m != nil {
		for name, r := range n.ranges {
			if n.selected(m[1], r.labels) {
				fmt.Fprintln(&out, name, r.chain, r.number)
			}
		}
		return out.String(), nil
	}
	if m := c.is(askNodes); m != nil {
		for name, j := range n.jobs {
			if n.selected(m[1], labels.Set{"job-name": name}) {
				return j.node, nil
			}
		}
		return "", nil
	}
	return n.getOne(c)
}

// getOne answers what one object is like.
func (n *nights) getOne(c call) (string, error) {
	if m := c.is(askConditions); m != nil && n.jobs[m[1]] != nil {
		j := n.jobs[m[1]]
		first, _, _ := strings.Cut(j.conditions, " ")
		if !j.asked {
			j.asked = true
			return first, nil
		}
		return j.conditions, nil
	}
	if m := c.is(askSize); m != nil && n.snapshots[m[1]] != nil {
		return n.snapshots[m[1]].size, nil
	}
	if m := c.is(askBase); m != nil {
		if s := n.snapshots[m[1]]; s != nil {
			return "true" + s.deleted + " " + s.size, nil
		}
		return "", nil
	}
	if m := c.is(askList); m != nil && n.jobs[m[1]] != nil {
		if list := n.jobs[m[1]].fate.list; list != "" {
			return "Failed " + list + ": the driver's words", nil
		}
		return "Pending WaitingForClaim: no claim refers to it", nil
	}
	return "", n.unknown(c)
}

// await lets a Job go on.
func (n *nights) await(j *job) error {
	late := j.fate.late
	j.fate.late = false
	switch {
	case j.conditions != "" || j.fate.hangs():
	case len(j.fate.nodes) > 0:
		j.node, j.fate.nodes = j.fate.nodes[0], j.fate.nodes[1:]
	default:
		j.node = "node-1"
		if !late {
			n.perform(j)
		}
	}
	if n.killAtWait {
		return errKilled
	}
	if j.conditions == "" {
		n.pass(60)
		return errors.New("timed out waiting for the condition")
	}
	return nil
}

// selected says if a selector means labels.
func (n *nights) selected(selector string, of labels.Set) bool {
	parsed, err := labels.Parse(selector)
	if err != nil {
		n.Errorf("%s: %v", selector, err)
		return false
	}
	return parsed.Matches(of)
}

func (n *nights) setComplete(kind, selector string) error {
	for _, r := range n.ranges {
		if kind == "changedblockrange" && n.selected(selector, r.labels) {
			r.labels["nightly"] = "complete"
		}
	}
	for _, j := range n.jobs {
		if kind == "job" && n.selected(selector, j.labels) {
			j.labels["nightly"] = "complete"
		}
	}
	return nil
}

func (n *nights) deleteOthers(kind, selector string) error {
	switch kind {
	case "job":
		maps.DeleteFunc(n.jobs, func(_ string, j *job) bool { return n.selected(selector, j.labels) })
	case "changedblockrange":
		maps.DeleteFunc(n.ranges, func(_ string, r *changes) bool { return n.selected(selector, r.labels) })
	case "volumesnapshot":
		maps.DeleteFunc(n.snapshots, func(_ string, s *shot) bool { return n.selected(selector, s.labels) })
	default:
		return fmt.Errorf("the example makes no %s", kind)
	}
	return nil
}

// create makes what a manifest says, which must be valid, and new.
func (n *nights) create(manifest string) error {
	var object struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	var snapshot snapshotv1.VolumeSnapshot
	var list v1alpha1.ChangedBlockRange
	var backup batchv1.Job
	if err := yaml.Unmarshal([]byte(manifest), &object); err != nil {
		return err
	}
	var err error
	switch object.Kind {
	case "VolumeSnapshot":
		err = yaml.UnmarshalStrict([]byte(manifest), &snapshot)
		n.new(n.snapshots[snapshot.Name] == nil, manifest)
		n.snapshots[snapshot.Name] = &shot{labels: snapshot.Labels, size: n.size}
		if claim := snapshot.Spec.Source.PersistentVolumeClaimName; claim == nil || *claim != n.volume {
			n.Errorf("this is no snapshot of %s:\n%s", n.volume, manifest)
		}
	case v1alpha1.Kind:
		err = yaml.UnmarshalStrict([]byte(manifest), &list)
		n.new(n.ranges[list.Name] == nil, manifest)
		for _, needed := range []string{list.Spec.FromVolumeSnapshotName, list.Spec.ToVolumeSnapshotName} {
			if needed != "" && n.snapshots[needed] == nil {
				n.Errorf("there is no snapshot %s:\n%s", needed, manifest)
			}
		}
		n.ranges[list.Name] = &changes{
			labels: list.Labels, chain: list.Annotations["chain"], number: list.Annotations["number"],
			base: list.Spec.FromVolumeSnapshotName,
		}
	case "Job":
		err = yaml.UnmarshalStrict([]byte(manifest), &backup)
		n.new(n.jobs[backup.Name] == nil, manifest)
		n.jobs[backup.Name] = &job{labels: backup.Labels, fate: n.fate, keep: n.keep, manifest: backup}
	default:
		err = errors.New("no objects passed to create")
	}
	if err != nil {
		n.Errorf("%v in\n%s", err, manifest)
	}
	return err
}

// new fails for an object whose name another one has.
func (n *nights) new(is bool, manifest string) {
	n.Helper()
	if !is {
		n.Errorf("there is one already:\n%s", manifest)
	}
}
