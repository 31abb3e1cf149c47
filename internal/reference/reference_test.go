package reference

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// aClaim returns a claim of the namespace backup that refers to the ChangedBlockRange app/monday, changed by edit.
func aClaim(edit func(*corev1.TypedObjectReference)) *corev1.PersistentVolumeClaim {
	ref := &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "monday", Namespace: ptr.To("app")}
	if edit != nil {
		edit(ref)
	}
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "backup", Name: "list"},
		Spec:       corev1.PersistentVolumeClaimSpec{DataSourceRef: ref},
	}
}

// aGrant returns a ReferenceGrant in the namespace app that permits what aClaim asks for, changed by edit.
func aGrant(edit func(*gatewayv1beta1.ReferenceGrant)) *gatewayv1beta1.ReferenceGrant {
	grant := &gatewayv1beta1.ReferenceGrant{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "backups"},
		Spec: gatewayv1beta1.ReferenceGrantSpec{
			From: []gatewayv1beta1.ReferenceGrantFrom{{Kind: "PersistentVolumeClaim", Namespace: "backup"}},
			To:   []gatewayv1beta1.ReferenceGrantTo{{Group: v1alpha1.GroupName, Kind: v1alpha1.Kind}},
		},
	}
	if edit != nil {
		edit(grant)
	}
	return grant
}

func TestOf(t *testing.T) {
	for name, test := range map[string]struct {
		edit    func(*corev1.TypedObjectReference)
		want    string
		foreign bool
	}{
		"another namespace": {nil, "app/monday", true},
		"no namespace":      {func(r *corev1.TypedObjectReference) { r.Namespace = nil }, "backup/monday", false},
		"empty namespace":   {func(r *corev1.TypedObjectReference) { r.Namespace = ptr.To("") }, "backup/monday", false},
		"its own namespace": {func(r *corev1.TypedObjectReference) { r.Namespace = ptr.To("backup") }, "backup/monday", false},
		"no name":           {func(r *corev1.TypedObjectReference) { r.Name = "" }, "", false},
		"another kind":      {func(r *corev1.TypedObjectReference) { r.Kind = "VolumeSnapshot" }, "", false},
		"another group":     {func(r *corev1.TypedObjectReference) { r.APIGroup = ptr.To("x") }, "", false},
		"the core group":    {func(r *corev1.TypedObjectReference) { r.APIGroup = nil }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			claim, got := aClaim(test.edit), ""
			if source, ok := Of(claim); ok {
				got = source.String()
			}
			if got != test.want || Foreign(claim) != test.foreign {
				t.Errorf("refers to %q, foreign %v; want %q, %v", got, Foreign(claim), test.want, test.foreign)
			}
		})
	}
	if _, ok := Of(&corev1.PersistentVolumeClaim{}); ok {
		t.Error("a claim without a source refers to one")
	}
}

func TestPermits(t *testing.T) {
	type grant = gatewayv1beta1.ReferenceGrant
	name := func(n string) *gatewayv1.ObjectName { return ptr.To(gatewayv1.ObjectName(n)) }
	for title, test := range map[string]struct {
		edit func(*grant)
		want bool
	}{
		"all of the kind":       {nil, true},
		"this one":              {func(g *grant) { g.Spec.To[0].Name = name("monday") }, true},
		"an empty name":         {func(g *grant) { g.Spec.To[0].Name = name("") }, true},
		"another one":           {func(g *grant) { g.Spec.To[0].Name = name("tuesday") }, false},
		"another kind":          {func(g *grant) { g.Spec.To[0].Kind = "Secret" }, false},
		"another group":         {func(g *grant) { g.Spec.To[0].Group = "" }, false},
		"from elsewhere":        {func(g *grant) { g.Spec.From[0].Namespace = "stranger" }, false},
		"from another kind":     {func(g *grant) { g.Spec.From[0].Kind = "Pod" }, false},
		"from another group":    {func(g *grant) { g.Spec.From[0].Group = "apps" }, false},
		"in another namespace":  {func(g *grant) { g.Namespace = "backup" }, false},
		"the second of each":    {func(g *grant) { second(g) }, true},
		"split over two grants": {func(g *grant) { g.Spec.To = nil }, false},
	} {
		t.Run(title, func(t *testing.T) {
			if got := permits(aGrant(test.edit), "backup", types.NamespacedName{Namespace: "app", Name: "monday"}); got != test.want {
				t.Errorf("permits: %v, want %v", got, test.want)
			}
		})
	}
}

// second puts entries that do not matter before those that do.
func second(g *gatewayv1beta1.ReferenceGrant) {
	g.Spec.From = append([]gatewayv1beta1.ReferenceGrantFrom{{Group: "apps", Kind: "Deployment", Namespace: "backup"}}, g.Spec.From...)
	g.Spec.To = append([]gatewayv1beta1.ReferenceGrantTo{{Kind: "Secret"}}, g.Spec.To...)
}

// TestNobody: without a policy nothing but the claim's own namespace is permitted, and nobody is asked.
func TestNobody(t *testing.T) {
	var off *Policy
	if r := off.Refused(aClaim(nil)); r == nil || r.Reason != ReasonDisabled || !strings.Contains(r.Message, "crossNamespace.enabled") {
		t.Errorf("refusal %+v", r)
	}
	withdrawn, err := off.Withdrawn(t.Context(), aClaim(nil))
	if !withdrawn || err != nil {
		t.Errorf("withdrawn %v, %v", withdrawn, err)
	}
	own := aClaim(func(r *corev1.TypedObjectReference) { r.Namespace = nil })
	withdrawn, err = off.Withdrawn(t.Context(), own)
	if off.Refused(own) != nil || withdrawn || err != nil {
		t.Error("a claim of the same namespace is refused")
	}
	if off.Ready() != nil {
		t.Error("it is ready some day")
	}
}

func TestShown(t *testing.T) {
	object := types.NamespacedName{Namespace: "app", Name: "monday"}
	if diff := cmp.Diff([]string{"monday", "app/monday"}, []string{Shown("app", object), Shown("backup", object)}); diff != "" {
		t.Error(diff)
	}
}

// TestMessagesFit: a note of an event has at most 1,024 bytes.
func TestMessagesFit(t *testing.T) {
	claim := aClaim(func(r *corev1.TypedObjectReference) {
		r.Name, r.Namespace = strings.Repeat("n", 253), ptr.To(strings.Repeat("s", 63))
	})
	claim.Namespace = strings.Repeat("b", 63)
	source, _ := Of(claim)
	for _, r := range []*Refusal{(*Policy)(nil).Refused(claim), notGranted(claim, source), refuse(ReasonUnavailable, source, notInstalled)} {
		if len(r.Message) > 1024 {
			t.Errorf("%s: %d bytes: %s", r.Reason, len(r.Message), r.Message)
		}
	}
}
