package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/report"
)

// Options says what is measured where.
type Options struct {
	// Kubeconfig reaches the cluster as an administrator; AuditLog is where its API server writes down the requests of the
	// service accounts in the namespace that cbt-populator is installed in.
	Kubeconfig, AuditLog string
	// Registry is where the cluster pulls images from, Bin the folder with ko and with the cluster's program.
	Registry, Bin string
	// Rounds is the number of runs whose median counts; Many the number of claims that are made once.
	Rounds, Many int
	// Scratch is a folder for programs.
	Scratch string
	Log     func(string)
}

// several is how many claims a round makes at once.
const several = 20

// contest is one row: so many claims, filled by somebody or by nobody.
type contest struct {
	title  string
	n      int
	ours   bool
	prefix string
	// prepare and restore change the cluster for a while; they may be nil.
	prepare, restore func(ctx context.Context) error
	// run creates everything and waits for the end.
	run func(ctx context.Context) error
	// check looks at what was made.
	check func(ctx context.Context) error
	// account and populators are whose writes are counted, and where its temporary objects are; empty: nobody's.
	account, populators string

	took []time.Duration
	// cores are how many of the machine's processors were busy on average.
	cores   []float64
	windows []window
}

// Measure returns the section of the controller.
func Measure(ctx context.Context, o Options) (section report.Section, err error) {
	if _, err := os.Stat(o.AuditLog); err != nil {
		return section, fmt.Errorf("the cluster's API server keeps no audit log: start the cluster anew with `make cluster-down cluster-up`: %w", err)
	}
	w, err := connect(ctx, o.Kubeconfig)
	if err != nil {
		return section, err
	}
	if err := w.checkInstalled(ctx); err != nil {
		return section, err
	}
	o.Log("a volume and two snapshots of it")
	if err := w.takeSnapshots(ctx); err != nil {
		return section, err
	}
	u, err := w.startUpstream(ctx, o, o.Scratch)
	if err != nil {
		return section, err
	}
	// What was begun is removed even if ctx has ended.
	after := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, w.removeSnapshots(after), w.remove(after), u.stop(after)) }()
	rounds, many := w.contests(o)
	for round := range o.Rounds {
		for _, c := range rounds {
			if err := w.hold(ctx, c, o.Log); err != nil {
				return section, fmt.Errorf("%s, round %d: %w", c.title, round+1, err)
			}
		}
	}
	for _, c := range many {
		if err := w.hold(ctx, c, o.Log); err != nil {
			return section, fmt.Errorf("%s: %w", c.title, err)
		}
	}
	return o.section(ctx, append(rounds, many...))
}

// checkInstalled says what to do if nobody would fill the claims.
func (w *world) checkInstalled(ctx context.Context) error {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "cbt-populator-controller", Namespace: installed}}
	if err := w.Get(ctx, client.ObjectKeyFromObject(d), d); err != nil {
		return fmt.Errorf("cbt-populator is not installed: run make deploy-local: %w", err)
	}
	if d.Status.ReadyReplicas == 0 {
		return errors.New("cbt-populator's controller is not ready: see kubectl -n cbt-populator get pods")
	}
	return nil
}

