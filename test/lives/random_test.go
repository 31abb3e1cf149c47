package lives

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// chaos applies random operations to lives.
type chaos struct {
	*rand.Rand
	w     *world
	lives []*life
	// mu guards the random numbers and asked while lives recover at the same time.
	mu sync.Mutex
	// asked has the lists that the ChangedBlockRanges of a life asked for since its claim was created.
	asked map[*life][]string
	// log has what was done to each life, for a failed check.
	log map[*life][]string
}

// operation does something to a life.
type operation struct {
	name   string
	weight int
	do     func(*chaos, *life) error
}

var operations = []operation{
	{"create something", 30, (*chaos).createSomething},
	{"delete something", 14, (*chaos).deleteSomething},
	{"take the range away by force", 2, (*chaos).forceRange},
	{"let it on", 14, func(_ *chaos, l *life) error { l.let(everything); return nil }},
	{"fail terminally", 5, fails(outcome.ListTooLarge)},
	{"fail", 6, fails(outcome.StreamFailed)},
	{"fail out of sight", 3, fails(outcome.PermissionDenied)},
	{"run on", 6, func(_ *chaos, l *life) error { l.let(stage{provision: true, bind: true}); return nil }},
	{"stop provisioning", 3, func(_ *chaos, l *life) error { l.let(stage{bind: true}); return nil }},
	{"stop binding", 3, func(_ *chaos, l *life) error { l.let(stage{provision: true, result: outcome.Populated}); return nil }},
	{"kill the pod", 5, func(_ *chaos, l *life) error { return l.lose(thePod) }},
	{"evict the pod", 3, (*chaos).evict},
	{"repair", 4, (*chaos).repair},
	{"stop or start the controller", 2, (*chaos).toggle},
}

func fails(reason outcome.Reason) func(*chaos, *life) error {
	return func(_ *chaos, l *life) error {
		l.let(stage{provision: true, bind: true, result: reason})
		return nil
	}
}

// TestRandomLives does 1,000 random things (300 with -short) to 20 claims, repairs everything, and checks that every claim that
// survived holds the list that it should, and that nothing is left when all is deleted.
func TestRandomLives(t *testing.T) {
	const claims = 20
	w := newWorld(t)
	w.cfg.MaxConcurrent = claims / 2
	c := &chaos{Rand: newRandom(t), w: w, asked: map[*life][]string{}, log: map[*life][]string{}}
	for range claims {
		c.lives = append(c.lives, w.newLife(deletions{at: done}))
	}
	w.startController()
	w.each(c.lives, func(l *life) error { return l.begin(done) })
	for _, l := range c.lives {
		c.asked[l] = []string{expectedList(l.newRange(), l.driver())}
	}
	for range size.Of(1000, 300) {
		l := c.lives[c.IntN(len(c.lives))]
		o := c.choose()
		c.log[l] = append(c.log[l], o.name)
		if err := o.do(c, l); err != nil {
			t.Fatalf("%s: %s: %v", l, o.name, err)
		}
	}
	if w.stop == nil {
		w.startController()
	}
	for _, l := range c.lives {
		l.let(everything)
	}
	survivors := w.each(c.lives, c.recover)
	alive := slices.DeleteFunc(slices.Clone(survivors), func(l *life) bool { return l.look().claim == nil })
	t.Logf("%d claims were there in the end", len(alive))
	if len(alive) == 0 {
		t.Error("no claim was there in the end: nothing was checked")
	}
	w.each(survivors, (*life).end)
	w.checkNothingLeft()
}

func (c *chaos) choose() operation {
	sum := 0
	for _, o := range operations {
		sum += o.weight
	}
	n := c.IntN(sum)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			return o
		}
	}
	panic("the weights do not add up")
}

func (c *chaos) createSomething(l *life) error {
	if len(l.lost) == 0 {
		return nil
	}
	return c.create(l, l.lost[c.IntN(len(l.lost))])
}

