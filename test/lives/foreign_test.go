package lives

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

const grantName = "backups"

// giveGrant permits the claim what it refers to.
func (l *life) giveGrant() error {
	return l.create(&gatewayv1beta1.ReferenceGrant{
		ObjectMeta: l.namedAtHome(grantName),
		Spec: gatewayv1beta1.ReferenceGrantSpec{
			From: []gatewayv1beta1.ReferenceGrantFrom{{Kind: "PersistentVolumeClaim", Namespace: gatewayv1.Namespace(l.namespace)}},
			To:   []gatewayv1beta1.ReferenceGrantTo{{Group: v1alpha1.GroupName, Kind: v1alpha1.Kind, Name: ptr.To[gatewayv1.ObjectName](rangeName)}},
		},
	})
}

// newForeignWorld is newWorld with ReferenceGrants and a controller that goes by them.
func newForeignWorld(t *testing.T) *world {
	t.Helper()
	if err := apiserver.Shared(t).InstallReferenceGrants(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.references = true
	return w
}

// foreignDeletions are the deletions of one thing under a claim of another namespace, and of pairs with the grant.
func foreignDeletions() (singles, pairs []deletions) {
	for _, at := range phases {
		for _, v := range append(slices.Clone(victims), theHome) {
			singles = append(singles, deletions{at, []victim{v}})
			pairs = append(pairs, deletions{at, []victim{v, theGrant}}, deletions{at, []victim{theGrant, v}})
		}
		singles = append(singles, deletions{at, []victim{theGrant}})
	}
	impossible := func(d deletions) bool { return !d.possible() }
	return slices.DeleteFunc(singles, impossible), slices.DeleteFunc(pairs, impossible)
}

// TestForeignDeletions takes everything away, the permission included, at each step of the life of a claim that refers to
// another namespace.
func TestForeignDeletions(t *testing.T) {
	w := newForeignWorld(t)
	var lives []*life
	cases, pairs := foreignDeletions()
	for _, d := range slices.Concat(cases, sample(newRandom(t), pairs)) {
		lives = append(lives, w.newForeignLife(d))
	}
	t.Logf("%d lives", len(lives))
	w.startController()
	w.each(lives, func(l *life) error { return l.dieAndComeBack(func(bool) {}) })
	w.checkNothingLeft()
}

// TestForeignRestarts is the same for the permission alone, with the controller restarted between any two steps.
func TestForeignRestarts(t *testing.T) {
	w := newForeignWorld(t)
	var lives []*life
	for _, at := range phases {
		for _, v := range []victim{theGrant, theHome, theRange, theClaim} {
			lives = append(lives, w.newForeignLife(deletions{at, []victim{v}}))
		}
	}
	w.startController()
	for batch := range slices.Chunk(lives, atOnce) {
		crew := w.newCrew(len(batch))
		w.each(batch, func(l *life) error {
			defer crew.leave()
			return l.dieAndComeBack(crew.turn)
		})
	}
	w.checkNothingLeft()
}

// TestForeignRefused goes from a controller that follows no references over a cluster without ReferenceGrants and one without
// a grant to one with a grant. Only then anything is begun, and it is within seconds.
func TestForeignRefused(t *testing.T) {
	server := apiserver.Shared(t)
	if err := server.InstallReferenceGrants(); err != nil { // so that there is one to uninstall
		t.Fatal(err)
	}
	if err := server.UninstallReferenceGrants(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	l, local := w.newForeignLife(deletions{at: done}), w.newLife(deletions{at: done})
	check(t, l.give(theNamespace, theHome, theClass, theService, theFrom, theTo, theRange, theClaim))
	w.startController()
	l.refused(reference.ReasonDisabled)
	w.stop()

	w.references = true
	w.startController()
	l.refused(reference.ReasonUnavailable)
	// What does not need grants does not wait for them.
	check(t, local.begin(done))
	check(t, local.filled())
	l.untouched("after another claim was filled")

	check(t, server.InstallReferenceGrants())
	l.refused(reference.ReasonNotGranted)
	l.let(stage{provision: true})
	check(t, l.give(theGrant))
	check(t, l.reach(running))
	check(t, l.until("the ChangedBlockRange names the claim with its namespace", func(s sight) string {
		if want := fmt.Sprintf("claim %q is being populated", l.namespace+"/"+claimName); s.cbr == nil || s.cbr.Status.Message != want {
			return "it says " + s.cbr.Status.Message
		}
		return ""
	}))
	pod := l.look().pod
	if got, want := pod.Annotations[v1alpha1.AnnotationChangedBlockRange], l.home+"/"+rangeName; got != want {
		t.Errorf("the pod is annotated with the ChangedBlockRange %q, want %q", got, want)
	}
	if got := flagsOf(pod)["namespace"]; got != l.home {
		t.Errorf("the pod asks for the namespace %q, want %q", got, l.home)
	}
	l.let(everything)
	check(t, l.filled())
	l.checkOrigin()
	check(t, l.until("the ChangedBlockRange counts the claim", func(s sight) string {
		if s.cbr == nil || s.cbr.Status.PopulatedClaims != 1 || !meta.IsStatusConditionTrue(s.cbr.Status.Conditions, v1alpha1.ConditionReady) {
			return "it does not"
		}
		return ""
	}))
	check(t, l.lose(theGrant))
	check(t, l.until("the ChangedBlockRange does not count a claim that it does not permit", func(s sight) string {
		if s.cbr == nil || s.cbr.Status.PopulatedClaims != 0 || s.claim == nil || s.claim.Status.Phase != corev1.ClaimBound {
			return "it does"
		}
		return ""
	}))
	check(t, l.end())
	check(t, local.end())
	w.checkNothingLeft()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused waits until the claim has heard, once, why it is not filled, and checks that nobody has touched anything for it.
func (l *life) refused(reason string) {
	l.Helper()
	var told []string
	err := wait.PollUntilContextTimeout(l.Context(), 50*time.Millisecond, deadline, true, func(ctx context.Context) (bool, error) {
		var events eventsv1.EventList
		if err := l.c.List(ctx, &events, client.InNamespace(l.namespace)); err != nil {
			return false, err
		}
		for _, e := range events.Items {
			if e.Regarding.Name == claimName && e.Reason == reason {
				told = append(told, fmt.Sprintf("%d × %s", series(&e), e.Note))
			}
		}
		return len(told) > 0, nil
	})
	if err != nil {
		l.Fatalf("the claim is not told of %s: %v\n%s", reason, err, l.describe())
	}
	if len(told) != 1 || !strings.HasPrefix(told[0], "1 × ") || !strings.Contains(told[0], l.home) {
		l.Fatalf("told of %s: %q, want one event that names %s", reason, told, l.home)
	}
	l.untouched(reason)
}

// untouched checks that nothing was begun for the claim and that the ChangedBlockRange does not feel it.
func (l *life) untouched(when string) {
	l.Helper()
	s := l.look()
	if left := checkNothingOfOurs(s); left != "" {
		l.Errorf("%s: %s", when, left)
	}
	switch {
	case s.cbr == nil:
		l.Errorf("%s: the ChangedBlockRange is gone", when)
	case len(s.cbr.Finalizers) > 0 || s.cbr.Status.PopulatedClaims != 0:
		l.Errorf("%s: the ChangedBlockRange has finalizers %v and status %+v", when, s.cbr.Finalizers, s.cbr.Status)
	case strings.Contains(s.cbr.Status.Message, l.namespace+"/"+claimName):
		l.Errorf("%s: the ChangedBlockRange talks of the claim: %s", when, s.cbr.Status.Message)
	}
}

func series(e *eventsv1.Event) int32 {
	if e.Series == nil {
		return 1
	}
	return e.Series.Count
}

// checkOrigin checks that the volume says where its list comes from.
func (l *life) checkOrigin() {
	l.Helper()
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: l.look().claim.Spec.VolumeName}}
	if err := l.c.Get(context.Background(), client.ObjectKeyFromObject(volume), volume); err != nil {
		l.Fatal(err)
	}
	if got, want := volume.Annotations[v1alpha1.GroupName+"/populated-from"], l.home+"/"+rangeName; got != want {
		l.Errorf("the volume was populated from %q, want %q", got, want)
	}
}
