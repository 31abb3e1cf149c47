package machinery

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// playReconciler plays the ChangedBlockRange reconciler until the world ends.
func (w *world) playReconciler() error {
	for _, list := range []client.ObjectList{
		&corev1.PersistentVolumeClaimList{}, &v1alpha1.ChangedBlockRangeList{}, &corev1.PodList{},
	} {
		events, err := w.c.Watch(w.ctx, list)
		if err != nil {
			return fmt.Errorf("watch %T: %w", list, err)
		}
		go w.follow(list, events)
	}
	var errs []error
	for {
		select {
		case <-w.ctx.Done():
			return errors.Join(errs...)
		case <-w.poke:
		}
		err := errors.Join(w.playRanges(), w.playRecords())
		switch {
		case err == nil || w.ctx.Err() != nil:
		case apierrors.IsConflict(err) || apierrors.IsNotFound(err):
			w.look()
		default:
			errs = append(errs, err)
		}
	}
}

// follow looks again at every event. The API server ends a watch whose client is slow; then another one follows.
func (w *world) follow(list client.ObjectList, events watch.Interface) {
	for {
		for range events.ResultChan() {
			w.look()
		}
		var err error
		if events, err = w.c.Watch(w.ctx, list); err != nil {
			if w.ctx.Err() == nil {
				w.Errorf("watch %T: %v", list, err)
			}
			return
		}
		w.look()
	}
}

func (w *world) look() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *world) playRanges() error {
	var ranges v1alpha1.ChangedBlockRangeList
	var claims corev1.PersistentVolumeClaimList
	if err := errors.Join(w.c.List(w.ctx, &claims, client.InNamespace(w.namespace)), w.c.List(w.ctx, &ranges, client.InNamespace(w.namespace))); err != nil {
		return err
	}
	for i := range ranges.Items {
		cbr := &ranges.Items[i]
		busy := slices.ContainsFunc(claims.Items, func(c corev1.PersistentVolumeClaim) bool {
			source, _ := reference.Of(&c)
			return source.Name == cbr.Name && hasFinalizer(&c)
		})
		if cbr.DeletionTimestamp != nil {
			if !busy && len(cbr.Finalizers) > 0 {
				cbr.Finalizers = nil
				return client.IgnoreNotFound(w.c.Update(w.ctx, cbr))
			}
			continue
		}
		if !w.resolve.Load() || cbr.MayPopulate() {
			continue
		}
		if len(cbr.Finalizers) == 0 {
			cbr.Finalizers = []string{v1alpha1.FinalizerPopulating}
			if err := w.c.Update(w.ctx, cbr); err != nil {
				return err
			}
		}
		sample := sampleSource()
		cbr.Status = sample.cbr.Status
		cbr.Status.Conditions = nil
		meta.SetStatusCondition(&cbr.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionSnapshotsResolved, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonResolved, ObservedGeneration: cbr.Generation,
		})
		if err := w.c.Status().Update(w.ctx, cbr); err != nil {
			return err
		}
	}
	return nil
}

// playRecords records results as the reconciler does: in the status of their ChangedBlockRange if that names no pod yet, else on
// the pod.
func (w *world) playRecords() error {
	if !w.record.Load() {
		return nil
	}
	for _, pod := range w.pods() {
		cbr, err := w.rangeOf(&pod)
		if err != nil {
			return err
		}
		if cbr == nil || !podstate.Ended(&pod) || recordedIn(cbr, &pod) {
			continue
		}
		if podstate.Wrote(&pod) && cbr.Status.RecordedPod == nil {
			cbr.Status.RecordedPod = &v1alpha1.RecordedPod{Name: pod.Name, UID: pod.UID}
			if err := w.c.Status().Update(w.ctx, cbr); err != nil {
				return err
			}
			continue
		}
		patch := client.MergeFrom(pod.DeepCopy())
		pod.Annotations[v1alpha1.AnnotationResultRecorded] = "true"
		if err := w.c.Patch(w.ctx, &pod, patch); err != nil {
			return err
		}
	}
	return nil
}

// rangeOf returns the ChangedBlockRange that a pod reads from; nil if it is gone.
func (w *world) rangeOf(pod *corev1.Pod) (*v1alpha1.ChangedBlockRange, error) {
	var cbr v1alpha1.ChangedBlockRange
	_, name, _ := strings.Cut(pod.Annotations[v1alpha1.AnnotationChangedBlockRange], "/")
	err := w.c.Get(w.ctx, types.NamespacedName{Namespace: w.namespace, Name: name}, &cbr)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case pod.Labels[v1alpha1.LabelChangedBlockRangeUID] != string(cbr.UID):
		return nil, nil
	}
	return &cbr, nil
}

func recordedIn(cbr *v1alpha1.ChangedBlockRange, pod *corev1.Pod) bool {
	return cbr != nil && wantedOf(cbr).recorded(pod)
}
