package machinery

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
)

// start creates the populator pod of a claim that has none. It returns nil only if none is needed because the volume was
// handed over.
func (f *filler) start(ctx context.Context, target podClaim, source podSource) error {
	// A slot that was granted to the claim goes to the next one unless a pod comes of it.
	name, keep := podName(target.claim.UID), false
	defer func() {
		if !keep {
			f.slots.release(name)
		}
	}()
	if source.service == nil {
		return f.wait(ctx, target.claim, "the ChangedBlockRange to be resolved", 0)
	}
	attempt, delay := f.starts.next(f.cfg, target.claim.UID, f.clock.Now())
	if delay > 0 {
		return f.wait(ctx, target.claim, "the next attempt", delay)
	}
	target.attempt = attempt
	if !f.slots.acquire(slot{pod: name, claim: nameOf(target.claim), driver: source.cbr.Status.Driver}) {
		// The claim is on the list of those that wait.
		keep = true
		return f.wait(ctx, target.claim, "other populator pods to finish", 0)
	}
	volume, err := f.volume(ctx, target.prime)
	if err != nil {
		return err
	}
	if holderOf(volume) != target.prime.UID {
		// complete tells a volume that was handed over from one that was taken away.
		return nil
	}
	err = ensureEndpoint(ctx, f.client, f.cfg.PopulatorNamespace, source.service)
	switch {
	case refusal(err):
		return f.rejected(ctx, target.claim, "the ConfigMap that tells populators where the metadata service is", err)
	case err != nil:
		return err
	}
	target.volume = volume
	target.streams = f.slots.share(name, f.cfg.Pod.Streams, f.cfg.StreamsPerDriver)
	keep, err = f.create(ctx, target, source)
	return err
}

// create creates the pod and reports whether there is one now; the error tells what the claim waits for then.
func (f *filler) create(ctx context.Context, target podClaim, source podSource) (exists bool, err error) {
	pod := populatorPod(f.cfg, source, target)
	err = f.client.Create(ctx, pod)
	switch {
	case refusal(err):
		return false, f.rejected(ctx, target.claim, "the populator pod", err)
	case apierrors.IsAlreadyExists(err):
		// The cache lags behind; its event wakes the claim.
		return true, f.wait(ctx, target.claim, "the populator pod", 0)
	case err != nil:
		return false, fmt.Errorf("create populator pod %s: %w", client.ObjectKeyFromObject(pod), err)
	}
	f.refused.remove(target.claim.UID)
	f.starts.created(pod)
	f.events.began(target.claim.UID, pod, f.clock.Now())
	log.FromContext(ctx).Info("created populator pod", "pod", pod.Name, "attempt", target.attempt)
	return true, f.wait(ctx, target.claim, "the populator pod", 0)
}

// rejected tells that the API server refused what the claim's population needs, and ends the sync until that may have changed.
func (f *filler) rejected(ctx context.Context, claim *corev1.PersistentVolumeClaim, what string, err error) error {
	wait := f.refused.add(claim, f.cfg.rejectedWait)
	f.events.refused(claim, "PopulatorRejected", err,
		"The cluster refused %s in namespace %s; it is tried again when quotas, limits or labels of that namespace change, and every %v: %v",
		what, f.cfg.PopulatorNamespace, f.cfg.rejectedWait, err)
	return f.wait(ctx, claim, "the cluster to accept "+what, wait)
}

const (
	// yieldAfter is how long a pod that no node takes keeps its slot from a claim that waits for one.
	yieldAfter = time.Minute
	// yieldStartingAfter is the same for a pod that has a node and does not start: its volume cannot be attached or mounted, its image
	// not be pulled, its sandbox not be made. Another pod would begin all that anew, so it is longer than what passes by itself takes:
	// Kubernetes takes a volume from a node that was lost after 6 minutes, and kubelet and attacher try again every 2 to 5. A
	// Deployment gives its pods as long before it calls that a failure.
	yieldStartingAfter = 10 * time.Minute
)

// yield has a pod give its slot up to a claim that waits, if no node takes it, or it does not start there: who can make pods that
// never run must not keep everybody else from being served. It lines up again behind those that wait.
func (f *filler) yield(pod *corev1.Pod, v verdict) verdict {
	since, patience := notStarted(pod)
	if v.action != actionWait || pod.DeletionTimestamp != nil || since.IsZero() {
		return v
	}
	now := f.clock.Now()
	if left := since.Add(patience).Sub(now); left > 0 {
		v.wait = sooner(v.wait, left)
		return v
	}
	if f.slots.contended(pod.Name, now) {
		return verdict{action: actionReplace, why: "it does not start, and another claim waits for its turn"}
	}
	// Whoever begins to wait does not wake this claim.
	v.wait = sooner(v.wait, yieldAfter)
	return v
}

