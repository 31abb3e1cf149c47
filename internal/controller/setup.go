// Package controller keeps the status of ChangedBlockRanges: it resolves the snapshots that one names to handles, driver
// and metadata service, follows the populator pods that read from it, and writes down what they found. A finalizer keeps
// a ChangedBlockRange alive while a claim is being populated from it.
//
// It shares nothing but API objects with the machinery that populates claims:
//
//   - For the machinery it writes the condition SnapshotsResolved with driver, handles and restore sizes. While a claim
//     waits, the finalizer is on the object before that condition becomes True (see ChangedBlockRange.MayPopulate).
//   - From the machinery it reads populator pods: their labels and annotations (api/v1alpha1/names.go), phase and
//     termination message (internal/outcome). Of a finished pod whose result is in the status, the status says so
//     (recordedPod) or the pod's annotation result-recorded; the machinery keeps the pod until then.
//
// The status is a pure function of what the cache holds (observe.go gathers it, resolve.go, pods.go and status.go compute,
// none of them with a client), so it does not matter which event woke the reconciler, or how many were missed. The API server
// is not polled: watches.go maps every object that a ChangedBlockRange depends on to the ones that it concerns. Populators
// have no access to the API, so they are asked how far they are (progress.go), for people to look at only.
//
// The manager's scheme must know the core group, ChangedBlockRanges, the snapshot kinds and SnapshotMetadataServices. Its
// cache should hold pods of the populator namespace only, which is all that the permissions below allow.
package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/internal/tracing"
)

// +kubebuilder:rbac:groups=cbt.storage.k8s.io,resources=changedblockranges,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=cbt.storage.k8s.io,resources=changedblockranges/status,verbs=patch
// +kubebuilder:rbac:groups=cbt.storage.k8s.io,resources=snapshotmetadataservices,verbs=list;watch
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshots;volumesnapshotcontents,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=list;watch
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
// +kubebuilder:rbac:groups="",namespace=cbt-populator,resources=pods,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// The name of the controller in logs and metrics, and of the program in events.
const (
	controllerName = "changedblockrange"
	recorderName   = "cbt-populator"
)

// Config is what the reconciler needs to know.
type Config struct {
	// PopulatorNamespace is the namespace of the populator pods.
	PopulatorNamespace string
	// References decides which claims may refer to ChangedBlockRanges of other namespaces; nil: none.
	References *reference.Policy
	// MaxConcurrentReconciles is the number of ChangedBlockRanges that are looked at at once; 0 means 4.
	MaxConcurrentReconciles int
	// Now is the clock of the conditions; nil means time.Now.
	Now func() time.Time
	// ProgressPort is the port on which populator pods say how far they are; 0 means outcome.ProgressPort.
	ProgressPort int
	// Metrics is where metrics are registered; nil means controller-runtime's registry, which the manager serves.
	Metrics prometheus.Registerer
	// Tracer is told about attempts that have ended; nil: nobody is.
	Tracer *tracing.Tracer
}

