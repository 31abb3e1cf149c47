// Package fakecluster plays, against a real API server that has none of them, the parts of a Kubernetes cluster that a claim
// meets on its way: the CSI provisioner, the controllers that bind and protect volumes, the scheduler and the kubelet. They
// behave like the real ones in what the populator machinery can see: the order of events, phases and finalizers.
package fakecluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// Node is the only node.
	Node = "fake-node"
	// Driver is the provisioner of Class and ClassLate.
	Driver = "fake.csi.driver"
	// Class binds at once.
	Class = "fake"
	// ClassLate waits for the first consumer.
	ClassLate = "fake-late"

	finalizerClaim     = "kubernetes.io/pvc-protection"
	finalizerVolume    = "kubernetes.io/pv-protection"
	annotationSelected = "volume.kubernetes.io/selected-node"
)

// End is how a pod ends.
type End struct {
	Phase   corev1.PodPhase
	Message string
}

// Kubelet decides about a pod that runs: nil lets it run on, until Poke or another event.
type Kubelet func(pod *corev1.Pod) *End

// Cluster is a running fake. Its methods are safe for concurrent use.
type Cluster struct {
	client client.WithWatch
	poke   chan struct{}
	done   chan struct{}
	cancel context.CancelFunc

	mu      sync.Mutex
	kubelet Kubelet
	errs    []error
	most    int
	// noProvision keeps the provisioner from answering.
	noProvision bool
	holds       Holds
	// written has the termination message of the pod that last filled a volume, by the volume's name.
	written map[string]string
}

// Holds keep parts from acting on single claims; a nil function keeps them from none.
type Holds struct {
	// Provision keeps the provisioner from making a volume for a claim.
	Provision func(*corev1.PersistentVolumeClaim) bool
	// Bind keeps the binder from binding a claim to the volume that names it.
	Bind func(*corev1.PersistentVolumeClaim) bool
	// Lose keeps the binder from noticing that a claim lost its volume. The real one notices after up to 15 s.
	Lose func(*corev1.PersistentVolumeClaim) bool
	// Start keeps the kubelet from starting a pod, as one whose image cannot be pulled.
	Start func(*corev1.Pod) bool
	// Sandbox keeps the kubelet from ending a pod whose container has succeeded.
	Sandbox func(*corev1.Pod) bool
}

// Start starts the parts. They run until Stop.
func Start(ctx context.Context, c client.WithWatch, kubelet Kubelet) (*Cluster, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &Cluster{
		client: c, kubelet: kubelet, poke: make(chan struct{}, 1), done: make(chan struct{}), cancel: cancel,
		written: map[string]string{},
	}
	if err := f.classes(ctx); err != nil {
		cancel()
		return nil, err
	}
	for _, list := range []client.ObjectList{
		&corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}, &corev1.PodList{}, &storagev1.StorageClassList{},
	} {
		w, err := c.Watch(ctx, list)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("watch %T: %w", list, err)
		}
		go f.follow(ctx, list, w)
	}
	go f.run(ctx)
	f.Poke()
	return f, nil
}

// follow pokes at every event. The API server ends a watch whose client is slow; then another one follows.
func (f *Cluster) follow(ctx context.Context, list client.ObjectList, w watch.Interface) {
	for ctx.Err() == nil {
		for range w.ResultChan() {
			f.Poke()
		}
		next, err := f.client.Watch(ctx, list)
		if err != nil {
			f.note(ctx, fmt.Errorf("watch %T: %w", list, err))
			return
		}
		w = next
		f.Poke()
	}
}

