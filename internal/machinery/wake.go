package machinery

import (
	"context"
	"fmt"
	"time"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// waker wakes claims when something that they may wait for happens. The library itself watches claims
// and, once it has seen a claim, its prime claim.
type waker struct {
	informers cache.Informers
	reader    client.Reader
	namespace string
	slots     *slots
	refused   *refusals
	// wake adds a claim's key to its queue, which drops it if the claim may not be worked on.
	wake func(types.NamespacedName)
	// wakeAfter does so after a while.
	wakeAfter func(types.NamespacedName, time.Duration)
}

// start adds the event handlers and returns when they have been told about every object that exists: a new leader looks at
// every claim, and knows how many pods run before it creates one.
func (w *waker) start(ctx context.Context) (stop func(), err error) {
	var undo []func()
	var synced []toolscache.InformerSynced
	stop = func() {
		for _, f := range undo {
			f()
		}
	}
	for _, watched := range []struct {
		object  client.Object
		handler toolscache.ResourceEventHandler
	}{
		{&corev1.Pod{}, onAnyEvent(ctx, w.onPod)},
		{&corev1.PersistentVolumeClaim{}, onAnyEvent(ctx, w.onPrime)},
		{&v1alpha1.ChangedBlockRange{}, w.onRange(ctx)},
		{&smsv1beta1.SnapshotMetadataService{}, onAnyEvent(ctx, w.onService)},
		{&storagev1.StorageClass{}, onAnyEvent(ctx, w.onClass)},
		{&corev1.ResourceQuota{}, w.onPolicy()},
		{&corev1.LimitRange{}, w.onPolicy()},
		{&corev1.Namespace{}, w.onPolicy()},
	} {
		informer, err := w.informers.GetInformer(ctx, watched.object)
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %T: %w", watched.object, err)
		}
		registration, err := informer.AddEventHandler(watched.handler)
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %T: %w", watched.object, err)
		}
		synced = append(synced, registration.HasSynced)
		undo = append(undo, func() {
			if err := informer.RemoveEventHandler(registration); err != nil {
				log.FromContext(ctx).Error(err, "cannot remove an event handler")
			}
		})
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		stop()
		return nil, fmt.Errorf("wait for the watches to see what exists: %w", context.Cause(ctx))
	}
	return stop, nil
}

// onAnyEvent calls handle for every change of an object, with its last known state if it is gone. Resyncs are left out.
func onAnyEvent(ctx context.Context, handle func(context.Context, client.Object)) toolscache.ResourceEventHandler {
	call := func(o any) {
		if object, ok := o.(client.Object); ok {
			handle(ctx, object)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: call,
		UpdateFunc: func(before, after any) {
			b, ok := before.(client.Object)
			if a, isObject := after.(client.Object); ok && isObject && a.GetResourceVersion() == b.GetResourceVersion() {
				return
			}
			call(after)
		},
		DeleteFunc: func(o any) {
			if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if pod, ok := o.(*corev1.Pod); ok {
				// A pod that is gone holds no slot, whatever its last phase was.
				pod = pod.DeepCopy()
				pod.Status.Phase = corev1.PodFailed
				o = pod
			}
			call(o)
		},
	}
}

// onPod wakes the claim of a populator pod that started, finished, was recorded or is gone.
func (w *waker) onPod(_ context.Context, o client.Object) {
	pod, ok := o.(*corev1.Pod)
	if !ok || temporaryOf(pod) == "" {
		return
	}
	w.slots.observe(pod)
	if claim, ok := claimOf(pod.Annotations); ok {
		w.wake(claim)
	}
}

// onPrime wakes the claim of a prime claim that was bound, lost its volume or is gone.
func (w *waker) onPrime(_ context.Context, o client.Object) {
	if o.GetNamespace() != w.namespace {
		return
	}
	if claim, ok := claimOf(o.GetAnnotations()); ok {
		w.wake(claim)
	}
}

// onRange wakes the claims of a ChangedBlockRange that was created, resolved, given its finalizer, replaced or deleted. Most of
// its changes are figures and progress, which the reconciler writes: they wake nobody, but a result the claim whose pod it is from.
func (w *waker) onRange(ctx context.Context) toolscache.ResourceEventHandler {
	wake := onAnyEvent(ctx, w.wakeRange)
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { wake.OnAdd(o, false) },
		UpdateFunc: func(before, after any) {
			b, ok := before.(*v1alpha1.ChangedBlockRange)
			if a, isRange := after.(*v1alpha1.ChangedBlockRange); ok && isRange && concernsClaims(a) == concernsClaims(b) {
				w.wakeRecorded(ctx, b, a)
				return
			}
			wake.OnUpdate(before, after)
		},
		DeleteFunc: wake.OnDelete,
	}
}