func (c *Config) setDefaults() {
	if c.MaxConcurrentReconciles == 0 {
		c.MaxConcurrentReconciles = defaultConcurrentReconciles
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.ProgressPort == 0 {
		c.ProgressPort = outcome.ProgressPort
	}
	if c.Metrics == nil {
		c.Metrics = ctrlmetrics.Registry
	}
}

const defaultConcurrentReconciles = 4

// Setup adds the reconciler to a manager. It fails with a sentence that says what to install when the cluster lacks a kind.
func Setup(mgr ctrl.Manager, config Config) error {
	if config.PopulatorNamespace == "" {
		return errors.New("set up ChangedBlockRange controller: the populator namespace is empty")
	}
	if err := checkKinds(mgr.GetRESTMapper()); err != nil {
		return fmt.Errorf("set up ChangedBlockRange controller: %w", err)
	}
	if err := addIndexes(context.Background(), mgr.GetFieldIndexer()); err != nil {
		return fmt.Errorf("set up ChangedBlockRange controller: %w", err)
	}
	config.setDefaults()
	r := newReconciler(mgr.GetClient(), mgr.GetEventRecorder(recorderName), config)
	if err := r.metrics.register(config.Metrics, newInFlight(mgr.GetClient(), config.PopulatorNamespace, mgr.Elected())); err != nil {
		return fmt.Errorf("set up ChangedBlockRange controller: %w", err)
	}
	news := make(chan event.GenericEvent)
	if err := mgr.Add(&poller{
		pods: mgr.GetClient(), namespace: config.PopulatorNamespace, every: askEvery,
		board: r.progress, ask: askOverHTTP(config.ProgressPort), wake: news,
	}); err != nil {
		return fmt.Errorf("set up ChangedBlockRange controller: %w", err)
	}
	w := watches{Reader: mgr.GetClient(), references: config.References, populatorNamespace: config.PopulatorNamespace}
	err := ctrl.NewControllerManagedBy(mgr).
		Named(controllerName).
		// Every update, also of the status: a reconcile that lost a conflict relies on being woken by the newer version,
		// and one that wrote status.driver on being woken when the index that maps metadata services has it.
		For(&v1alpha1.ChangedBlockRange{}).
		Watches(&snapshotv1.VolumeSnapshot{}, handler.EnqueueRequestsFromMapFunc(w.forSnapshot), builder.WithPredicates(onChange(snapshotFacts))).
		Watches(&snapshotv1.VolumeSnapshotContent{}, handler.EnqueueRequestsFromMapFunc(w.forContent), builder.WithPredicates(onChange(contentFacts))).
		Watches(&metadatav1.SnapshotMetadataService{}, handler.EnqueueRequestsFromMapFunc(w.forService), builder.WithPredicates(onChange(serviceFacts))).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(w.forClaim), builder.WithPredicates(onChange(claimFacts))).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(w.forPod), builder.WithPredicates(onChange(podFacts))).
		Watches(&storagev1.StorageClass{}, handler.EnqueueRequestsFromMapFunc(w.forClass), builder.WithPredicates(onChange(classFacts))).
		WatchesRawSource(config.References.Source(w.forGrants)).
		WatchesRawSource(source.Channel(news, &handler.EnqueueRequestForObject{})).
		WithOptions(ctrlcontroller.Options{MaxConcurrentReconciles: config.MaxConcurrentReconciles}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up ChangedBlockRange controller: %w", err)
	}
	return nil
}

// checkKinds looks for the kinds of other projects before a watch on them would fail with less to go by.
func checkKinds(mapper meta.RESTMapper) error {
	const thenRestart = "; then restart this controller"
	needed := []struct {
		gvk    schema.GroupVersionKind
		remedy string
		// renewal is the remedy where other versions are served; empty: the same.
		renewal string
	}{
		{v1alpha1.GroupVersion.WithKind(v1alpha1.Kind), "install the definitions of cbt-populator (config/crd)", ""},
		{snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), "install the CSI snapshot definitions and the snapshot controller (kubernetes-csi/external-snapshotter)", ""},
		{snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshotContent"), "install the CSI snapshot definitions and the snapshot controller (kubernetes-csi/external-snapshotter)", ""},
		{
			metadatav1.SchemeGroupVersion.WithKind("SnapshotMetadataService"),
			"install the SnapshotMetadataService definition (kubernetes-csi/external-snapshot-metadata)",
			"replace the SnapshotMetadataService definition, and the drivers' sidecars, by those of kubernetes-csi/external-snapshot-metadata v1.0.0 or newer",
		},
	}
	var missing []error
	for _, kind := range needed {
		if _, err := mapper.RESTMapping(kind.gvk.GroupKind(), kind.gvk.Version); meta.IsNoMatchError(err) {
			others, remedy := "", kind.remedy
			if served := servedVersions(mapper, kind.gvk.GroupKind()); len(served) > 0 {
				others, remedy = ", only of "+strings.Join(served, " and "), cmp.Or(kind.renewal, kind.remedy)
			}
			missing = append(missing, fmt.Errorf("the cluster does not serve the kind %s of %s%s: %s%s",
				kind.gvk.Kind, kind.gvk.GroupVersion(), others, remedy, thenRestart))
		} else if err != nil {
			missing = append(missing, fmt.Errorf("look up the kind %s: %w", kind.gvk.Kind, err))
		}
	}
	return errors.Join(missing...)
}

// servedVersions returns the versions in which the cluster serves a kind. It only helps to word an error, so it has none itself.
func servedVersions(mapper meta.RESTMapper, kind schema.GroupKind) []string {
	mappings, _ := mapper.RESTMappings(kind)
	var versions []string
	for _, m := range mappings {
		if v := m.GroupVersionKind.Version; !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	slices.Sort(versions)
	return versions
}