// Stop stops the parts and returns what went wrong in them.
func (f *Cluster) Stop() error {
	f.cancel()
	<-f.done
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

// Poke makes the parts look at everything again.
func (f *Cluster) Poke() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// SetKubelet replaces the kubelet's decisions.
func (f *Cluster) SetKubelet(k Kubelet) {
	f.mu.Lock()
	f.kubelet = k
	f.mu.Unlock()
	f.Poke()
}

// SetProvisioning switches the provisioner on and off.
func (f *Cluster) SetProvisioning(on bool) {
	f.mu.Lock()
	f.noProvision = !on
	f.mu.Unlock()
	f.Poke()
}

// SetHolds replaces what keeps parts from acting.
func (f *Cluster) SetHolds(h Holds) {
	f.mu.Lock()
	f.holds = h
	f.mu.Unlock()
	f.Poke()
}

// Written returns the termination message of the pod that last succeeded with this volume mounted, which stands for the
// volume's content; "" if there was none.
func (f *Cluster) Written(volume string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.written[volume]
}

// MostPods is the largest number of pods that was seen at once whose containers had not ended.
func (f *Cluster) MostPods() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

func (f *Cluster) classes(ctx context.Context) error {
	for name, mode := range map[string]storagev1.VolumeBindingMode{
		Class: storagev1.VolumeBindingImmediate, ClassLate: storagev1.VolumeBindingWaitForFirstConsumer,
	} {
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: Driver, VolumeBindingMode: &mode}
		if err := f.client.Create(ctx, class); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("create StorageClass %s: %w", name, err)
		}
	}
	return nil
}

func (f *Cluster) run(ctx context.Context) {
	defer close(f.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.poke:
		}
		f.step(ctx)
	}
}

// note keeps what went wrong; when someone else was quicker, the parts look again.
func (f *Cluster) note(ctx context.Context, err error) {
	switch {
	case err == nil || ctx.Err() != nil:
	case apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err):
		f.Poke()
	default:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.errs = append(f.errs, err)
	}
}

// state is everything that the parts look at.
type state struct {
	claims  map[types.NamespacedName]*corev1.PersistentVolumeClaim
	volumes []corev1.PersistentVolume
	pods    []corev1.Pod
	classes map[string]storagev1.StorageClass
}

func (f *Cluster) step(ctx context.Context) {
	s, err := f.look(ctx)
	if err != nil {
		f.note(ctx, err)
		return
	}
	act(ctx, f, s.volumes, func(v *corev1.PersistentVolume) error { return f.volume(ctx, s, v) })
	// In the order of a map, which is random: a rebound volume's old claim may lose it before the new one has it, or after.
	act(ctx, f, slices.Collect(maps.Values(s.claims)), func(c **corev1.PersistentVolumeClaim) error { return f.claim(ctx, s, *c) })
	running := 0
	for i := range s.pods {
		if !ended(&s.pods[i]) {
			running++
		}
	}
	act(ctx, f, s.pods, func(p *corev1.Pod) error { return f.pod(ctx, s, p) })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.most = max(f.most, running)
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed ||
		slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Terminated != nil })
}

// act looks after many objects, several at once: hundreds of claims are not to wait for each other.
func act[T any](ctx context.Context, f *Cluster, objects []T, do func(*T) error) {
	const atOnce = 16
	var all sync.WaitGroup
	for start := range min(atOnce, len(objects)) {
		all.Go(func() {
			for i := start; i < len(objects); i += atOnce {
				f.note(ctx, do(&objects[i]))
			}
		})
	}
	all.Wait()
}

