package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

func newDescribeCommand(s Streams) *cobra.Command {
	var cluster kubeaccess.Flags
	c := &cobra.Command{
		Use:   "describe NAME...",
		Short: "Show ChangedBlockRanges in full: snapshots, list, claims, events, and what to do about a failure",
		Example: `  kubectl cbr describe monday-to-tuesday
  kubectl cbr describe -n shop monday-to-tuesday`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeRanges(&cluster),
		RunE: func(c *cobra.Command, args []string) error {
			access, err := cluster.Connect(s.Err)
			if err != nil {
				return err
			}
			for i, name := range args {
				if i > 0 {
					if _, err := fmt.Fprintln(s.Out); err != nil {
						return err
					}
				}
				if err := describe(c.Context(), s.Out, access, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cluster.Register(c.Flags())
	return c
}

// describe prints what there is to know about one ChangedBlockRange. What the user may not read is said to be so.
func describe(ctx context.Context, w io.Writer, a *kubeaccess.Access, name string) error {
	cbr, err := a.ReadRange(ctx, name)
	if err != nil {
		return err
	}
	claims, claimsErr := a.ClaimsOf(ctx, cbr)
	if claimsErr != nil && !apierrors.IsForbidden(claimsErr) {
		return claimsErr
	}
	events, eventsErr := a.EventsOf(ctx, cbr, claims)
	if eventsErr != nil && !apierrors.IsForbidden(eventsErr) {
		return eventsErr
	}
	now := time.Now()
	d := &description{w: w}
	d.head(cbr, now)
	d.request(cbr)
	d.result(cbr)
	d.section("Conditions", conditionRows(cbr, now), "none yet: is the controller running?")
	d.section("Claims", claimRows(claims, now), whyEmpty(claimsErr, "none refers to it in this namespace"))
	d.section("Events", eventRows(events, now), whyEmpty(eventsErr, "none"))
	return d.err
}

func whyEmpty(err error, otherwise string) string {
	if err != nil {
		return "you may not list them"
	}
	return otherwise
}

// description writes lines and keeps the first error.
type description struct {
	w   io.Writer
	err error
}

// fields writes pairs of a label and a value, in two columns; pairs without a value are left out.
func (d *description) fields(indent string, pairs ...string) {
	var rows [][]string
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			rows = append(rows, []string{pair[0] + ":", pair[1]})
		}
	}
	if d.err == nil {
		d.err = writeTable(d.w, indent, rows)
	}
}

func (d *description) line(text string) {
	if d.err == nil {
		_, d.err = fmt.Fprintln(d.w, text)
	}
}

// section writes a table below a title, or why it is empty.
func (d *description) section(title string, rows [][]string, empty string) {
	if len(rows) < 2 {
		d.line(title + ": " + empty)
		return
	}
	d.line(title + ":")
	if d.err == nil {
		d.err = writeTable(d.w, "  ", rows)
	}
}

func (d *description) head(cbr *v1alpha1.ChangedBlockRange, now time.Time) {
	state := stateOf(cbr)
	if since := inStateFor(cbr, now); since != "-" {
		state += ", for " + since
	}
	d.fields("",
		"Name", cbr.Name,
		"Namespace", cbr.Namespace,
		"Age", age(cbr.CreationTimestamp, now),
		"State", state,
		"Message", cbr.Status.Message,
		"Next step", nextStep(cbr))
	if p := cbr.Status.Progress; p != nil {
		d.fields("", "Progress", fmt.Sprintf("%s: %s of the volume listed, %d extents so far", p.Done, human.Bytes(p.OffsetBytes), p.EntryCount))
	}
}

func (d *description) request(cbr *v1alpha1.ChangedBlockRange) {
	spec, status := &cbr.Spec, &cbr.Status
	base := "none: the allocated blocks of the target"
	switch {
	case spec.FromVolumeSnapshotName != "":
		base = withHandle("VolumeSnapshot "+spec.FromVolumeSnapshotName, status.FromSnapshotHandle, status.FromRestoreSizeBytes)
	case spec.FromSnapshotHandle != "":
		base = "handle " + spec.FromSnapshotHandle
	}
	format := string(spec.Format)
	if g := spec.GranularityBytes; g != nil {
		format += ", in steps of " + human.Bytes(*g)
	} else if spec.Merge() {
		format += ", adjacent extents merged"
	}
	limit := ""
	if spec.MaxSizeInBytes != nil {
		limit = human.Bytes(*spec.MaxSizeInBytes)
	}
	d.line("Request:")
	d.fields("  ",
		"From", base,
		"To", withHandle("VolumeSnapshot "+spec.ToVolumeSnapshotName, status.ToSnapshotHandle, status.ToRestoreSizeBytes),
		"Driver", status.Driver,
		"Format", format,
		"Largest list", limit,
		"Without a delta", string(spec.WhenDeltaUnavailable))
}

func withHandle(name, handle string, restoreSize *int64) string {
	var more []string
	if handle != "" {
		more = append(more, "handle "+handle)
	}
	if restoreSize != nil {
		more = append(more, human.Bytes(*restoreSize))
	}
	if len(more) == 0 {
		return name
	}
	return fmt.Sprintf("%s (%s)", name, strings.Join(more, ", "))
}

func (d *description) result(cbr *v1alpha1.ChangedBlockRange) {
	status := &cbr.Status
	if status.EntryCount == nil {
		d.line("List: none was written yet")
		return
	}
	what := "changed blocks"
	if status.Mode == v1alpha1.ModeAllocated {
		what = "allocated blocks"
		if status.FromSnapshotHandle != "" {
			what += ", because the delta is unavailable"
		}
	}
	share := status.Changed
	if c := status.VolumeCapacityBytes; c != nil && *c > 0 && status.ChangedBytes != nil {
		share += fmt.Sprintf(" of %s (%.3g %%)", human.Bytes(*c), 100*float64(*status.ChangedBytes)/float64(*c))
	}
	blocks := cmp.Or(status.BlockMetadataType, "-")
	if b := status.BlockSize; b != nil && *b > 0 {
		blocks += ", " + human.Bytes(*b)
	}
	d.line("List:")
	d.fields("  ",
		"Lists", what,
		"Extents", count(status.EntryCount),
		"Bytes", share,
		"Driver's blocks", blocks,
		"Size", status.ListSize,
		"Digest", status.ListDigest)
}

func conditionRows(cbr *v1alpha1.ChangedBlockRange, now time.Time) [][]string {
	rows := [][]string{{"TYPE", "STATUS", "REASON", "FOR", "MESSAGE"}}
	for _, c := range cbr.Status.Conditions {
		rows = append(rows, []string{c.Type, string(c.Status), c.Reason, age(c.LastTransitionTime, now), c.Message})
	}
	return rows
}

func claimRows(claims []corev1.PersistentVolumeClaim, now time.Time) [][]string {
	rows := [][]string{{"NAME", "STATUS", "SIZE", "MODE", "CLASS", "AGE"}}
	for i := range claims {
		c := &claims[i]
		phase := string(c.Status.Phase)
		if v1alpha1.HasOtherVolume(c, c.Spec.VolumeName) {
			phase += ", not populated"
		}
		if !c.DeletionTimestamp.IsZero() {
			phase = "Terminating"
		}
		bytes := c.Status.Capacity.Storage().Value()
		if bytes == 0 {
			bytes = c.Spec.Resources.Requests.Storage().Value()
		}
		mode, class := corev1.PersistentVolumeFilesystem, "-"
		if c.Spec.VolumeMode != nil {
			mode = *c.Spec.VolumeMode
		}
		if c.Spec.StorageClassName != nil {
			class = *c.Spec.StorageClassName
		}
		rows = append(rows, []string{c.Name, phase, human.Bytes(bytes), string(mode), class, age(c.CreationTimestamp, now)})
	}
	return rows
}

func eventRows(events []corev1.Event, now time.Time) [][]string {
	rows := [][]string{{"AGE", "TYPE", "REASON", "ABOUT", "MESSAGE"}}
	for i := range events {
		e := &events[i]
		about := e.InvolvedObject.Kind
		if about == "PersistentVolumeClaim" {
			about = "claim"
		}
		rows = append(rows, []string{age(kubeaccess.LastSeen(e), now), e.Type, e.Reason, about + " " + e.InvolvedObject.Name, e.Message})
	}
	return rows
}
