package fakecluster

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// pod plays the scheduler and the kubelet. The real one tells about a container that succeeded before it tells that the pod did,
// because it takes the pod's sandbox down in between.
func (f *Cluster) pod(ctx context.Context, s *state, p *corev1.Pod) error {
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	f.mu.Lock()
	kubelet, holds := f.kubelet, f.holds
	f.mu.Unlock()
	switch {
	case p.DeletionTimestamp != nil:
		// Like the real one, this pod and no other: its successor may have the same name by now.
		return client.IgnoreNotFound(f.client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID}))
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
			if c == nil || c.DeletionTimestamp != nil || c.Status.Phase == corev1.ClaimLost {
				// Like the real one: it waits.
				return nil
			}
			if c.Status.Phase != corev1.ClaimBound {
				return fmt.Errorf("pod %s was created before its claim %s was bound", p.Name, v.PersistentVolumeClaim.ClaimName)
			}
		}
		if holds.Start != nil && holds.Start(p) {
			return nil
		}
		p.Status.Phase = corev1.PodRunning
		return f.client.Status().Update(ctx, p)
	}
	if len(p.Status.ContainerStatuses) > 0 {
		if holds.Sandbox != nil && holds.Sandbox(p) {
			return nil
		}
		p.Status.Phase = corev1.PodSucceeded
		return f.client.Status().Update(ctx, p)
	}
	end := kubelet(p)
	if end == nil {
		return nil
	}
	now := metav1.Now()
	if end.Phase == corev1.PodSucceeded {
		f.write(s, p, end.Message)
	} else {
		p.Status.Phase = end.Phase
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name:  p.Spec.Containers[0].Name,
		Image: p.Spec.Containers[0].Image,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: end.Message, FinishedAt: now, StartedAt: now}},
	}}
	return f.client.Status().Update(ctx, p)
}

// write leaves data on the volume that the pod mounts.
func (f *Cluster) write(s *state, p *corev1.Pod, data string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		if c := s.claims[types.NamespacedName{Namespace: p.Namespace, Name: v.PersistentVolumeClaim.ClaimName}]; c != nil {
			f.written[c.Spec.VolumeName] = data
		}
	}
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
