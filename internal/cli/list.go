package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/advice"
	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

// listOptions are the flags of list.
type listOptions struct {
	cluster       kubeaccess.Flags
	all           bool
	selector      string
	fieldSelector string
	format        string
	noHeaders     bool
}

// The table's two forms, as values of --output.
const (
	tableShort = "table"
	tableWide  = "wide"
)

func newListCommand(s Streams) *cobra.Command {
	var o listOptions
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List ChangedBlockRanges with their state, sizes and what to do about failures",
		Example: `  kubectl cbr list
  kubectl cbr list -A -o wide
  kubectl cbr list -l app=shop -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return list(c.Context(), s, &o) },
	}
	formats := []string{tableShort, tableWide, objectJSON, objectYAML, objectName}
	f := c.Flags()
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "of all namespaces")
	f.StringVarP(&o.selector, "selector", "l", "", "only those with these labels, such as app=shop,tier!=test")
	f.StringVar(&o.fieldSelector, "field-selector", "", "only those with these fields, such as metadata.name=x")
	f.StringVarP(&o.format, "output", "o", tableShort, "format: "+strings.Join(formats, ", "))
	f.BoolVar(&o.noHeaders, "no-headers", false, "leave out the table's first line")
	completeValues(c, "output", formats)
	o.cluster.Register(f)
	return c
}

func list(ctx context.Context, s Streams, o *listOptions) error {
	if err := checkObjectFormat(o.format, tableShort, tableWide, objectJSON, objectYAML, objectName); err != nil {
		return err
	}
	label, field, err := o.selectors()
	if err != nil {
		return err
	}
	access, err := o.cluster.Connect(s.Err)
	if err != nil {
		return err
	}
	namespace, place := "", "in all namespaces"
	if !o.all {
		namespace, place = access.Namespace, "in namespace "+access.Namespace
	}
	ranges, err := access.Ranges(ctx, namespace, label, field)
	if err != nil {
		return err
	}
	if o.format != tableShort && o.format != tableWide {
		objects := make([]kubeaccess.Object, len(ranges))
		for i := range ranges {
			objects[i] = &ranges[i]
		}
		return printList(s.Out, access, o.format, objects)
	}
	if len(ranges) == 0 {
		_, err := fmt.Fprintf(s.Err, "No ChangedBlockRanges %s.\n", place)
		return err
	}
	return o.table(s, ranges, time.Now())
}

func (o *listOptions) selectors() (labels.Selector, fields.Selector, error) {
	label, err := labels.Parse(o.selector)
	if err != nil {
		return nil, nil, usagef("--selector: %v", err)
	}
	field, err := fields.ParseSelector(o.fieldSelector)
	if err != nil {
		return nil, nil, usagef("--field-selector: %v", err)
	}
	return label, field, nil
}

// column is a column of the table.
type column struct {
	title string
	cell  func(cbr *v1alpha1.ChangedBlockRange, now time.Time) string
}

var (
	shortColumns = []column{
		{"NAME", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return c.Name }},
		{"FROM", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return baseOf(&c.Spec) }},
		{"TO", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return c.Spec.ToVolumeSnapshotName }},
		{"STATE", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return stateOf(c) }},
		{"FOR", func(c *v1alpha1.ChangedBlockRange, now time.Time) string { return inStateFor(c, now) }},
		{"ENTRIES", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return count(c.Status.EntryCount) }},
		{"CHANGED", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return cmp.Or(c.Status.Changed, "-") }},
		{"LIST", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return cmp.Or(c.Status.ListSize, "-") }},
		{"AGE", func(c *v1alpha1.ChangedBlockRange, now time.Time) string { return age(c.CreationTimestamp, now) }},
	}
	wideColumns = []column{
		{"MODE", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return cmp.Or(string(c.Status.Mode), "-") }},
		{"FORMAT", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return string(c.Spec.Format) }},
		{"CLAIMS", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string {
			return strconv.Itoa(int(c.Status.PopulatedClaims))
		}},
		{"VOLUME", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return size(c.Status.VolumeCapacityBytes) }},
		{"DRIVER", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return cmp.Or(c.Status.Driver, "-") }},
		{"MESSAGE", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return cmp.Or(c.Status.Message, "-") }},
	}
)

// table prints the table, and below it what to do about each that needs somebody to do something.
func (o *listOptions) table(s Streams, ranges []v1alpha1.ChangedBlockRange, now time.Time) error {
	columns := shortColumns
	if o.format == tableWide {
		columns = slices.Concat(shortColumns, wideColumns)
	}
	if o.all {
		namespace := column{"NAMESPACE", func(c *v1alpha1.ChangedBlockRange, _ time.Time) string { return c.Namespace }}
		columns = slices.Insert(slices.Clone(columns), 0, namespace)
	}
	var rows [][]string
	if !o.noHeaders {
		var titles []string
		for _, c := range columns {
			titles = append(titles, c.title)
		}
		rows = append(rows, titles)
	}
	for i := range ranges {
		var row []string
		for _, c := range columns {
			row = append(row, c.cell(&ranges[i], now))
		}
		rows = append(rows, row)
	}
	if err := writeTable(s.Out, "", rows); err != nil {
		return err
	}
	for i := range ranges {
		if next := nextStep(&ranges[i]); next != "" {
			// It is for people, so it does not disturb those who read the table.
			if _, err := fmt.Fprintf(s.Err, "%s: %s\n", ranges[i].Name, next); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeTable writes rows in aligned columns. A cell's line breaks become blanks.
func writeTable(w io.Writer, indent string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = strings.Join(strings.Fields(cell), " ")
		}
		if _, err := fmt.Fprintln(t, indent+strings.Join(row, "\t")); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// baseOf names the base of the list.
func baseOf(spec *v1alpha1.ChangedBlockRangeSpec) string {
	const shown = 12
	handle := spec.FromSnapshotHandle
	switch {
	case handle == "":
		return cmp.Or(spec.FromVolumeSnapshotName, "-")
	case len(handle) > shown:
		return "handle " + strings.ToValidUTF8(handle[:shown], "") + "…"
	}
	return "handle " + handle
}

// stateOf is the state with its reason, as far as that says more.
func stateOf(cbr *v1alpha1.ChangedBlockRange) string {
	state := cmp.Or(string(cbr.Status.State), "New")
	if !cbr.DeletionTimestamp.IsZero() {
		state = "Deleting"
	}
	reason := ""
	if ready := readyOf(cbr); ready != nil && ready.Status != metav1.ConditionTrue && ready.Reason != v1alpha1.ReasonPopulating {
		reason = ": " + ready.Reason
	}
	if p := cbr.Status.Progress; p != nil {
		state += " " + p.Done
	}
	return state + reason
}

func readyOf(cbr *v1alpha1.ChangedBlockRange) *metav1.Condition {
	return meta.FindStatusCondition(cbr.Status.Conditions, v1alpha1.ConditionReady)
}

// inStateFor is how long ago Ready became True or False.
func inStateFor(cbr *v1alpha1.ChangedBlockRange, now time.Time) string {
	if ready := readyOf(cbr); ready != nil {
		return age(ready.LastTransitionTime, now)
	}
	return "-"
}

func age(since metav1.Time, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return duration.HumanDuration(now.Sub(since.Time))
}

func count(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

func size(n *int64) string {
	if n == nil {
		return "-"
	}
	return human.Bytes(*n)
}

// nextStep says what to do about cbr, empty if nothing is wrong with it.
func nextStep(cbr *v1alpha1.ChangedBlockRange) string {
	ready := readyOf(cbr)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return ""
	}
	switch ready.Reason {
	case v1alpha1.ReasonWaitingForClaim, v1alpha1.ReasonPopulating:
		return ""
	}
	resolved := meta.IsStatusConditionTrue(cbr.Status.Conditions, v1alpha1.ConditionSnapshotsResolved)
	a, ok := advice.For(ready.Reason, resolved)
	if !ok {
		return ready.Reason
	}
	return fmt.Sprintf("%s: %s. What to do: %s", ready.Reason, advice.Plain(a.Meaning), cmp.Or(advice.Plain(a.Do), "nothing"))
}