// create creates a victim and notes which list it asks for. One that is still being deleted stays lost.
func (c *chaos) create(l *life, v victim) error {
	switch v {
	case theClaim:
		err := l.c.Create(context.Background(), l.newClaim())
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("create claim: %w", err)
		}
		c.asked[l] = []string{expectedList(l.newRange(), l.driver())}
	case theRange:
		before := l.granularity
		l.granularity = ptr.To(int64(512) << c.IntN(8))
		err := l.c.Create(context.Background(), l.newRange())
		if apierrors.IsAlreadyExists(err) {
			l.granularity = before
			return nil
		}
		if err != nil {
			return fmt.Errorf("create range: %w", err)
		}
		c.asked[l] = append(c.asked[l], expectedList(l.newRange(), l.driver()))
	default:
		// Nothing else decides which list is written.
	}
	return l.give(v)
}

func (c *chaos) deleteSomething(l *life) error {
	mortal := []victim{theClaim, theClaim, theRange, theFrom, theTo, thePod, thePrime, theClass, theService}
	return l.lose(mortal[c.IntN(len(mortal))])
}

// forceRange deletes the ChangedBlockRange and its finalizer.
func (c *chaos) forceRange(l *life) error {
	if err := l.lose(theRange); err != nil {
		return err
	}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := l.c.Patch(context.Background(), l.newRange(), patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the finalizer of the range: %w", err)
	}
	return nil
}

// evict ends the populator's pod from outside: it leaves no result.
func (c *chaos) evict(l *life) error {
	pod := l.look().pod
	if pod == nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	pod.Status.Phase, pod.Status.Reason = corev1.PodFailed, "Evicted"
	err := l.c.Status().Update(context.Background(), pod)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// repair gives back everything but a claim, and gives failures that were final a reason to be tried again.
func (c *chaos) repair(l *life) error {
	l.let(everything)
	for _, v := range slices.Clone(l.lost) {
		if v == theClaim {
			continue
		}
		if err := c.create(l, v); err != nil {
			return err
		}
	}
	service := &smsv1beta1.SnapshotMetadataService{}
	if err := l.c.Get(context.Background(), client.ObjectKey{Name: l.driver()}, service); err != nil {
		return fmt.Errorf("get service: %w", err)
	}
	service.Spec.Address = fmt.Sprintf("metadata.example:%d", 1000+c.IntN(9000))
	if err := l.c.Update(context.Background(), service); err != nil {
		return fmt.Errorf("update service: %w", err)
	}
	return nil
}

func (c *chaos) toggle(*life) error {
	if c.w.stop != nil {
		c.w.stop()
	} else {
		c.w.startController()
	}
	return nil
}

// recover repairs a life for good and waits until its claim, if it has one, is filled with a list that was asked for.
func (c *chaos) recover(l *life) error {
	fail := func(err error) error { return fmt.Errorf("%w\nafter %q", err, c.log[l]) }
	// A ChangedBlockRange that is being deleted cannot be created again before it is gone.
	if err := l.until("the deleted range is gone", func(s sight) string {
		if s.cbr != nil && s.cbr.DeletionTimestamp != nil {
			return "it is there"
		}
		return ""
	}); err != nil {
		return fail(err)
	}
	if l.look().cbr == nil {
		l.lost = append(l.lost, theRange)
	}
	c.mu.Lock()
	err := c.repair(l)
	c.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	if err := l.until("the claim is filled, if there is one", func(s sight) string {
		switch {
		case s.claim != nil:
			return l.checkFilled(s)
		case s.cbr != nil && slices.Contains(s.cbr.Finalizers, v1alpha1.FinalizerPopulating):
			return "the range is held"
		}
		return checkNothingOfOurs(s)
	}); err != nil {
		return fail(err)
	}
	if claim := l.look().claim; claim != nil {
		c.mu.Lock()
		asked := c.asked[l]
		c.mu.Unlock()
		if err := l.checkData(claim, asked...); err != nil {
			return fail(err)
		}
	}
	return nil
}
