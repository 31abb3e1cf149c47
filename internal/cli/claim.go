package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/claimsize"
	"github.com/cbt-populator/cbt-populator/internal/convert"
	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/listops"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/snapshots"
)

// claimFlags are the flags for the claim. size is a quantity, sizeAuto or sizeBound.
type claimFlags struct {
	name, size   string
	class        string
	access, mode string
}

const (
	sizeAuto  = "auto"
	sizeBound = "bound"
)

// assumedBlock is the size in bytes that blocks are taken to have at least when nobody can be asked. Drivers track 4 KiB or
// more; the message says what was assumed.
const assumedBlock = 4096

func (f *claimFlags) register(s *pflag.FlagSet) {
	s.StringVar(&f.name, "pvc", "", "make this claim too, and populate it with the list")
	s.StringVar(&f.size, "size", sizeAuto, "its size: auto (by counting the list), bound (for the longest list there can be), or a quantity such as 100Mi")
	s.StringVar(&f.class, "storage-class", "", "its storage class (default: the cluster's default)")
	s.StringVar(&f.access, "access-mode", string(corev1.ReadWriteOnce), "its access mode")
	s.StringVar(&f.mode, "volume-mode", string(corev1.PersistentVolumeFilesystem), "Filesystem, or Block (with --format Binary)")
}

func (f *claimFlags) check(s *pflag.FlagSet, format string) error {
	if f.name == "" {
		for _, name := range []string{"size", "storage-class", "access-mode", "volume-mode"} {
			if s.Changed(name) {
				return usagef("--%s is about a claim: name one with --pvc", name)
			}
		}
		return nil
	}
	modes := []string{string(corev1.PersistentVolumeFilesystem), string(corev1.PersistentVolumeBlock)}
	switch {
	case !slices.Contains(modes, f.mode):
		return usagef("--volume-mode: %q is unknown: use Filesystem or Block", f.mode)
	case f.mode == string(corev1.PersistentVolumeBlock) && format != string(v1alpha1.FormatBinary):
		return usagef("--volume-mode Block takes a Binary list only: add --format Binary")
	case f.size == sizeAuto || f.size == sizeBound:
		return nil
	}
	if q, err := resource.ParseQuantity(f.size); err != nil || q.Sign() <= 0 {
		return usagef("--size: %q is none: use auto, bound, or a quantity such as 100Mi", f.size)
	}
	return nil
}

// build returns the claim that is populated from the ChangedBlockRange cbr.
func (f *claimFlags) build(namespace, cbr string, size resource.Quantity) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: f.name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:   []corev1.PersistentVolumeAccessMode{corev1.PersistentVolumeAccessMode(f.access)},
			VolumeMode:    ptr.To(corev1.PersistentVolumeMode(f.mode)),
			Resources:     corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
			DataSourceRef: &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: cbr},
		},
	}
	if f.class != "" {
		claim.Spec.StorageClassName = &f.class
	}
	return claim
}

// claimSize returns the size of the claim, and says how it came about.
func (m *maker) claimSize(ctx context.Context) (resource.Quantity, error) {
	why := errors.New("--size bound asks for that")
	switch m.o.claim.size {
	case sizeAuto:
		list, err := m.countList(ctx)
		if err == nil {
			size := claimsize.For(list)
			m.note("Claim %s gets %s: the list takes %s.", m.o.claim.name, human.Bytes(size), human.Bytes(list))
			return *resource.NewQuantity(size, resource.BinarySI), nil
		}
		if ctx.Err() != nil || hopeless(err) {
			return resource.Quantity{}, fmt.Errorf("size claim %s: nothing was created: %w", m.o.claim.name, err)
		}
		why = err
	case sizeBound:
	default:
		return resource.ParseQuantity(m.o.claim.size)
	}
	bound, err := m.boundList(ctx)
	if err != nil {
		return resource.Quantity{}, fmt.Errorf("size claim %s: nothing was created: %w (the list was not counted: %w)", m.o.claim.name, err, why)
	}
	size := claimsize.For(bound)
	m.note("Claim %s gets %s, for the longest list that the snapshots can have (%s) if the driver's blocks have at least %s. The list was not counted: %v.",
		m.o.claim.name, human.Bytes(size), human.Bytes(bound), human.Bytes(assumedBlock), why)
	return *resource.NewQuantity(size, resource.BinarySI), nil
}