func (f *Cluster) look(ctx context.Context) (*state, error) {
	var claims corev1.PersistentVolumeClaimList
	var volumes corev1.PersistentVolumeList
	var pods corev1.PodList
	var classes storagev1.StorageClassList
	for _, list := range []client.ObjectList{&pods, &volumes, &claims, &classes} {
		if err := f.client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	s := &state{
		claims:  map[types.NamespacedName]*corev1.PersistentVolumeClaim{},
		volumes: volumes.Items,
		pods:    pods.Items,
		classes: map[string]storagev1.StorageClass{},
	}
	for _, class := range classes.Items {
		s.classes[class.Name] = class
	}
	for i := range claims.Items {
		s.claims[client.ObjectKeyFromObject(&claims.Items[i])] = &claims.Items[i]
	}
	return s, nil
}

// volume plays the reclaim policy Delete and the volume's protection.
func (f *Cluster) volume(ctx context.Context, s *state, v *corev1.PersistentVolume) error {
	if v.DeletionTimestamp != nil {
		return f.dropFinalizer(ctx, v, finalizerVolume)
	}
	ref := v.Spec.ClaimRef
	if ref == nil {
		return nil
	}
	claim := s.claims[types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}]
	if claim == nil || claim.UID != ref.UID {
		f.mu.Lock()
		delete(f.written, v.Name)
		f.mu.Unlock()
		return f.client.Delete(ctx, v)
	}
	return nil
}

// claim plays the provisioner, the binder and the claim's protection.
func (f *Cluster) claim(ctx context.Context, s *state, c *corev1.PersistentVolumeClaim) error {
	if c.DeletionTimestamp != nil {
		for i := range s.pods {
			if uses(&s.pods[i], c) {
				return nil
			}
		}
		return f.dropFinalizer(ctx, c, finalizerClaim)
	}
	var own *corev1.PersistentVolume
	for i := range s.volumes {
		if v := &s.volumes[i]; v.Spec.ClaimRef != nil && v.Spec.ClaimRef.UID == c.UID && v.DeletionTimestamp == nil {
			own = v
		}
	}
	f.mu.Lock()
	holds, off := f.holds, f.noProvision
	f.mu.Unlock()
	switch {
	case c.Status.Phase == corev1.ClaimLost:
		return nil
	case c.Status.Phase == corev1.ClaimBound && own == nil:
		if holds.Lose != nil && holds.Lose(c) {
			return nil
		}
		c.Status.Phase = corev1.ClaimLost
		return f.client.Status().Update(ctx, c)
	case own != nil && c.Spec.VolumeName == "":
		if holds.Bind != nil && holds.Bind(c) {
			return nil
		}
		c.Spec.VolumeName = own.Name
		return f.client.Update(ctx, c)
	case own != nil && c.Status.Phase != corev1.ClaimBound:
		c.Status.Phase = corev1.ClaimBound
		c.Status.Capacity = c.Spec.Resources.Requests
		c.Status.AccessModes = c.Spec.AccessModes
		return f.client.Status().Update(ctx, c)
	case own == nil && s.available(c) != nil:
		return f.take(ctx, s.available(c), c)
	case own == nil && c.Spec.DataSourceRef == nil && c.Spec.VolumeName == "":
		if off || (holds.Provision != nil && holds.Provision(c)) {
			return nil
		}
		return f.provision(ctx, s, c)
	}
	return nil
}

func (f *Cluster) provision(ctx context.Context, s *state, c *corev1.PersistentVolumeClaim) error {
	if c.Spec.StorageClassName == nil {
		return nil
	}
	class, ok := s.classes[*c.Spec.StorageClassName]
	if !ok {
		return nil
	}
	if *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer && c.Annotations[annotationSelected] == "" {
		return nil
	}
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + string(c.UID)},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   c.Spec.AccessModes,
			Capacity:                      c.Spec.Resources.Requests,
			StorageClassName:              *c.Spec.StorageClassName,
			VolumeMode:                    c.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: Driver, VolumeHandle: string(c.UID)},
			},
			ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name, UID: c.UID},
		},
	}
	return client.IgnoreAlreadyExists(f.client.Create(ctx, v))
}

func (f *Cluster) dropFinalizer(ctx context.Context, o client.Object, name string) error {
	if !slices.Contains(o.GetFinalizers(), name) {
		return nil
	}
	o.SetFinalizers(slices.DeleteFunc(o.GetFinalizers(), func(n string) bool { return n == name }))
	return client.IgnoreNotFound(f.client.Update(ctx, o))
}
