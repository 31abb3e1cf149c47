package machinery

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/podstate"
)

// failureOf reads the failure of a pod that ended without a list, and was seen then. When it ended is the word of its node, whose clock may
// be ahead of ours: then the next attempt would follow, and the logs be dropped, only when ours has caught up.
func failureOf(pod *corev1.Pod, seen time.Time) outcome.Failure {
	at := podstate.EndedAt(pod)
	if at.After(seen) {
		at = seen
	}
	f := outcome.Failure{
		SourceUID: pod.Labels[v1alpha1.LabelChangedBlockRangeUID],
		Source:    pod.Annotations[v1alpha1.AnnotationSource],
		Setting:   pod.Annotations[annotationSetting],
		Attempt:   attemptOf(pod),
		At:        at.UTC().Truncate(time.Second),
	}
	// Without a result, the reason stays empty and another attempt follows.
	if result, err := podResult(pod); err == nil {
		f.Reason, f.Message = result.Reason, result.Message
	}
	return f
}

// rememberedFailure returns the failure that is written on a prime claim; false if there is none. What somebody else wrote
// there is as good as nothing.
func rememberedFailure(prime *corev1.PersistentVolumeClaim) (outcome.Failure, bool) {
	return outcome.ParseFailure(prime.Annotations[v1alpha1.AnnotationFailure])
}

// retire removes a failed pod whose logs were kept long enough. What it knew is on the prime claim first, in the cache as
// well as in the API: without either, the next sync would take the claim for one that was never tried.
func (f *filler) retire(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim, pod *corev1.Pod, failed outcome.Failure) error {
	if known, ok := rememberedFailure(prime); !ok || known != failed {
		annotation, err := failed.Marshal()
		if err != nil {
			return fmt.Errorf("remember pod %s: %w", pod.Name, err)
		}
		if err := f.remember(ctx, prime, annotation); err != nil {
			return err
		}
		return f.wait(ctx, claim, "the failure to be remembered", 0)
	}
	return f.replace(ctx, claim, pod, verdict{why: "its logs were kept long enough"})
}

// resume goes on with a claim that has no pod: after a failure that is remembered, as that one tells, else with the next
// attempt.
func (f *filler) resume(ctx context.Context, target podClaim, source podSource, want wanted) error {
	failed, ok := rememberedFailure(target.prime)
	if !ok {
		return f.start(ctx, target, source)
	}
	v := judgeFailure(f.cfg, failed, want, f.clock.Now())
	if v.action == actionWait {
		f.slots.release(podName(target.claim.UID))
		return f.wait(ctx, target.claim, v.why, v.wait)
	}
	if v.fresh {
		f.starts.forget(target.claim.UID)
	} else {
		f.starts.failed(target.claim.UID, failed)
	}
	// The next pod may vanish without a trace, and then the failure before it says nothing any more.
	log.FromContext(ctx).Info("trying again after a failure", "because", v.why)
	if err := f.remember(ctx, target.prime, ""); err != nil {
		return err
	}
	return f.wait(ctx, target.claim, "the failure to be forgotten", 0)
}

// remember writes a failure to the prime claim, or removes it. The change of the prime claim wakes the claim.
func (f *filler) remember(ctx context.Context, prime *corev1.PersistentVolumeClaim, failed string) error {
	if err := annotate(ctx, f.client, prime.DeepCopy(), v1alpha1.AnnotationFailure, failed); err != nil {
		return fmt.Errorf("remember the failure on prime claim %s: %w", prime.Name, err)
	}
	return nil
}
