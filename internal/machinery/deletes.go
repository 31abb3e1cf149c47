package machinery

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// rememberDeletes is how long it is remembered that an object was deleted: longer than any cache lags behind.
const rememberDeletes = 10 * time.Minute

// deletes sends deletions, each once. The cache shows an object for a while as if nobody had deleted it, and the library's cleanup and
// the releaser look at the same objects. It is safe for concurrent use.
type deletes struct {
	client client.Writer
	events *events
	clock  clock.PassiveClock

	mu   sync.Mutex
	sent map[types.UID]time.Time
}

func newDeletes(c client.Writer, e *events, now clock.PassiveClock) *deletes {
	return &deletes{client: c, events: e, clock: now, sent: map[types.UID]time.Time{}}
}

// exactly deletes exactly this object, not one of the same name that came after it. An object that is gone is no error.
func (d *deletes) exactly(ctx context.Context, o client.Object) error {
	_, err := d.once(ctx, o, func() error { return nil })
	return err
}

// populated deletes the pod that filled a claim and tells about it.
func (d *deletes) populated(ctx context.Context, claim *corev1.PersistentVolumeClaim, pod *corev1.Pod) error {
	deleted, err := d.once(ctx, pod, func() error { return noteOrigin(ctx, d.client, claim) })
	if deleted {
		d.events.populated(claim, pod)
	}
	return err
}

// once deletes an object after first was done, and reports whether this call did so. One that failed is made again by the next.
func (d *deletes) once(ctx context.Context, o client.Object, first func() error) (deleted bool, err error) {
	if !d.begin(o.GetUID()) {
		return false, nil
	}
	defer func() {
		if err != nil {
			d.takeBack(o.GetUID())
		}
	}()
	if err := first(); err != nil {
		return false, err
	}
	return deleteExactly(ctx, d.client, o)
}

// deleteExactly deletes an object, but no other one of its name, and reports whether it was there.
func deleteExactly(ctx context.Context, c client.Writer, o client.Object) (deleted bool, err error) {
	uid := o.GetUID()
	err = c.Delete(ctx, o, client.Preconditions{UID: &uid})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete %T %s: %w", o, client.ObjectKeyFromObject(o), err)
	}
	return true, nil
}

// begin reports whether the object was not deleted yet, and takes note that it is now.
func (d *deletes) begin(uid types.UID) bool {
	now := d.clock.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, sent := d.sent[uid]; sent {
		return false
	}
	maps.DeleteFunc(d.sent, func(_ types.UID, at time.Time) bool { return now.Sub(at) >= rememberDeletes })
	d.sent[uid] = now
	return true
}

func (d *deletes) takeBack(uid types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sent, uid)
}
