package lives

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// Names of a life's objects in its namespace.
const (
	claimName = "list"
	rangeName = "range"
	fromName  = "from"
	toName    = "to"
)

// life is one claim with everything that it needs, in a namespace of its own. The storage class and the CSI driver have the
// namespace's name.
type life struct {
	*world
	namespace string
	// home is the namespace of the ChangedBlockRange and its snapshots: the claim's, unless the claim refers to another one.
	home    string
	fate    deletions
	changed chan struct{}

	mu    sync.Mutex
	stage stage
	// lost are the victims that were deleted and not created again.
	lost []victim
	// granularity makes the lists of two ChangedBlockRanges of one name differ.
	granularity *int64
}

// newLife makes room for a life; it creates nothing.
func (w *world) newLife(fate deletions) *life {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &life{
		world: w, fate: fate, stage: everything, changed: make(chan struct{}, 1),
		namespace: fmt.Sprintf("%s-life-%d", w.cfg.PopulatorNamespace, len(w.lives)+1),
	}
	l.home = l.namespace
	w.lives[l.namespace] = l
	return l
}

// newForeignLife is newLife for a claim that refers to a ChangedBlockRange of another namespace.
func (w *world) newForeignLife(fate deletions) *life {
	l := w.newLife(fate)
	w.mu.Lock()
	defer w.mu.Unlock()
	l.home += "-home"
	w.lives[l.home] = l
	return l
}

func (l *life) foreign() bool { return l.home != l.namespace }

func (l *life) String() string { return fmt.Sprintf("%v (%s)", l.fate, l.namespace) }

func (l *life) driver() string { return l.namespace + ".lives.test" }

func (l *life) at() stage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stage
}

func (l *life) let(s stage) {
	l.mu.Lock()
	l.stage = s
	l.mu.Unlock()
	if l.fake != nil {
		l.fake.Poke()
	}
}

func (l *life) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// sight is what there is of a life: nil what does not exist.
type sight struct {
	claim, prime *corev1.PersistentVolumeClaim
	pod          *corev1.Pod
	cbr          *v1alpha1.ChangedBlockRange
}

func (l *life) look() sight {
	var s sight
	var claim, prime corev1.PersistentVolumeClaim
	var pod corev1.Pod
	var cbr v1alpha1.ChangedBlockRange
	if l.see(l.namespace, claimName, &claim) {
		s.claim = &claim
	}
	if l.see(l.home, rangeName, &cbr) {
		s.cbr = &cbr
	}
	uid := l.claimUID()
	if l.see(l.cfg.PopulatorNamespace, "prime-"+uid, &prime) {
		s.prime = &prime
	}
	if l.see(l.cfg.PopulatorNamespace, "populate-"+uid, &pod) {
		s.pod = &pod
	}
	return s
}

// claimUID returns the UID of the claim, or of the last one of its name, for the names of its temporary objects.
func (l *life) claimUID() string {
	var claim corev1.PersistentVolumeClaim
	if l.see(l.namespace, claimName, &claim) {
		return string(claim.UID)
	}
	var claims corev1.PersistentVolumeClaimList
	if err := l.seen.List(context.Background(), &claims, client.InNamespace(l.cfg.PopulatorNamespace)); err != nil {
		return "unknown"
	}
	for i := range claims.Items {
		if claims.Items[i].Annotations[v1alpha1.AnnotationClaimNamespace] == l.namespace {
			return strings.TrimPrefix(claims.Items[i].Name, "prime-")
		}
	}
	var pods corev1.PodList
	if err := l.seen.List(context.Background(), &pods, client.InNamespace(l.cfg.PopulatorNamespace)); err != nil {
		return "unknown"
	}
	for i := range pods.Items {
		if pods.Items[i].Annotations[v1alpha1.AnnotationClaimNamespace] == l.namespace {
			return strings.TrimPrefix(pods.Items[i].Name, "populate-")
		}
	}
	return "none"
}

// see reads an object from what was last seen and reports whether it exists.
func (l *life) see(namespace, name string, o client.Object) bool {
	return l.seen.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, o) == nil
}

// until waits until check returns "", which else says what is missing. It looks again whenever an object of the life changes.
func (l *life) until(what string, check func(sight) string) error {
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	for {
		missing := check(l.look())
		if missing == "" {
			return nil
		}
		select {
		case <-l.changed:
		case <-timeout.C:
			return fmt.Errorf("%s: not within %v: %s\n%s", what, deadline, missing, l.describe())
		}
	}
}