// contests returns what is measured in every round, and what once.
func (w *world) contests(o Options) (rounds, many []*contest) {
	floor := func(n int) *contest {
		c := &contest{title: "pods with plain volumes, Succeeded (the floor)", n: n, prefix: "plain"}
		c.run = func(ctx context.Context) error { return w.plainPairs(ctx, c.prefix, n) }
		return c
	}
	ours := func(title string, n, ranges int) *contest {
		c := &contest{title: "**cbt-populator**, " + title, n: n, ours: true, prefix: "list",
			account: "system:serviceaccount:" + installed + ":cbt-populator-controller", populators: installed}
		c.run = func(ctx context.Context) error {
			return w.claims(ctx, c.prefix, n, ranges, func(name string) client.Object { return changedBlockRange(name) }, v1alpha1.GroupName, "ChangedBlockRange")
		}
		c.check = func(ctx context.Context) error { return w.checkLists(ctx, c.prefix, ranges) }
		return c
	}
	each := func(n int) *contest { return ours("claims Bound", n, n) }
	theirs := func(n int) *contest {
		c := &contest{title: "upstream's sample populator, claims Bound", n: n, prefix: "hello",
			account: "system:serviceaccount:" + installed + ":" + helloAccount, populators: helloNamespace}
		c.run = func(ctx context.Context) error { return w.claims(ctx, c.prefix, n, n, hello, helloGroup, "Hello") }
		return c
	}
	rounds = []*contest{floor(1), each(1), theirs(1), floor(several), each(several), ours("claims of one ChangedBlockRange, Bound", several, 1), theirs(several)}
	limited := ours("claims Bound, the sidecar limited to upstream's 5 requests/s", several, several)
	limited.prepare = func(ctx context.Context) error {
		return o.restartSidecar(ctx, "--arg=--kube-api-qps=5", "--arg=--kube-api-burst=10")
	}
	limited.restore = func(ctx context.Context) error { return o.restartSidecar(ctx, "--reset-args") }
	many = []*contest{limited}
	if o.Many > 0 {
		many = append(many, floor(o.Many), each(o.Many))
	}
	return rounds, many
}

// plainPairs creates claims and pods that mount them and end at once.
func (w *world) plainPairs(ctx context.Context, prefix string, n int) error {
	for i := range n {
		name := numbered(prefix, i)
		err := w.create(ctx, claim(name, corev1.PersistentVolumeFilesystem, nil), pod(name, name, corev1.PersistentVolumeFilesystem, "true"))
		if err != nil {
			return err
		}
	}
	return w.awaitPods(ctx, n)
}

// claims creates so many sources, and n claims that refer to them in turn, and waits until all are Bound.
func (w *world) claims(ctx context.Context, prefix string, n, sources int, source func(string) client.Object, group, kind string) error {
	for i := range n {
		name, from := numbered(prefix, i), numbered(prefix, i%sources)
		if i < sources {
			if err := w.create(ctx, source(from)); err != nil {
				return err
			}
		}
		if err := w.create(ctx, claim(name, corev1.PersistentVolumeFilesystem, sourceOf(group, kind, from))); err != nil {
			return err
		}
	}
	return w.awaitBound(ctx, prefix, n)
}

// hold runs c once, checks what it made, removes it, and waits until all of it is gone.
func (w *world) hold(ctx context.Context, c *contest, log func(string)) (err error) {
	if c.prepare != nil {
		defer func() { err = errors.Join(err, c.restore(context.WithoutCancel(ctx))) }()
		if err := c.prepare(ctx); err != nil {
			return err
		}
	}
	begin := time.Now()
	took, cores, err := measure.Busy(func() error { return c.run(ctx) })
	if err != nil {
		return err
	}
	c.took, c.cores = append(c.took, took), append(c.cores, cores)
	log(fmt.Sprintf("%-50s %3d: %s", report.Plain(c.title), c.n, took.Round(10*time.Millisecond)))
	if c.populators != "" {
		// What the populator cleans up after a claim is Bound counts too; what the claim's deletion costs does not.
		if err := w.awaitNone(ctx, c.populators, isController); err != nil {
			return err
		}
	}
	if c.check != nil {
		if err := c.check(ctx); err != nil {
			return err
		}
	}
	c.windows = append(c.windows, window{account: c.account, begin: begin, end: time.Now()})
	return w.clear(ctx)
}

// restartSidecar restarts the snapshot-metadata sidecar of the local cluster with other arguments.
func (o Options) restartSidecar(ctx context.Context, flags ...string) error {
	_, err := measure.Run(exec.CommandContext(ctx, filepath.Join(o.Bin, "cluster"), append([]string{"restart", "csi-snapshot-metadata"}, flags...)...))
	return err
}

