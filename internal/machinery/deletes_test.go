package machinery

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// TestPopulatedIsToldOnce has the library's cleanup and the releaser delete the same pod, as a cache shows it that does not know yet
// what the kubelet wrote last, and that it was deleted.
func TestPopulatedIsToldOnce(t *testing.T) {
	pod := endedPod(t, corev1.PodRunning, outcome.Populated)
	pod.UID = "uid-pod"
	var sent int
	var refuse error
	c := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(pod).WithInterceptorFuncs(interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			sent++
			if refuse != nil {
				return refuse
			}
			return c.Delete(ctx, o, opts...)
		},
	}).Build()
	ctx, seen := context.Background(), &corev1.Pod{}
	if err := c.Get(ctx, client.ObjectKeyFromObject(pod), seen); err != nil {
		t.Fatal(err)
	}
	ended := seen.DeepCopy()
	ended.Status.Phase = corev1.PodSucceeded
	if err := c.Status().Update(ctx, ended); err != nil {
		t.Fatal(err)
	}
	told := &eventLog{}
	d := newDeletes(c, newEvents(told, nil), testclock.NewFakePassiveClock(noon))
	refuse = errors.New("boom")
	if err := d.populated(ctx, sampleTarget().claim, seen); !errors.Is(err, refuse) || len(told.notes) != 0 {
		t.Errorf("refused: %v, events %v", err, told.notes)
	}
	refuse, sent = nil, 0
	for range 2 {
		if err := d.populated(ctx, sampleTarget().claim, seen); err != nil {
			t.Fatal(err)
		}
	}
	if len(told.notes) != 1 || sent != 1 {
		t.Errorf("events %v and %d deletions, want one of each", told.notes, sent)
	}
}

func TestDeletesAreForgotten(t *testing.T) {
	now := testclock.NewFakePassiveClock(noon)
	d := newDeletes(nil, nil, now)
	if !d.begin("a") || d.begin("a") {
		t.Error("an object is deleted once")
	}
	d.takeBack("a")
	if !d.begin("a") {
		t.Error("what failed has to be done again")
	}
	now.SetTime(noon.Add(rememberDeletes))
	if !d.begin(types.UID("b")) || len(d.sent) != 1 {
		t.Errorf("%d are remembered, want the last one", len(d.sent))
	}
}
