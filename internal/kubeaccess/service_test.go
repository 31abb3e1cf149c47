package kubeaccess

import (
	"context"
	"errors"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// TestAccount: whose token is made if nobody names an account.
func TestAccount(t *testing.T) {
	t.Parallel()
	kind := schema.GroupKind{Group: authenticationv1.GroupName, Kind: "SelfSubjectReview"}
	for name, test := range map[string]struct {
		user string
		err  error
		want string
	}{
		"a service account":                  {"system:serviceaccount:backup:tool", nil, "backup/tool"},
		"a person":                           {"jane", nil, "app/default"},
		"Kubernetes that does not tell":      {"", &meta.NoKindMatchError{GroupKind: kind, SearchedVersions: []string{"v1"}}, "app/default"},
		"Kubernetes that does not know that": {"", apierrors.NewNotFound(schema.GroupResource{Group: kind.Group, Resource: "selfsubjectreviews"}, ""), "app/default"},
		"an answer that did not come":        {"", errors.New("connection refused"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scheme, err := newScheme()
			if err != nil {
				t.Fatal(err)
			}
			cluster := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
				Create: func(_ context.Context, _ client.WithWatch, o client.Object, _ ...client.CreateOption) error {
					o.(*authenticationv1.SelfSubjectReview).Status.UserInfo.Username = test.user
					return test.err
				},
			}).Build()
			got, err := (&Access{WithWatch: cluster}).account(t.Context(), "app", "")
			if test.want == "" {
				if !errors.Is(err, test.err) {
					t.Errorf("%v, want %v", err, test.err)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Errorf("%s, %v, want %s", got, err, test.want)
			}
		})
	}
}
