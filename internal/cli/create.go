package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

// createOptions are the flags of create.
type createOptions struct {
	cluster kubeaccess.Flags
	service kubeaccess.ServiceFlags
	spec    specFlags
	claim   claimFlags
	wait    bool
	timeout time.Duration
	dryRun  string
	format  string
}

// The values of --dry-run.
const (
	dryRunNone   = "none"
	dryRunClient = "client"
	dryRunServer = "server"
)

// defaultTimeout bounds --wait.
const defaultTimeout = 10 * time.Minute

func newCreateCommand(s Streams) *cobra.Command {
	var o createOptions
	c := &cobra.Command{
		Use:   "create NAME --to SNAPSHOT [--from SNAPSHOT | --from-handle HANDLE] [--pvc CLAIM]",
		Short: "Make a ChangedBlockRange, and a claim that is populated from it",
		Long: `Create makes a ChangedBlockRange. With --pvc it makes a claim too, which becomes a volume with the list, and with --wait it
shows the progress and says at the end what to mount. Without --pvc, --wait waits until the snapshots are found and ready.

With --size auto the claim is sized by the list itself: it is read once from the driver's metadata service and counted, which
takes what preview takes. If the service cannot be asked, the claim gets the size of the longest list that the snapshots can
have if the driver's blocks have at least 4 KiB, and create says so. --size bound does that at once.

Interrupted or failed, create leaves what it has made, and says so.`,
		Example: `  # the changes from monday to tuesday in a claim of the right size; then say what to mount
  kubectl cbr create tuesday --from monday --to tuesday --pvc tuesday-changes --wait

  # a first, full backup: the allocated blocks, in a compact form, on a Block volume
  kubectl cbr create monday --to monday --format Binary --pvc monday-list --volume-mode Block

  # the manifests only
  kubectl cbr create tuesday --from monday --to tuesday --pvc tuesday-changes --size 100Mi --dry-run=client -o yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return create(c.Context(), s, &o, c.Flags(), args[0]) },
	}
	f := c.Flags()
	o.spec.registerQuestion(f)
	o.spec.registerList(f)
	o.claim.register(f)
	f.BoolVar(&o.wait, "wait", false, "wait until the claim is populated")
	f.DurationVar(&o.timeout, "timeout", defaultTimeout, "give up waiting after this time; 0: never")
	f.StringVar(&o.dryRun, "dry-run", dryRunNone, "client: only print what would be made; server: have the API server check it, but not make it")
	f.StringVarP(&o.format, "output", "o", "", "print the objects as yaml, json or name")
	f.Lookup("dry-run").NoOptDefVal = dryRunClient
	completeValues(c, "dry-run", []string{dryRunNone, dryRunClient, dryRunServer})
	completeValues(c, "output", []string{objectYAML, objectJSON, objectName})
	completeValues(c, "format", []string{string(v1alpha1.FormatJSON), string(v1alpha1.FormatBinary)})
	completeValues(c, "when-delta-unavailable", []string{string(v1alpha1.FallbackFail), string(v1alpha1.FallbackUseAllocated)})
	registerService(f, &o.service)
	o.cluster.Register(f)
	return c
}

func (o *createOptions) check(s *pflag.FlagSet) error {
	if err := checkObjectFormat(o.format, objectYAML, objectJSON, objectName); err != nil {
		return err
	}
	switch {
	case !slices.Contains([]string{dryRunNone, dryRunClient, dryRunServer}, o.dryRun):
		return usagef("--dry-run: %q is unknown: use none, client or server", o.dryRun)
	case o.spec.to == "":
		return usagef("--to is missing: name the target VolumeSnapshot")
	case o.dryRun != dryRunNone && o.wait:
		return usagef("--wait and --dry-run exclude each other: nothing is made that could be waited for")
	case o.timeout < 0:
		return usagef("--timeout %s: give a duration from 0", o.timeout)
	}
	return o.claim.check(s, o.spec.format)
}

func create(ctx context.Context, s Streams, o *createOptions, flags *pflag.FlagSet, name string) error {
	if err := o.check(flags); err != nil {
		return err
	}
	access, err := o.cluster.Connect(s.Err)
	if err != nil {
		return err
	}
	m := &maker{s: s, o: o, access: access}
	m.cbr = &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: access.Namespace, Name: name}, Spec: o.spec.spec(flags),
	}
	if o.claim.name != "" {
		size, err := m.claimSize(ctx)
		if err != nil {
			return err
		}
		m.claim = o.claim.build(access.Namespace, name, size)
	}
	if err := m.make(ctx); err != nil {
		return err
	}
	if o.dryRun != dryRunNone || !o.wait {
		return m.print()
	}
	if err := m.await(ctx); err != nil {
		return err
	}
	if o.format != "" {
		return m.print()
	}
	return nil
}

// maker makes the objects of one command line.
type maker struct {
	s      Streams
	o      *createOptions
	access *kubeaccess.Access
	cbr    *v1alpha1.ChangedBlockRange
	// claim is nil unless one is asked for.
	claim *corev1.PersistentVolumeClaim
}

func (m *maker) objects() []kubeaccess.Object {
	if m.claim == nil {
		return []kubeaccess.Object{m.cbr}
	}
	return []kubeaccess.Object{m.cbr, m.claim}
}

// make makes the objects, or has them checked only. A claim that would be refused is so before anything is made.
func (m *maker) make(ctx context.Context) error {
	switch m.o.dryRun {
	case dryRunClient:
		return nil
	case dryRunServer:
		for _, o := range m.objects() {
			if err := m.create(ctx, o, true); err != nil {
				return err
			}
		}
		return nil
	}
	if m.claim != nil {
		if err := m.create(ctx, m.claim.DeepCopy(), true); err != nil {
			return err
		}
	}
	var unheard error // a ChangedBlockRange whose claim is missing is worse than one that nobody heard of
	for i, o := range m.objects() {
		if err := m.create(ctx, o, false); err != nil {
			if i > 0 {
				err = fmt.Errorf("%w; ChangedBlockRange %s was created and stays", err, m.cbr.Name)
			}
			return err
		}
		if m.o.format == "" && unheard == nil {
			unheard = printCreated(m.s.Out, m.access, o)
		}
	}
	if unheard != nil {
		return fmt.Errorf("%w; %s", unheard, m.whatStays())
	}
	return nil
}

func (m *maker) create(ctx context.Context, o kubeaccess.Object, checkOnly bool) error {
	err := m.access.Make(ctx, o, checkOnly)
	if errors.Is(err, kubeaccess.ErrExists) {
		return fmt.Errorf("%w: choose another name, or look at it first (%s describe %s)", err, pluginName, m.cbr.Name)
	}
	return err
}

// print prints the objects in the format that was asked for.
func (m *maker) print() error {
	format := m.o.format
	if format == "" {
		if m.o.dryRun == dryRunNone {
			return nil
		}
		format = objectYAML
	}
	return printObjects(m.s.Out, m.access, format, m.objects()...)
}

// await waits for the end, and says what to mount or what stays.
func (m *maker) await(ctx context.Context) error {
	out := m.s.Out
	if m.o.format != "" {
		out = m.s.Err
	}
	if m.claim != nil && m.claim.Spec.StorageClassName != nil && m.access.WaitsForConsumer(ctx, *m.claim.Spec.StorageClassName) {
		_, _ = fmt.Fprintf(m.s.Err, "Storage class %s waits for the first consumer: the list is written once a pod uses the claim.\n%s", *m.claim.Spec.StorageClassName, m.mountText())
	}
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if m.o.timeout > 0 {
		waiting, cancel = context.WithTimeoutCause(ctx, m.o.timeout, errTimeout)
	}
	defer cancel()
	w := &waiter{cbr: m.cbr, claim: m.claim, show: newProgressView(m.s.Err)}
	err := w.run(waiting, m.access)
	m.cbr, m.claim = w.cbr, w.claim
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %s; %w", m.whatStays(), context.Canceled)
	case errors.Is(context.Cause(waiting), errTimeout) && errors.Is(err, errTimeout):
		return fmt.Errorf("not done within %s: %s; %s", m.o.timeout, w.lastWords(), m.whatStays())
	case err != nil:
		return fmt.Errorf("%w; %s", err, m.whatStays())
	}
	if m.claim == nil {
		_, err = fmt.Fprintf(out, "%s.\nGive it a claim: %s create --help, or a PersistentVolumeClaim whose dataSourceRef names it.\n", w.lastWords(), pluginName)
		return err
	}
	_, err = fmt.Fprintf(out, "%s.\n%s", w.lastWords(), m.mountText())
	return err
}

// whatStays says what was made and how to go on with it or to remove it.
func (m *maker) whatStays() string {
	name, remove := "ChangedBlockRange "+m.cbr.Name+" stays", "cbr/"+m.cbr.Name
	if m.claim != nil {
		name, remove = fmt.Sprintf("ChangedBlockRange %s and claim %s stay", m.cbr.Name, m.claim.Name), "pvc/"+m.claim.Name+" "+remove
	}
	return fmt.Sprintf("%s: look with '%s describe -n %s %s', remove with 'kubectl delete -n %s %s'",
		name, pluginName, m.cbr.Namespace, m.cbr.Name, m.cbr.Namespace, remove)
}
