package machinery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func quota(hard, used string) *corev1.ResourceQuota {
	list := func(n string) corev1.ResourceList {
		if n == "" {
			return nil
		}
		return corev1.ResourceList{corev1.ResourcePods: resource.MustParse(n)}
	}
	return &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "small"},
		Spec:       corev1.ResourceQuotaSpec{Hard: list(hard)},
		Status:     corev1.ResourceQuotaStatus{Hard: list(hard), Used: list(used)},
	}
}

func TestPermits(t *testing.T) {
	namespace := func(level string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"pod-security.kubernetes.io/enforce": level}}}
	}
	limits := func(kind corev1.LimitType) *corev1.LimitRange {
		return &corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: kind}}}}
	}
	for name, test := range map[string]struct {
		before, after client.Object
		want          bool
	}{
		"quota is new":             {nil, quota("1", "0"), true},
		"quota is gone":            {quota("1", "1"), nil, true},
		"quota raised":             {quota("1", "1"), quota("2", "1"), true},
		"quota lowered":            {quota("2", "1"), quota("1", "1"), false},
		"bound lifted":             {quota("1", "1"), quota("", "1"), true},
		"less in use":              {quota("1", "1"), quota("1", "0"), true},
		"more in use":              {quota("2", "1"), quota("2", "2"), false},
		"limit range changed":      {limits(corev1.LimitTypePod), limits(corev1.LimitTypeContainer), true},
		"limit range as before":    {limits(corev1.LimitTypePod), limits(corev1.LimitTypePod), false},
		"pod security relaxed":     {namespace("restricted"), namespace("baseline"), true},
		"namespace without a word": {namespace("restricted"), namespace("restricted"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := permits(test.before, test.after); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestRefusalsWaitAndWake(t *testing.T) {
	clock := testclock.NewFakePassiveClock(noon)
	r, claim := newRefusals(clock, 1), sampleTarget().claim
	if wait := r.add(claim, 30*time.Second); wait != 30*time.Second {
		t.Errorf("no change was seen: wait %v, want 30s", wait)
	}
	if names := r.take(); len(names) != 1 || names[0].claim != nameOf(claim) || len(r.take()) != 0 {
		t.Errorf("took %v, want the claim, once", names)
	}
	// The API server may not have seen the change that woke us.
	for _, test := range []struct{ since, want time.Duration }{
		{0, time.Second}, {2 * time.Second, 2 * time.Second}, {time.Hour, 30 * time.Second},
	} {
		clock.SetTime(noon.Add(test.since))
		if wait := r.add(claim, 30*time.Second); wait != test.want {
			t.Errorf("%v after a change: wait %v, want %v", test.since, wait, test.want)
		}
	}
	r.remove(claim.UID)
	if names := r.take(); len(names) != 0 {
		t.Errorf("took %v after it was removed", names)
	}
}

// TestRefusedEndpointIsTold, whether there is none yet or it is to be changed, and nothing is begun without it.
func TestRefusedEndpointIsTold(t *testing.T) {
	outdated := endpointConfigMap("cbt-populator", sampleService())
	outdated.Data[endpointAddress] = "where it was before"
	for name, test := range map[string]struct {
		code   int32
		reason metav1.StatusReason
		before []client.Object
	}{
		"created": {400, metav1.StatusReasonUnknown, nil},
		"created, with the code of one that exists": {409, metav1.StatusReasonAlreadyExists, nil},
		"changed": {400, metav1.StatusReasonUnknown, []client.Object{outdated}},
	} {
		t.Run(name, func(t *testing.T) {
			denied := webhookAnswer(test.code, test.reason, "no ConfigMaps today")
			b := newBench(t, nil, interceptor.Funcs{
				Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
					if _, ok := o.(*corev1.ConfigMap); ok {
						return denied
					}
					return c.Create(ctx, o, opts...)
				},
				Update: func(context.Context, client.WithWatch, client.Object, ...client.UpdateOption) error { return denied },
			}, test.before...)
			for range 3 {
				if err := b.populateOnce(); !errors.Is(err, errWaiting) {
					t.Fatalf("populate: %v, want waiting", err)
				}
			}
			if len(b.events.notes) != 1 || !strings.HasPrefix(b.events.notes[0], "PopulatorRejected: ") || !strings.Contains(b.events.notes[0], "no ConfigMaps today") {
				t.Errorf("events %v, want one with the webhook's words", b.events.notes)
			}
			if pod := b.currentPod(t); pod != nil || len(b.slots.held) != 0 {
				t.Errorf("pod %v, slots %v; want none of either", pod, b.slots.held)
			}
			if want := slices.Repeat([]time.Duration{defaultRejectedWait}, 3); !slices.Equal(b.waits, want) {
				t.Errorf("announced waits %v, want %v", b.waits, want)
			}
			if woken := b.refused.take(); len(woken) != 1 {
				t.Errorf("woken by a change: %v, want the claim", woken)
			}
		})
	}
}

// refuse takes a claim to where the API server refuses its pod, and waits for the event. No retry by time follows within
// the test.
func (w *world) refuse(claim *corev1.PersistentVolumeClaim, reason, words string) {
	w.Helper()
	w.cfg.rejectedWait = time.Hour
	w.startController()
	w.addRange("range")
	w.create(claim)
	w.eventually("an event tells of the refusal", func() bool {
		for _, e := range w.eventsOf(claim.Name) {
			if e.Reason == reason && strings.Contains(e.Note, words) {
				return true
			}
		}
		return false
	})
}

// setQuota writes bounds into spec and status, as the quota controller would.
func (w *world) setQuota(q *corev1.ResourceQuota, hard corev1.ResourceList) {
	w.Helper()
	q.Spec.Hard = hard
	if err := w.c.Update(w.ctx, q); err != nil {
		w.Fatal(err)
	}
	q.Status.Hard, q.Status.Used = hard, corev1.ResourceList{}
	for name := range hard {
		q.Status.Used[name] = resource.MustParse("0")
	}
	if err := w.c.Status().Update(w.ctx, q); err != nil {
		w.Fatal(err)
	}
}

func TestRaisedQuotaWakes(t *testing.T) {
	for name, reason := range map[corev1.ResourceName]string{
		corev1.ResourcePods: "PopulatorRejected", corev1.ResourceConfigMaps: "PopulatorRejected",
		corev1.ResourcePersistentVolumeClaims: "PrimeClaimRejected",
	} {
		t.Run(string(name), func(t *testing.T) {
			w := newWorld(t, fill(t))
			q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: w.cfg.PopulatorNamespace, Name: "small"}}
			w.create(q)
			w.setQuota(q, corev1.ResourceList{name: resource.MustParse("0")})
			claim := w.claim("claim", "range")
			w.refuse(claim, reason, "small")
			w.setQuota(q, corev1.ResourceList{name: resource.MustParse("5")})
			w.waitFilled(claim)
		})
	}
}

func TestRelaxedPodSecurityWakes(t *testing.T) {
	const enforce = "pod-security.kubernetes.io/enforce"
	w := newWorld(t, fill(t))
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.cfg.PopulatorNamespace}}
	label := func(level string) {
		w.get(namespace)
		namespace.Labels[enforce] = level
		if err := w.c.Update(w.ctx, namespace); err != nil {
			t.Fatal(err)
		}
	}
	label("restricted")
	claim := w.claim("claim", "range")
	claim.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
	w.refuse(claim, "PopulatorRejected", "runAsNonRoot")
	label("baseline")
	w.waitFilled(claim)
}