// hopeless reports whether a population would fail as the counting did.
func hopeless(err error) bool {
	var problem *snapshots.Problem
	if errors.As(err, &problem) {
		return true
	}
	var known *outcome.Error
	// The populator is another service account, which may be allowed more.
	return errors.As(err, &known) && known.Reason.Class() == outcome.Terminal && known.Reason != outcome.PermissionDenied
}

func (m *maker) note(format string, args ...any) {
	_, _ = fmt.Fprintf(m.s.Err, format+"\n", args...)
}

// listFormat is the format that the list will have.
func (m *maker) listFormat() blocklist.Format {
	return blocklist.Format(cmp.Or(m.cbr.Spec.Format, v1alpha1.FormatJSON))
}

// countList reads the list as it will be written, and counts its bytes.
func (m *maker) countList(ctx context.Context) (int64, error) {
	facts, err := m.access.Find(ctx, m.access.Namespace, &m.cbr.Spec)
	if err != nil {
		return 0, err
	}
	list, err := openListing(ctx, m.access, m.o.service, &m.cbr.Spec, facts, io.Discard)
	if err != nil {
		return 0, err
	}
	defer list.close()
	var n tally
	format := convert.JSON
	if m.listFormat() == blocklist.Binary {
		format = convert.CBL
	}
	err = convert.Write(ctx, &n, format, convert.List{Header: list.header, Extents: func() listops.Extents { return list.extents }})
	return int64(n), err
}

// tally counts what is written to it.
type tally int64

// Write implements io.Writer.
func (n *tally) Write(p []byte) (int, error) {
	*n += tally(len(p))
	return len(p), nil
}

// boundList returns the size in bytes of the longest list that the snapshots can have.
func (m *maker) boundList(ctx context.Context) (int64, error) {
	spec := &m.cbr.Spec
	capacity, err := m.access.RestoreSize(ctx, m.access.Namespace, spec)
	if err != nil {
		return 0, err
	}
	if capacity == 0 {
		return 0, errors.New("the VolumeSnapshots do not say how large their volume is (are they ready?): give --size a quantity")
	}
	h := blocklist.Header{
		Mode: blocklist.Delta, BlockMetadataType: blocklist.VariableLength, Namespace: m.access.Namespace,
		BaseSnapshot: spec.FromVolumeSnapshotName, BaseSnapshotHandle: spec.FromSnapshotHandle, TargetSnapshot: spec.ToVolumeSnapshotName,
		VolumeCapacityBytes: capacity, GranularityBytes: ptr.Deref(spec.GranularityBytes, 0), Merged: spec.Merge() || spec.GranularityBytes != nil,
	}
	bound, err := claimsize.Bound(h, m.listFormat(), assumedBlock)
	if err != nil {
		return 0, err
	}
	if limit := spec.MaxSizeInBytes; limit != nil && *limit > 0 {
		bound = min(bound, *limit)
	}
	return bound, nil
}

// mountText says how a pod gets the list.
func (m *maker) mountText() string {
	name := m.claim.Name
	head := fmt.Sprintf("\nMount it in a pod:\n\n  volumes:\n    - name: changes\n      persistentVolumeClaim: {claimName: %s, readOnly: true}\n", name)
	if ptr.Deref(m.claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) == corev1.PersistentVolumeBlock {
		return head + "  containers:\n    - volumeDevices:\n        - {name: changes, devicePath: /dev/changes}\n\nThe list is the device /dev/changes.\n"
	}
	return head + fmt.Sprintf("  containers:\n    - volumeMounts:\n        - {name: changes, mountPath: /changes, readOnly: true}\n\nThe list is the file /changes/%s.\n", blocklist.FileName(m.listFormat()))
}