// describe tells what there is, for a failed check.
func (l *life) describe() string {
	var b strings.Builder
	s := l.look()
	for _, c := range []*corev1.PersistentVolumeClaim{s.claim, s.prime} {
		if c != nil {
			fmt.Fprintf(&b, "  claim %s/%s phase=%s volume=%q finalizers=%v deleting=%v\n", c.Namespace, c.Name, c.Status.Phase, c.Spec.VolumeName, c.Finalizers, c.DeletionTimestamp)
		}
	}
	if s.pod != nil {
		fmt.Fprintf(&b, "  pod %s phase=%s deleting=%v annotations=%v\n", s.pod.Name, s.pod.Status.Phase, s.pod.DeletionTimestamp, s.pod.Annotations)
	}
	if s.cbr != nil {
		fmt.Fprintf(&b, "  range finalizers=%v deleting=%v state=%s message=%q\n", s.cbr.Finalizers, s.cbr.DeletionTimestamp, s.cbr.Status.State, s.cbr.Status.Message)
	}
	return b.String()
}

func released(claim *corev1.PersistentVolumeClaim) bool {
	return !slices.Contains(claim.Finalizers, v1alpha1.FinalizerClaim)
}

// checkFilled says what a filled claim still lacks; "" for nothing.
func (l *life) checkFilled(s sight) string {
	switch {
	case s.claim == nil:
		return "the claim does not exist"
	case s.claim.Status.Phase != corev1.ClaimBound:
		return "the claim is not bound"
	case !released(s.claim):
		return "the claim has the finalizer"
	}
	return checkNothingOfOurs(s)
}

// checkNothingOfOurs says which temporary object there is; "" for none.
func checkNothingOfOurs(s sight) string {
	switch {
	case s.claim != nil && !released(s.claim):
		return "the claim has the finalizer"
	case s.prime != nil:
		return "there is a prime claim"
	case s.pod != nil:
		return "there is a populator pod"
	}
	return ""
}

// checkNothingTerminating says which object is being deleted; "" for none.
func checkNothingTerminating(s sight) string {
	for _, o := range []struct {
		exists bool
		object client.Object
	}{{s.claim != nil, s.claim}, {s.prime != nil, s.prime}, {s.pod != nil, s.pod}, {s.cbr != nil, s.cbr}} {
		if o.exists && o.object.GetDeletionTimestamp() != nil {
			return fmt.Sprintf("%T %s is being deleted", o.object, o.object.GetName())
		}
	}
	return ""
}

// checkData compares what is on the claim's volume with one of the lists.
func (l *life) checkData(claim *corev1.PersistentVolumeClaim, lists ...string) error {
	result, err := outcome.Parse(l.fake.Written(claim.Spec.VolumeName))
	if err != nil {
		return fmt.Errorf("what is on volume %s: %w", claim.Spec.VolumeName, err)
	}
	if !slices.Contains(lists, result.ListDigest) {
		return fmt.Errorf("the claim's volume %s holds the list %s, want one of %v", claim.Spec.VolumeName, result.ListDigest, lists)
	}
	return nil
}

// filled waits until the claim has its list and checks that it is the one that its ChangedBlockRange asks for.
func (l *life) filled() error {
	if err := l.until("the claim is filled", l.checkFilled); err != nil {
		return err
	}
	return l.checkData(l.look().claim, expectedList(l.newRange(), l.driver()))
}

// end deletes everything, as the namespace controller would, and waits until nothing of the claim is left.
func (l *life) end() error {
	if err := errors.Join(l.lose(theNamespace), l.lose(theHome), l.lose(theClass), l.lose(theService)); err != nil {
		return err
	}
	return l.until("everything is gone", l.checkGone)
}

func (l *life) checkGone(s sight) string {
	switch {
	case s.claim != nil:
		return "the claim is there"
	case s.cbr != nil:
		return "the ChangedBlockRange is there"
	}
	if left := checkNothingOfOurs(s); left != "" {
		return left
	}
	var volumes corev1.PersistentVolumeList
	if err := l.seen.List(context.Background(), &volumes); err != nil {
		return err.Error()
	}
	for i := range volumes.Items {
		ref := volumes.Items[i].Spec.ClaimRef
		if (ref != nil && ref.Namespace == l.namespace) || volumes.Items[i].Spec.StorageClassName == l.namespace {
			return "volume " + volumes.Items[i].Name + " is there"
		}
	}
	return ""
}

func (l *life) create(o client.Object) error {
	if err := l.c.Create(context.Background(), o); client.IgnoreAlreadyExists(err) != nil {
		return fmt.Errorf("create %T %s: %w", o, o.GetName(), err)
	}
	return nil
}

func (l *life) remove(o client.Object) error {
	if err := l.c.Delete(context.Background(), o); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %T %s: %w", o, o.GetName(), err)
	}
	return nil
}

// named is what an object of the claim's namespace is called, namedAtHome one of the ChangedBlockRange's.
func (l *life) named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: l.namespace, Name: name}
}

func (l *life) namedAtHome(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: l.home, Name: name}
}
