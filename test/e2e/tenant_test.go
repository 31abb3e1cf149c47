//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// tenant makes a client for a user who may edit the test's namespace, and nothing else.
func (w *world) tenant() client.Client {
	w.Helper()
	user := "tenant-of-" + w.ns
	w.create(&rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "tenant"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
	})
	cfg, err := ctrl.GetConfig()
	if err != nil {
		w.Fatal(err)
	}
	cfg.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
	cfg.QPS, cfg.Burst = 500, 500
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		w.Fatal(err)
	}
	w.eventually("the tenant may edit the namespace", patience, func(ctx context.Context) (bool, string) {
		err := c.List(ctx, &v1alpha1.ChangedBlockRangeList{}, client.InNamespace(w.ns))
		return err == nil, fmt.Sprint(err)
	})
	return c
}

// TestTenant has a user with the role edit in one namespace do what that is for, and try what it is not.
func TestTenant(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	other.guide("snap-1", "snap-2")
	// Who may create claims may say that the scheduler has chosen a node: a populator that waits for it would never run, and keep its slot.
	forged := listClaim("list", "delta")
	forged.Annotations = map[string]string{"volume.kubernetes.io/selected-node": "nowhere"}
	other.create(ranges("delta", "snap-1", "snap-2"), forged)
	other.awaitBound("list")
	tenant := w.tenant()
	ctx := t.Context()

	// What belongs to others.
	theirs := &v1alpha1.ChangedBlockRange{ObjectMeta: metav1.ObjectMeta{Namespace: other.ns, Name: "delta"}}
	ours := ranges("delta", "snap-1", "snap-2")
	ours.SetNamespace(w.ns)
	intruder := ranges("intruder", "snap-1", "snap-2")
	intruder.SetNamespace(other.ns)
	prime := listClaim("prime", "delta")
	prime.SetNamespace(populatorNS)
	if err := tenant.Create(ctx, ours); err != nil {
		t.Fatalf("a tenant cannot create a ChangedBlockRange: %v", err)
	}
	status := ours.DeepCopy()
	status.Status.Driver = "of-my-choice"
	for what, err := range map[string]error{
		"read a ChangedBlockRange of another namespace": tenant.Get(ctx, client.ObjectKeyFromObject(theirs), &v1alpha1.ChangedBlockRange{}),
		"delete one there":                               tenant.Delete(ctx, theirs),
		"create one there":                               tenant.Create(ctx, intruder),
		"write a status":                                 tenant.Status().Update(ctx, status),
		"create a claim in the populator namespace":      tenant.Create(ctx, prime),
		"list pods there":                                tenant.List(ctx, &corev1.PodList{}, client.InNamespace(populatorNS)),
		"read the configuration there":                   tenant.List(ctx, &corev1.ConfigMapList{}, client.InNamespace(populatorNS)),
		"read a claim, and so the list, of another's":    tenant.Get(ctx, client.ObjectKey{Namespace: other.ns, Name: "list"}, &corev1.PersistentVolumeClaim{}),
		"get a token of the populators' service account": tenant.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: populatorNS, Name: "cbt-populator-worker"}}, &authenticationv1.TokenRequest{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a tenant may %s: %v", what, err)
		}
	}
	// The snapshots of the other namespace are not those of this one, whatever they are called.
	w.eventually("the ChangedBlockRange finds no snapshots", patience, func(context.Context) (bool, string) {
		var got v1alpha1.ChangedBlockRange
		if err := w.get("delta", &got); err != nil {
			return false, err.Error()
		}
		for _, c := range got.Status.Conditions {
			if c.Reason == "SnapshotNotFound" {
				return true, ""
			}
		}
		return false, fmt.Sprint(got.Status.Conditions)
	})
}

// TestTenantMakesThousands has a tenant create ChangedBlockRanges as fast as the API server takes them, while another wants a list.
func TestTenantMakesThousands(t *testing.T) {
	t.Parallel()
	thousands := size.Of(5000, 500)
	w, other := newWorld(t), newWorld(t)
	w.removal = 5 * time.Minute // so many objects, and an event about each
	other.guide("snap-1", "snap-2")
	tenant := w.tenant()
	before := controllerRestarts(t)

	var writers errgroup.Group
	writers.SetLimit(16)
	for i := range thousands {
		writers.Go(func() error {
			flood := ranges(fmt.Sprintf("range-%d", i), fmt.Sprintf("snap-%d", i), fmt.Sprintf("snap-%d", i+1))
			flood.SetNamespace(w.ns)
			return tenant.Create(t.Context(), flood)
		})
	}
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	other.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"))
	other.awaitBound("list")
	w.eventually("each ChangedBlockRange says what it waits for", 2*patience, func(ctx context.Context) (bool, string) {
		var all v1alpha1.ChangedBlockRangeList
		if err := tenant.List(ctx, &all, client.InNamespace(w.ns)); err != nil {
			return false, err.Error()
		}
		said := 0
		for i := range all.Items {
			if len(all.Items[i].Status.Conditions) > 0 {
				said++
			}
		}
		return said == thousands, fmt.Sprintf("%d of %d do", said, len(all.Items))
	})
	if after := controllerRestarts(t); !maps.Equal(before, after) {
		t.Errorf("restarts of the controller's containers before and after: %v, %v", before, after)
	}
}

// controllerRestarts returns how often each pod of the controller was restarted.
func controllerRestarts(t *testing.T) map[string]int32 {
	t.Helper()
	var pods corev1.PodList
	if err := api.List(t.Context(), &pods, client.InNamespace(populatorNS), client.MatchingLabels{"app.kubernetes.io/component": "controller"}); err != nil {
		t.Fatal(err)
	}
	restarts := map[string]int32{}
	for i := range pods.Items {
		for _, c := range pods.Items[i].Status.ContainerStatuses {
			restarts[pods.Items[i].Name] += c.RestartCount
		}
	}
	if len(restarts) == 0 {
		t.Fatal("the controller has no pods")
	}
	return restarts
}
