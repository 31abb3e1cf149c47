package machinery

import (
	"context"
	"errors"
	"fmt"
	"time"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	populator "github.com/kubernetes-csi/lib-volume-populator/v3/populator-machinery"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

const (
	// callTimeout bounds the API calls of one provider function: the library passes a context that never ends.
	callTimeout = 30 * time.Second
	// safetyNet is the longest wait of a claim that a watch is to wake. Nothing relies on it.
	safetyNet = 10 * time.Minute
)

// errWaiting ends a sync of the library that is to be continued later and is not a failure. The library compares errors
// with this text, its own, and stays silent about it.
var errWaiting = errors.New("PopulatorWaitForDataPopulationFinished")

// filler holds the provider functions. They are called by several library instances at once, each for its own claims, and
// on every sync of a claim, so each of them looks at what is there and does the next step only.
type filler struct {
	cfg *Config
	// client reads from the manager's cache and writes without the library's limit of 5 requests/s.
	client client.Client
	// live reads from the API server: volumes, of which no cache is kept, and what a volume is handed over by.
	live     client.Reader
	slots    *slots
	starts   *starts
	events   *events
	deletes  *deletes
	refused  *refusals
	clock    clock.PassiveClock
	settling *settling
	announce func(claim *corev1.PersistentVolumeClaim, wait time.Duration)
}

// functions returns f as the library wants it.
func (f *filler) functions() populator.ProviderFunctionConfig {
	return populator.ProviderFunctionConfig{
		PopulateFn: func(ctx context.Context, p populator.PopulatorParams) error {
			ctx, cancel := f.begin(ctx, p)
			defer cancel()
			return f.populate(ctx, p.Pvc, p.PvcPrime)
		},
		PopulateCompleteFn: func(ctx context.Context, p populator.PopulatorParams) (bool, error) {
			ctx, cancel := f.begin(ctx, p)
			defer cancel()
			return f.complete(ctx, p.Pvc, p.PvcPrime)
		},
		PopulateCleanupFn: func(ctx context.Context, p populator.PopulatorParams) error {
			ctx, cancel := f.begin(ctx, p)
			defer cancel()
			return f.cleanUp(ctx, p.Pvc, p.PvcPrime)
		},
	}
}

func (f *filler) begin(ctx context.Context, p populator.PopulatorParams) (context.Context, context.CancelFunc) {
	ctx = log.IntoContext(ctx, log.Log.WithName("machinery").WithValues("claim", nameOf(p.Pvc)))
	return context.WithTimeout(ctx, callTimeout)
}

// wait ends a sync: the claim is looked at again when a watch wakes it, at the latest after d (0: the safety net).
func (f *filler) wait(ctx context.Context, claim *corev1.PersistentVolumeClaim, why string, d time.Duration) error {
	if d <= 0 || d > safetyNet {
		d = safetyNet
	}
	log.FromContext(ctx).V(1).Info("claim waits", "for", why, "atMost", d)
	f.announce(claim, d)
	return errWaiting
}

// populate takes the claim one step closer to a written list. It returns nil once the list is written.
func (f *filler) populate(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) error {
	f.refused.acceptedPrime(claim.UID)
	pod, err := f.pod(ctx, claim.UID)
	if err != nil {
		return err
	}
	if prime.DeletionTimestamp != nil {
		// Someone else deleted it. What the pod writes is lost with it, and it stays while the pod uses it. The library
		// makes another one when it is gone.
		if pod != nil {
			return f.replace(ctx, claim, pod, verdict{why: "the prime claim is being deleted", fresh: true})
		}
		f.slots.release(podName(claim.UID))
		return f.wait(ctx, claim, "the prime claim to be gone", 0)
	}
	switch prime.Status.Phase {
	case corev1.ClaimBound:
	case corev1.ClaimLost:
		return f.afterLoss(ctx, claim, prime, pod)
	default:
		// The kubelet retries a mount of an unbound claim only after 13 s. The claim's own watch wakes us.
		return f.wait(ctx, claim, "the prime claim to be bound", 0)
	}
	source, want, err := f.source(ctx, f.client, claim, prime)
	if err != nil {
		return err
	}
	if pod == nil {
		return f.resume(ctx, podClaim{claim: claim, prime: prime}, source, want)
	}
	now := f.clock.Now()
	seen := f.starts.observe(pod, now)
	told := f.events.populating(claim, pod, now)
	switch v := f.yield(pod, judge(f.cfg, pod, want, seen, now)); v.action {
	case actionComplete:
		return nil
	case actionReplace:
		return f.replace(ctx, claim, pod, v)
	case actionRetire:
		return f.retire(ctx, claim, prime, pod, failureOf(pod, seen))
	default:
		return f.wait(ctx, claim, v.why, sooner(v.wait, told))
	}
}

// sooner returns the shorter of two waits, of which 0 stands for one without end.
func sooner(a, b time.Duration) time.Duration {
	if a <= 0 || (b > 0 && b < a) {
		return b
	}
	return a
}

// source looks up what the claim is filled from; ranges has its ChangedBlockRange. Its service is nil while no pod can be built.
func (f *filler) source(ctx context.Context, ranges client.Reader, claim, prime *corev1.PersistentVolumeClaim) (podSource, wanted, error) {
	want := wanted{primeUID: string(prime.UID)}
	name, ok := reference.Of(claim)
	if !ok {
		return podSource{}, want, fmt.Errorf("claim %s: it names no ChangedBlockRange", nameOf(claim))
	}
	var cbr v1alpha1.ChangedBlockRange
	if err := ranges.Get(ctx, name, &cbr); err != nil {
		if apierrors.IsNotFound(err) {
			return podSource{}, want, f.wait(ctx, claim, "the ChangedBlockRange", 0)
		}
		return podSource{}, want, fmt.Errorf("get ChangedBlockRange %s: %w", name, err)
	}
	want = wantedOf(&cbr)
	want.primeUID = string(prime.UID)
	source := podSource{cbr: &cbr}
	if !cbr.MayPopulate() {
		return source, want, nil
	}
	var service smsv1beta1.SnapshotMetadataService
	err := f.client.Get(ctx, types.NamespacedName{Name: cbr.Status.Driver}, &service)
	if apierrors.IsNotFound(err) {
		return source, want, nil
	}
	if err != nil {
		return source, want, fmt.Errorf("get SnapshotMetadataService %s: %w", cbr.Status.Driver, err)
	}
	source.service = &service
	want.setting = settingDigest(f.cfg, source)
	return source, want, nil
}

// complete reports whether the volume holds the whole list, its figures are recorded, and the volume may be handed over.
//
// That cannot be undone, so the ChangedBlockRange is read from the API server. The reconciler marks a pod after it has written the
// status, but the cache may have the mark first, and by the status before it the list of a snapshot that was replaced would be the
// one that is wanted.
func (f *filler) complete(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) (bool, error) {
	volume, err := f.volume(ctx, prime)
	if err != nil {
		return false, err
	}
	switch holder := holderOf(volume); holder {
	case claim.UID:
		// Handed over already.
		return true, nil
	case prime.UID:
	default:
		f.events.warn(claim, "VolumeTaken", "The filled volume %s belongs to another claim (UID %q) by now; delete this claim and create it again.",
			prime.Spec.VolumeName, holder)
		return false, fmt.Errorf("volume %s of prime claim %s is bound to UID %q", prime.Spec.VolumeName, prime.Name, holder)
	}
	pod, err := f.pod(ctx, claim.UID)
	if err != nil {
		return false, err
	}
	_, want, err := f.source(ctx, f.live, claim, prime)
	if err != nil && !errors.Is(err, errWaiting) {
		return false, err
	}
	// How long ago a pod failed does not matter here.
	now := f.clock.Now()
	return pod != nil && judge(f.cfg, pod, want, now, now).action == actionComplete, nil
}

// volume returns the prime claim's volume.
func (f *filler) volume(ctx context.Context, prime *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	var volume corev1.PersistentVolume
	if err := f.live.Get(ctx, types.NamespacedName{Name: prime.Spec.VolumeName}, &volume); err != nil {
		return nil, fmt.Errorf("get volume %s of prime claim %s: %w", prime.Spec.VolumeName, prime.Name, err)
	}
	return &volume, nil
}

// holderOf returns the UID of the claim that a volume is bound to, or "".
func holderOf(volume *corev1.PersistentVolume) types.UID {
	if volume.Spec.ClaimRef == nil {
		return ""
	}
	return volume.Spec.ClaimRef.UID
}

// afterLoss handles a prime claim that lost its volume: usually because the volume was handed over, else because someone
// deleted the volume, and then everything starts again.
func (f *filler) afterLoss(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim, pod *corev1.Pod) error {
	volume, err := f.volume(ctx, prime)
	switch {
	case err == nil && holderOf(volume) == claim.UID:
		return nil
	case err != nil && !apierrors.IsNotFound(err):
		return err
	}
	if pod != nil {
		return f.replace(ctx, claim, pod, verdict{why: "the volume is gone", fresh: true})
	}
	if err := f.deletes.exactly(ctx, prime); err != nil {
		return err
	}
	return f.wait(ctx, claim, "the prime claim to be gone", 0)
}

// cleanUp removes the temporary objects of a claim that has its volume, one after the other, and returns nil only when
// they are gone: the library releases the claim right after it.
func (f *filler) cleanUp(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim) error {
	if claim.DeletionTimestamp == nil && claim.Spec.VolumeName == "" {
		// The prime claim may lose the volume before the claim has it. If it were deleted now, the library would make
		// another one and fill it again.
		return f.wait(ctx, claim, "the claim to be bound", 0)
	}
	pod, err := f.pod(ctx, claim.UID)
	if err != nil {
		return err
	}
	if pod != nil {
		if pod.DeletionTimestamp == nil {
			if err := f.deletePod(ctx, claim, prime, pod); err != nil {
				return err
			}
		}
		return f.wait(ctx, claim, "the populator pod to be gone", 0)
	}
	f.slots.release(podName(claim.UID))
	// The library deletes the prime claim that it knows of right after this function and fails if that is gone by then,
	// so this sync ends whenever it knows of one. The next one begins when the prime claim's end is in the cache.
	if prime != nil {
		if prime.DeletionTimestamp == nil {
			if err := f.deletes.exactly(ctx, prime); err != nil {
				return err
			}
		}
		return f.wait(ctx, claim, "the prime claim to be gone", 0)
	}
	f.starts.forget(claim.UID)
	f.events.forget(claim.UID)
	f.settling.begin(claim)
	return nil
}

// deletePod deletes the pod of a claim that has a volume, and tells that the claim was filled if the volume is the pod's.
func (f *filler) deletePod(ctx context.Context, claim, prime *corev1.PersistentVolumeClaim, pod *corev1.Pod) error {
	if prime != nil && prime.Spec.VolumeName == claim.Spec.VolumeName {
		return f.deletes.populated(ctx, claim, pod)
	}
	return f.deletes.exactly(ctx, pod)
}