// rangeState is what a ChangedBlockRange means to the claims that are filled from it.
type rangeState struct {
	uid         types.UID
	generation  int64
	mayPopulate bool
	deleting    bool

	driver, from, to string
	fromSize, toSize int64
}

func concernsClaims(cbr *v1alpha1.ChangedBlockRange) rangeState {
	return rangeState{
		uid: cbr.UID, generation: cbr.Generation, mayPopulate: cbr.MayPopulate(), deleting: cbr.DeletionTimestamp != nil,
		driver: cbr.Status.Driver, from: cbr.Status.FromSnapshotHandle, to: cbr.Status.ToSnapshotHandle,
		fromSize: ptr.Deref(cbr.Status.FromRestoreSizeBytes, -1), toSize: ptr.Deref(cbr.Status.ToRestoreSizeBytes, -1),
	}
}

// wakeRecorded wakes the claim of the pod whose result is in the status since the last change.
func (w *waker) wakeRecorded(ctx context.Context, before, after *v1alpha1.ChangedBlockRange) {
	recorded := after.Status.RecordedPod
	if recorded == nil || (before.Status.RecordedPod != nil && *before.Status.RecordedPod == *recorded) {
		return
	}
	claim, err := claimByUID(ctx, w.reader, claimUIDFromName(recorded.Name))
	if err != nil {
		// Only a cache that is being stopped fails here.
		log.FromContext(ctx).Error(err, "cannot look up the claim of a populator pod", "pod", recorded.Name)
		return
	}
	if claim != nil {
		w.wake(nameOf(claim))
	}
}

// wakeRange wakes the claims of a ChangedBlockRange.
func (w *waker) wakeRange(ctx context.Context, o client.Object) {
	w.wakeIndexed(ctx, indexSource, client.ObjectKeyFromObject(o).String())
}

// onClass wakes the claims of a StorageClass: those that were not begun, or lost their prime claim, wait for it.
func (w *waker) onClass(ctx context.Context, o client.Object) {
	w.wakeIndexed(ctx, indexClass, o.GetName())
}

func (w *waker) wakeIndexed(ctx context.Context, index, value string) {
	var claims corev1.PersistentVolumeClaimList
	if err := w.reader.List(ctx, &claims, client.MatchingFields{index: value}); err != nil {
		// Only a cache that is being stopped fails here.
		log.FromContext(ctx).Error(err, "cannot look up claims", "index", index, "value", value)
		return
	}
	for i := range claims.Items {
		w.wake(nameOf(&claims.Items[i]))
	}
}

// onService wakes the claims whose ChangedBlockRange was resolved to the service's driver.
func (w *waker) onService(ctx context.Context, o client.Object) {
	var ranges v1alpha1.ChangedBlockRangeList
	if err := w.reader.List(ctx, &ranges); err != nil {
		log.FromContext(ctx).Error(err, "cannot look up the ChangedBlockRanges of a metadata service", "service", o.GetName())
		return
	}
	for i := range ranges.Items {
		if ranges.Items[i].Status.Driver == o.GetName() {
			w.wakeRange(ctx, &ranges.Items[i])
		}
	}
}

// onPolicy wakes the claims whose objects the API server refused when a quota, a limit range or the labels of the populator
// namespace may let them through now. The cache holds those of the populator namespace only.
func (w *waker) onPolicy() toolscache.ResourceEventHandler {
	changed := func(before, after any) {
		b, _ := before.(client.Object)
		a, _ := after.(client.Object)
		if !permits(b, a) {
			return
		}
		for _, woken := range w.refused.take() {
			w.wakeAfter(woken.claim, woken.after)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { changed(nil, o) },
		UpdateFunc: changed,
		DeleteFunc: func(o any) { changed(o, nil) },
	}
}