// isController tells the controller's own pods from populators.
func isController(o client.Object) bool {
	return o.GetLabels()["app.kubernetes.io/component"] == "controller"
}

// clear deletes everything that was measured.
func (w *world) clear(ctx context.Context) error {
	everything := []client.DeleteAllOfOption{
		client.InNamespace(namespace), client.MatchingLabels{measured: "true"}, client.GracePeriodSeconds(0),
	}
	for _, o := range []client.Object{&corev1.Pod{}, &corev1.PersistentVolumeClaim{}, &v1alpha1.ChangedBlockRange{}, hello("")} {
		if err := w.DeleteAllOf(ctx, o, everything...); err != nil {
			return fmt.Errorf("delete every measured %T: %w", o, err)
		}
	}
	if err := w.awaitNone(ctx, namespace, func(o client.Object) bool { return o.GetName() == source }); err != nil {
		return err
	}
	var volumes corev1.PersistentVolumeList
	return w.count(ctx, "released volumes are left", 0, "", &volumes, func() (n int) {
		for _, v := range volumes.Items {
			if v.Status.Phase != corev1.VolumeBound {
				n++
			}
		}
		return n
	})
}

// flush is how long the API server may keep lines of its audit log to itself.
const flush = 31 * time.Second

func (o Options) section(ctx context.Context, contests []*contest) (report.Section, error) {
	s := report.Section{
		Key: "controller", Title: "The controller",
		Text: fmt.Sprintf("On the local cluster, everything created at once: plain claims with a pod that mounts each and ends, until all pods have Succeeded; the sample populator of "+
			"upstream's lib-volume-populator, unchanged, in pod mode, which writes one line into each volume; and cbt-populator, with a ChangedBlockRange for each claim or one for all, "+
			"until all claims are Bound. Medians of %d rounds in turns; more than %d claims once, and so the row with a limited sidecar. API writes are those of the populator's controller, cleaning up included, counted by "+
			"the API server; those to changedblockranges are a range's, whether one claim refers to it or many. Like all of the local cluster's components, the snapshot-metadata "+
			"sidecar is allowed 200 requests/s to the API server here, but in that row. The cluster is all that the machine's %d cores do: where they are busy, claims and pods come as "+
			"fast as the node and its control plane can make them.",
			o.Rounds, several, runtime.NumCPU()),
		Heading: []string{"what", "how many", "seconds", "× the floor", "per second", "cores busy", "API writes per claim"},
		Chart:   report.Chart{Axis: "seconds (less is better)"},
	}
	o.Log("waiting for the API server's audit log")
	select {
	case <-ctx.Done():
		return s, ctx.Err()
	case <-time.After(flush):
	}
	floors := map[int]time.Duration{}
	for _, c := range contests {
		took := measure.Median(c.took)
		if c.account == "" {
			floors[c.n] = took
		}
		written := "–"
		if c.account != "" {
			counts, err := readAudit(o.AuditLog, c.windows)
			if err != nil {
				return s, err
			}
			all := writes{}
			for _, w := range counts {
				for k, n := range w {
					all[k] += n
				}
			}
			claims := c.n * len(c.windows)
			written = report.Number(float64(all.total()) / float64(claims))
			s.Notes = append(s.Notes, fmt.Sprintf("API writes per claim, %s, %d: %s.", c.title, c.n, all.perClaim(claims)))
		}
		s.Rows = append(s.Rows, []string{c.title, fmt.Sprint(c.n), report.Number(took.Seconds()),
			report.Number(float64(took) / float64(floors[c.n])), report.Number(float64(c.n) / took.Seconds()), report.Number(measure.Median(c.cores)), written})
		s.Chart.Bars = append(s.Chart.Bars, report.Bar{Label: fmt.Sprintf("%s: %d", report.Plain(c.title), c.n), Value: took.Seconds(), Ours: c.ours})
	}
	return s, nil
}
