package controller

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// TestStatusComesFirst fails the status write and looks at what must not have happened then.
func TestStatusComesFirst(t *testing.T) {
	boom := errors.New("boom")
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: v1alpha1.Resource}, "cbr", boom)
	for name, test := range map[string]struct{ refuse, want error }{
		"an error is returned":                   {boom, boom},
		"a conflict waits for the newer version": {conflict, nil},
	} {
		t.Run(name, func(t *testing.T) {
			refuse := test.refuse
			claim, pod := aClaim("a", isStarted), aPod("a", ended(t, late, threeBlocks()))
			claim.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "cbr"}
			builder := indexedClient{fake.NewClientBuilder().WithScheme(testScheme()).
				WithObjects(aRange(), &claim, &pod).WithStatusSubresource(&v1alpha1.ChangedBlockRange{}).
				WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
					if refuse != nil {
						return refuse
					}
					return c.SubResource(sub).Patch(ctx, o, p, opts...)
				}})}
			if err := addIndexes(t.Context(), builder); err != nil {
				t.Fatal(err)
			}
			c, events := builder.Build(), &tape{}
			r := newReconciler(c, events, Config{PopulatorNamespace: populatorNamespace, Now: func() time.Time { return noon }})
			look := func() error {
				_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "app", Name: "cbr"}})
				if err := c.Get(t.Context(), client.ObjectKeyFromObject(&pod), &pod); err != nil {
					t.Fatal(err)
				}
				return err
			}

			if err := look(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if len(events.events) != 0 {
				t.Errorf("events before the status: %v", events.events)
			}
			if pod.Annotations[v1alpha1.AnnotationResultRecorded] != "" {
				t.Error("the pod is released before its result is in the status")
			}
			var cbr v1alpha1.ChangedBlockRange
			if err := c.Get(t.Context(), client.ObjectKey{Namespace: "app", Name: "cbr"}, &cbr); err != nil {
				t.Fatal(err)
			}
			if !isHeld(&cbr) {
				t.Error("the finalizer must be on before the status says anything")
			}

			refuse = nil
			if err := look(); err != nil {
				t.Fatal(err)
			}
			if len(events.events) == 0 || pod.Annotations[v1alpha1.AnnotationResultRecorded] != "true" {
				t.Errorf("after the status: events %v, annotations %v", events.events, pod.Annotations)
			}
		})
	}
}
