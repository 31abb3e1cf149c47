package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

type reconciler struct {
	client   client.Client
	config   Config
	announce announcer
	progress *progressBoard
	metrics  *metrics
	writes   *writeLog
}

func newReconciler(c client.Client, recorder eventRecorder, config Config) *reconciler {
	return &reconciler{
		client: c, config: config, progress: &progressBoard{}, metrics: newMetrics(), writes: newWriteLog(),
		announce: announcer{recorder: recorder, told: map[types.NamespacedName]map[types.UID]string{}},
	}
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var cbr v1alpha1.ChangedBlockRange
	if err := r.client.Get(ctx, req.NamespacedName, &cbr); apierrors.IsNotFound(err) {
		r.announce.forget(req.NamespacedName)
		r.writes.forget(req.NamespacedName)
		return ctrl.Result{}, nil
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("read ChangedBlockRange %s: %w", req, err)
	}
	if r.writes.behind(&cbr) {
		log.FromContext(ctx).V(1).Info("waiting for the version that was written last")
		return ctrl.Result{}, nil
	}
	wait, err := r.sync(ctx, &cbr)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		// The cache was behind. The update or deletion that it lacks wakes us when it arrives.
		log.FromContext(ctx).V(1).Info("waiting for the newer version", "cause", err.Error())
		return ctrl.Result{}, nil
	}
	return ctrl.Result{RequeueAfter: wait}, err
}

// sync takes the steps in the order that the machinery relies on: the finalizer is on before the status says that claims
// may be populated, a pod is released only after its result is in the status, and the finalizer goes last. It returns after
// how long a status that can wait is to be written; 0: there is none.
func (r *reconciler) sync(ctx context.Context, cbr *v1alpha1.ChangedBlockRange) (time.Duration, error) {
	seen, err := r.observe(ctx, cbr)
	if err != nil {
		return 0, err
	}
	found, tries := resolve(seen), attempts(seen.pods, cbr.Status.RecordedPod)
	hold := mustHold(seen, found, tries)
	if hold {
		if err := r.ensureHeld(ctx, cbr); err != nil {
			return 0, err
		}
	}
	after := computeStatus(seen, found, tries, r.config.Now())
	after.RecordedPod = recordedPod(cbr, &after, tries)
	failed := slices.ContainsFunc(tries, func(a attempt) bool { return a.finished && !a.recorded && !a.succeeded() })
	wait, err := r.ensureStatusInTime(ctx, cbr, &after, failed)
	if err != nil {
		return 0, err
	}
	r.announce.aboutClaims(seen, claimEvents(seen, found, current(cbr, &after, tries), &after))
	if err := r.ensureRecorded(ctx, cbr, tries); err != nil {
		return 0, err
	}
	if !hold {
		return wait, r.ensureReleased(ctx, cbr)
	}
	return wait, nil
}

// ensureStatusInTime writes the status and tells what changed, or returns how long that has to wait; it does not if it is urgent.
func (r *reconciler) ensureStatusInTime(ctx context.Context, cbr *v1alpha1.ChangedBlockRange, after *v1alpha1.ChangedBlockRangeStatus, urgent bool) (time.Duration, error) {
	before, key := cbr.Status.DeepCopy(), client.ObjectKeyFromObject(cbr)
	if equality.Semantic.DeepEqual(before, after) {
		r.writes.told(key, false, r.config.Now())
		return 0, nil
	}
	if !urgent && canWait(before, after) {
		patience := patience(before, after)
		if !cbr.DeletionTimestamp.IsZero() {
			patience = 0
		}
		if wait := r.writes.wait(key, patience, r.config.Now()); wait > 0 {
			return wait, nil
		}
	}
	if err := r.ensureStatus(ctx, cbr, *after); err != nil {
		return 0, err
	}
	r.writes.told(key, true, r.config.Now())
	r.announce.aboutRange(transitions(cbr, before, after))
	return 0, nil
}

// ensureHeld adds the finalizer. An object that is being deleted takes no new one.
func (r *reconciler) ensureHeld(ctx context.Context, cbr *v1alpha1.ChangedBlockRange) error {
	if !cbr.DeletionTimestamp.IsZero() || slices.Contains(cbr.Finalizers, v1alpha1.FinalizerPopulating) {
		return nil
	}
	return r.patchFinalizer(ctx, cbr, controllerutil.AddFinalizer)
}

func (r *reconciler) ensureReleased(ctx context.Context, cbr *v1alpha1.ChangedBlockRange) error {
	if !slices.Contains(cbr.Finalizers, v1alpha1.FinalizerPopulating) {
		return nil
	}
	return client.IgnoreNotFound(r.patchFinalizer(ctx, cbr, controllerutil.RemoveFinalizer))
}

// patchFinalizer insists on the version that it read, since a merge patch replaces the whole list of finalizers.
func (r *reconciler) patchFinalizer(ctx context.Context, cbr *v1alpha1.ChangedBlockRange, change func(client.Object, string) bool) error {
	base := cbr.DeepCopy()
	change(cbr, v1alpha1.FinalizerPopulating)
	if err := r.client.Patch(ctx, cbr, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("change finalizer of ChangedBlockRange %s/%s: %w", cbr.Namespace, cbr.Name, err)
	}
	r.writes.wrote(base, cbr)
	return nil
}

// ensureStatus writes the status. It insists on the version that it read: a status computed
// from an old one would have forgotten results whose pods are gone.
func (r *reconciler) ensureStatus(ctx context.Context, cbr *v1alpha1.ChangedBlockRange, status v1alpha1.ChangedBlockRangeStatus) error {
	base := cbr.DeepCopy()
	cbr.Status = status
	if err := r.client.Status().Patch(ctx, cbr, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write status of ChangedBlockRange %s/%s: %w", cbr.Namespace, cbr.Name, err)
	}
	r.writes.wrote(base, cbr)
	return nil
}

// ensureRecorded tells the machinery that the results of finished pods are in the status, and counts them; or that they are outdated,
// because the status names other snapshots, however they were recorded before. It insists on the version that it read: so nothing is
// counted twice, and no other pod of the same name is taken for this one. A pod that went before it could be annotated is not
// counted. Of one pod the status has said so already, by a write that insisted on its version too.
func (r *reconciler) ensureRecorded(ctx context.Context, cbr *v1alpha1.ChangedBlockRange, tries []attempt) error {
	asked := cbr.ListFingerprint()
	for i := range tries {
		a, mark := &tries[i], v1alpha1.ResultRecorded
		if !a.about(asked) {
			mark = v1alpha1.ResultOutdated
		}
		switch {
		case !a.finished || a.mark == mark || (a.recorded && mark == v1alpha1.ResultRecorded):
			continue
		case mark == v1alpha1.ResultRecorded && isPod(cbr.Status.RecordedPod, a.pod):
			r.count(a, &cbr.Status)
			continue
		}
		pod := a.pod.DeepCopy()
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[v1alpha1.AnnotationResultRecorded] = mark
		err := r.client.Patch(ctx, pod, client.MergeFromWithOptions(a.pod, client.MergeFromWithOptimisticLock{}))
		switch {
		case err == nil && !a.recorded:
			r.count(a, &cbr.Status)
		case client.IgnoreNotFound(err) != nil:
			return fmt.Errorf("annotate populator pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	return nil
}

// count tells about an attempt that has ended to those who want the figures of all.
func (r *reconciler) count(a *attempt, status *v1alpha1.ChangedBlockRangeStatus) {
	r.metrics.count(a, status)
	r.config.Tracer.Record(claimUIDOf(a.pod), spans(a)...)
}
