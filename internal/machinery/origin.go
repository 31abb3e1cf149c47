package machinery

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// annotationPopulatedFrom is where the library notes on a volume what it was populated from.
const annotationPopulatedFrom = libraryPrefix + "/populated-from"

// origins remembers of claims that have a volume whether that was filled for them, so that each volume is looked at once. It is safe
// for concurrent use.
type origins struct {
	mu     sync.Mutex
	filled map[types.UID]bool
}

func (o *origins) of(claim types.UID) (filled, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	filled, known = o.filled[claim]
	return filled, known
}

func (o *origins) note(claim types.UID, filled bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.filled == nil {
		o.filled = map[types.UID]bool{}
	}
	o.filled[claim] = filled
}

// forget is called when the claim is gone.
func (o *origins) forget(claim types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.filled, claim)
}

// checkVolume tells, by an annotation and an event, that a claim has a volume which was not filled for it. Neither the volume
// controller nor the scheduler looks at dataSourceRef: they bind a claim that waits to any volume of its class that is free, which may
// be empty or hold the list of another night, and a user may name one. A claim that a backup tool restored with its volume is told so, too.
//
// The volume is read from the API server, which is asked after the claim was seen with it: a volume is annotated by the same write
// that hands it over, so that of a claim that was filled has the annotation by then.
func (r *releaser) checkVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	name := claim.Spec.VolumeName
	if _, ours := reference.Of(claim); !ours || name == "" || claim.DeletionTimestamp != nil || v1alpha1.HasOtherVolume(claim, name) {
		return nil
	}
	filled, known := r.origins.of(claim.UID)
	if !known {
		var volume corev1.PersistentVolume
		if err := r.live.Get(ctx, types.NamespacedName{Name: name}, &volume); apierrors.IsNotFound(err) {
			// Nobody can read anything from it, and nobody knows what it was.
			return nil
		} else if err != nil {
			return fmt.Errorf("get volume %s of claim %s: %w", name, nameOf(claim), err)
		}
		filled = filledFor(&volume, claim)
	}
	if filled {
		// An annotation that does not name the volume was copied from another claim.
		if _, copied := claim.Annotations[v1alpha1.AnnotationOtherVolume]; copied {
			if err := r.noteOtherVolume(ctx, claim, ""); err != nil {
				return err
			}
		}
		r.origins.note(claim.UID, true)
		return nil
	}
	if err := r.noteOtherVolume(ctx, claim, name); err != nil {
		return err
	}
	if !known {
		r.origins.note(claim.UID, false)
		log.FromContext(ctx).Info("claim has a volume that was not filled for it", "claim", nameOf(claim), "volume", name)
		r.events.warn(claim, v1alpha1.ReasonBoundToOtherVolume, "The claim is bound to volume %s, which was not filled from ChangedBlockRange %s for this claim: "+
			"it was there before, or was restored. What is on it is not the list that was asked for. For that, delete or reserve volumes of the "+
			"storage class that are Available, then delete this claim and create it again, without volumeName.", name, shownSource(claim))
	}
	return nil
}

// filledFor reports whether the volume of a claim was filled for it. Volumes that were filled before it was noted for which claim, say
// only from what.
func filledFor(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	if receiver, noted := volume.Annotations[v1alpha1.AnnotationPopulatedFor]; noted {
		return receiver == string(claim.UID)
	}
	from, noted := volume.Annotations[annotationPopulatedFrom]
	source, _ := reference.Of(claim)
	// What the library notes of a claim that refers to another namespace is corrected later (noteOrigin).
	return noted && (from == source.String() || from == claim.Namespace+"/"+source.Name)
}

// noteOtherVolume sets the annotation that names the volume, or takes it off if volume is "".
func (r *releaser) noteOtherVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume string) error {
	if err := annotate(ctx, r.client, claim, v1alpha1.AnnotationOtherVolume, volume); err != nil {
		return fmt.Errorf("note on claim %s which volume it has: %w", nameOf(claim), err)
	}
	return nil
}

// ignoreConflict is client.IgnoreNotFound for an object that changed in between.
func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}