// notStarted returns since when no node takes a pod, or since when it has one and does not start there, and how long it keeps its slot
// all the same; zero if it has started, or the scheduler has not looked yet.
func notStarted(pod *corev1.Pod) (since time.Time, patience time.Duration) {
	if podstate.Ended(pod) || podstate.Started(pod) {
		return time.Time{}, 0
	}
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		switch {
		case c.Type != corev1.PodScheduled:
		case c.Status == corev1.ConditionTrue:
			return c.LastTransitionTime.Time, yieldStartingAfter
		case c.Reason == corev1.PodReasonUnschedulable:
			return c.LastTransitionTime.Time, yieldAfter
		}
	}
	return time.Time{}, 0
}

// replace deletes a pod; the next sync creates another one once it is gone.
func (f *filler) replace(ctx context.Context, claim *corev1.PersistentVolumeClaim, pod *corev1.Pod, v verdict) error {
	if v.fresh {
		f.starts.forget(claim.UID)
	}
	if pod.DeletionTimestamp == nil {
		log.FromContext(ctx).Info("deleting populator pod", "pod", pod.Name, "because", v.why)
		if err := f.deletes.exactly(ctx, pod); err != nil {
			return err
		}
	}
	return f.wait(ctx, claim, "the populator pod to be gone", 0)
}

// pod returns the populator pod of a claim from the cache, or nil. The API server is asked about a pod that was created
// a moment ago and has not shown up in the cache yet.
func (f *filler) pod(ctx context.Context, claim types.UID) (*corev1.Pod, error) {
	name := types.NamespacedName{Namespace: f.cfg.PopulatorNamespace, Name: podName(claim)}
	var pod corev1.Pod
	err := f.client.Get(ctx, name, &pod)
	if err == nil {
		f.starts.seen(claim)
		return &pod, nil
	}
	if apierrors.IsNotFound(err) && f.starts.unseen(claim) {
		err = f.live.Get(ctx, name, &pod)
	}
	switch {
	case err == nil:
		return &pod, nil
	case apierrors.IsNotFound(err):
		f.starts.seen(claim)
		return nil, nil
	default:
		return nil, fmt.Errorf("get populator pod %s: %w", name, err)
	}
}

// starts remembers the last pod of each claim, so that pods which vanish before they are judged (evicted, deleted by hand,
// lost with their node) are not recreated in a tight loop. It is safe for concurrent use. Each pod carries its attempt in an
// annotation, so a restart of the controller loses nothing while the pod exists.
type starts struct {
	mu   sync.Mutex
	last map[types.UID]lastStart
}

type lastStart struct {
	attempt int
	at      time.Time
	// unseen is set until the pod has been in the cache.
	unseen bool
	// ended is when the pod was first seen to have ended; zero: it was not.
	ended time.Time
}

func newStarts() *starts { return &starts{last: map[types.UID]lastStart{}} }

// next returns the number of the claim's next attempt and how long it has to wait.
func (s *starts) next(cfg *Config, claim types.UID, now time.Time) (attempt int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.last[claim]
	if !ok {
		return 1, 0
	}
	return last.attempt + 1, last.at.Add(backoff(cfg, last.attempt)).Sub(now)
}

// observe takes note of a pod that exists, and returns when it was first seen to have ended: now, if this is the first time. After a
// restart of the controller it is seen for the first time once more.
func (s *starts) observe(pod *corev1.Pod, now time.Time) (ended time.Time) {
	if pod.DeletionTimestamp != nil {
		return now
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	claim := claimUIDFromName(pod.Name)
	last := lastStart{attempt: attemptOf(pod), at: pod.CreationTimestamp.Time, unseen: s.last[claim].unseen}
	if podstate.Ended(pod) {
		last.ended = s.last[claim].ended
		if last.ended.IsZero() {
			last.ended = now
		}
	}
	s.last[claim] = last
	return last.ended
}

// created takes note of a pod that was created just now.
func (s *starts) created(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[claimUIDFromName(pod.Name)] = lastStart{attempt: attemptOf(pod), at: pod.CreationTimestamp.Time, unseen: true}
}

// failed takes note of a failed attempt whose pod is gone.
func (s *starts) failed(claim types.UID, failed outcome.Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[claim] = lastStart{attempt: failed.Attempt, at: failed.At}
}

// unseen reports whether the claim's last pod has not been in the cache yet.
func (s *starts) unseen(claim types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[claim].unseen
}

// seen takes note that the claim's last pod is or was in the cache, or is gone.
func (s *starts) seen(claim types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last[claim]; ok {
		last.unseen = false
		s.last[claim] = last
	}
}

// forget makes the claim's next attempt its first.
func (s *starts) forget(claim types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, claim)
}
