// Package fakecluster plays, against a real API server that has none of them, the parts of a Kubernetes cluster that a claim
// meets on its way: the CSI provisioner, the controllers that bind and protect volumes, the scheduler and the kubelet. They
// behave like the real ones in what the populator machinery can see: the order of events, phases and finalizers.
package fakecluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// Node is the only node.
	Node = "fake-node"
	// Driver is the provisioner of Class and ClassLate.
	Driver = "fake.csi.driver"
	// Class binds at once; ClassLate waits for the first consumer.
	Class     = "fake"
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
}

// Start starts the parts. They run until Stop.
func Start(ctx context.Context, c client.WithWatch, kubelet Kubelet) (*Cluster, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &Cluster{client: c, kubelet: kubelet, poke: make(chan struct{}, 1), done: make(chan struct{}), cancel: cancel}
	if err := f.classes(ctx); err != nil {
		cancel()
		return nil, err
	}
	for _, list := range []client.ObjectList{
		&corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}, &corev1.PodList{},
	} {
		w, err := c.Watch(ctx, list)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("watch %T: %w", list, err)
		}
		go func() {
			for range w.ResultChan() {
				f.Poke()
			}
		}()
	}
	go f.run(ctx)
	f.Poke()
	return f, nil
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

// MostPods is the largest number of unfinished pods that was seen at once.
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
		err := f.step(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
			// Someone else was quicker: look again.
			f.Poke()
			continue
		}
		f.mu.Lock()
		f.errs = append(f.errs, err)
		f.mu.Unlock()
	}
}

// state is everything that the parts look at.
type state struct {
	claims  map[types.NamespacedName]*corev1.PersistentVolumeClaim
	volumes []corev1.PersistentVolume
	pods    []corev1.Pod
}

func (f *Cluster) step(ctx context.Context) error {
	s, err := f.look(ctx)
	if err != nil {
		return err
	}
	for i := range s.volumes {
		if err := f.volume(ctx, s, &s.volumes[i]); err != nil {
			return err
		}
	}
	// In the order of a map, which is random: a rebound volume's old claim may lose it before the new one has it, or after.
	for _, claim := range s.claims {
		if err := f.claim(ctx, s, claim); err != nil {
			return err
		}
	}
	running := 0
	for i := range s.pods {
		if s.pods[i].Status.Phase != corev1.PodSucceeded && s.pods[i].Status.Phase != corev1.PodFailed {
			running++
		}
		if err := f.pod(ctx, s, &s.pods[i]); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.most = max(f.most, running)
	return nil
}

func (f *Cluster) look(ctx context.Context) (*state, error) {
	var claims corev1.PersistentVolumeClaimList
	var volumes corev1.PersistentVolumeList
	var pods corev1.PodList
	for _, list := range []client.ObjectList{&pods, &volumes, &claims} {
		if err := f.client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	s := &state{claims: map[types.NamespacedName]*corev1.PersistentVolumeClaim{}, volumes: volumes.Items, pods: pods.Items}
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
	claim := s.claims[types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}]
	if claim == nil || claim.UID != ref.UID {
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
		if v := &s.volumes[i]; v.Spec.ClaimRef.UID == c.UID && v.DeletionTimestamp == nil {
			own = v
		}
	}
	switch {
	case c.Status.Phase == corev1.ClaimLost:
		return nil
	case c.Status.Phase == corev1.ClaimBound && own == nil:
		c.Status.Phase = corev1.ClaimLost
		return f.client.Status().Update(ctx, c)
	case own != nil && c.Spec.VolumeName == "":
		c.Spec.VolumeName = own.Name
		return f.client.Update(ctx, c)
	case own != nil && c.Status.Phase != corev1.ClaimBound:
		c.Status.Phase = corev1.ClaimBound
		c.Status.Capacity = c.Spec.Resources.Requests
		c.Status.AccessModes = c.Spec.AccessModes
		return f.client.Status().Update(ctx, c)
	case own == nil && c.Spec.DataSourceRef == nil && c.Spec.VolumeName == "":
		return f.provision(ctx, c)
	}
	return nil
}

func (f *Cluster) provision(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	f.mu.Lock()
	off := f.noProvision
	f.mu.Unlock()
	if off || (*c.Spec.StorageClassName == ClassLate && c.Annotations[annotationSelected] == "") {
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

// pod plays the scheduler and the kubelet.
func (f *Cluster) pod(ctx context.Context, s *state, p *corev1.Pod) error {
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	switch {
	case p.DeletionTimestamp != nil:
		return client.IgnoreNotFound(f.client.Delete(ctx, p, client.GracePeriodSeconds(0)))
	case ended:
		return nil
	case p.Spec.NodeName == "":
		binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: Node}}
		return f.client.SubResource("binding").Create(ctx, p, binding)
	case p.Status.Phase == corev1.PodPending:
		for _, v := range p.Spec.Volumes {
			if v.PersistentVolumeClaim == nil {
				continue
			}
			c := s.claims[types.NamespacedName{Namespace: p.Namespace, Name: v.PersistentVolumeClaim.ClaimName}]
			if c == nil || c.Status.Phase != corev1.ClaimBound {
				return fmt.Errorf("pod %s was created before its claim %s was bound", p.Name, v.PersistentVolumeClaim.ClaimName)
			}
		}
		p.Status.Phase = corev1.PodRunning
		return f.client.Status().Update(ctx, p)
	}
	f.mu.Lock()
	kubelet := f.kubelet
	f.mu.Unlock()
	end := kubelet(p)
	if end == nil {
		return nil
	}
	now := metav1.Now()
	p.Status.Phase = end.Phase
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name:  p.Spec.Containers[0].Name,
		Image: p.Spec.Containers[0].Image,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: end.Message, FinishedAt: now, StartedAt: now}},
	}}
	return f.client.Status().Update(ctx, p)
}

// uses reports whether pod keeps claim from being deleted.
func uses(pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) bool {
	if pod.Namespace != claim.Namespace || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim.Name
	})
}

func (f *Cluster) dropFinalizer(ctx context.Context, o client.Object, name string) error {
	if !slices.Contains(o.GetFinalizers(), name) {
		return nil
	}
	o.SetFinalizers(slices.DeleteFunc(o.GetFinalizers(), func(n string) bool { return n == name }))
	return client.IgnoreNotFound(f.client.Update(ctx, o))
}
