package manifests

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	nonRoot      = "system:openshift:scc:nonroot-v2"
	blockVolumes = "cbt-populator-block-volumes"
)

// constraints are the fields of SecurityContextConstraints, security.openshift.io/v1, that ours have.
type constraints struct {
	AllowPrivilegedContainer bool
	AllowPrivilegeEscalation *bool
	AllowHostDirVolumePlugin bool
	AllowHostIPC             bool
	AllowHostNetwork         bool
	AllowHostPID             bool
	AllowHostPorts           bool
	ReadOnlyRootFilesystem   bool
	AllowedCapabilities      []corev1.Capability
	DefaultAddCapabilities   []corev1.Capability
	RequiredDropCapabilities []corev1.Capability
	RunAsUser                struct {
		Type string
		UID  *int64
	}
	SELinuxContext, FSGroup, SupplementalGroups struct{ Type string }
	SeccompProfiles                             []string
	Volumes                                     []string
}

// bound returns the service accounts that may use what a role stands for, by the bindings of a rendering.
func bound(t *testing.T, rendered map[string]*unstructured.Unstructured, role string) []string {
	t.Helper()
	var accounts []string
	for key, o := range rendered {
		if o.GetKind() != "RoleBinding" && o.GetKind() != "ClusterRoleBinding" {
			continue
		}
		var binding rbacv1.RoleBinding
		typed(t, o, &binding)
		if binding.RoleRef.Name != role {
			continue
		}
		if o.GetKind() != "RoleBinding" {
			t.Errorf("%s allows it in all namespaces", key)
		}
		for _, subject := range binding.Subjects {
			if subject.Kind != rbacv1.ServiceAccountKind || subject.Namespace != o.GetNamespace() {
				t.Errorf("%s binds %v", key, subject)
			}
			accounts = append(accounts, subject.Name)
		}
	}
	slices.Sort(accounts)
	return accounts
}

// TestOpenShift: exactly the accounts of our pods may use the constraints that these need.
func TestOpenShift(t *testing.T) {
	worker := populatorPods(t)["pod-block"].Spec.ServiceAccountName
	for name, test := range map[string]struct {
		rendered       map[string]*unstructured.Unstructured
		nonRoot, block []string
	}{
		"chart, elsewhere":          {template(t), nil, nil},
		"chart":                     {template(t, "--set=openshift.enabled=true"), []string{"cbt-populator-controller", "cbt-populator-let-go", worker}, nil},
		"chart, Block volumes":      {template(t, "--set=openshift.enabled=true", "--set=openshift.blockVolumes=true"), []string{"cbt-populator-controller", "cbt-populator-let-go", worker}, []string{worker}},
		"config/default":            {kustomize(t), nil, nil},
		"components":                {kustomize(t, "components/openshift"), []string{"cbt-populator-controller", worker}, nil},
		"components, Block volumes": {kustomize(t, "components/openshift", "components/openshift-block-volumes"), []string{"cbt-populator-controller", worker}, []string{worker}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.nonRoot, bound(t, test.rendered, nonRoot)); diff != "" {
				t.Errorf("accounts that may use nonroot-v2 (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.block, bound(t, test.rendered, blockVolumes)); diff != "" {
				t.Errorf("accounts that may use %s (-want +got):\n%s", blockVolumes, diff)
			}
			for key, o := range test.rendered {
				if o.GetKind() == "SecurityContextConstraints" && test.block == nil {
					t.Errorf("%s is there", key)
				}
				if o.GetKind() == "Deployment" || o.GetKind() == "Job" {
					account := podSpec(t, o)["serviceAccountName"].(string)
					if test.nonRoot != nil && !slices.Contains(test.nonRoot, account) {
						t.Errorf("%s runs as %s, which may not use nonroot-v2", key, account)
					}
				}
			}
		})
	}
	// The account of the Job exists while the Job does, and so does what it may use.
	for key, o := range template(t, "--set=openshift.enabled=true") {
		if strings.Contains(key, "let-go") && o.GetAnnotations()["helm.sh/hook"] != "post-delete" {
			t.Errorf("%s is no hook: %v", key, o.GetAnnotations())
		}
	}
}

// TestOpenShiftBlockVolumes compares our constraints with the pod that they are for: they allow what it has and nothing more.
func TestOpenShiftBlockVolumes(t *testing.T) {
	rendered := kustomize(t, "components/openshift-block-volumes")
	var role rbacv1.Role
	typed(t, rendered["Role/cbt-populator/"+blockVolumes], &role)
	want := []rbacv1.PolicyRule{{APIGroups: []string{"security.openshift.io"}, Resources: []string{"securitycontextconstraints"}, ResourceNames: []string{blockVolumes}, Verbs: []string{"use"}}}
	if diff := cmp.Diff(want, role.Rules); diff != "" {
		t.Errorf("the role's rules (-want +got):\n%s", diff)
	}

	o := rendered["SecurityContextConstraints//"+blockVolumes].DeepCopy()
	if o.GetAPIVersion() != "security.openshift.io/v1" {
		t.Errorf("they are of %s", o.GetAPIVersion())
	}
	for _, key := range []string{"apiVersion", "kind", "metadata"} {
		delete(o.Object, key)
	}
	var got constraints
	typed(t, o, &got)

	pod := populatorPods(t)["pod-block"]
	user, container := *pod.Spec.SecurityContext.RunAsUser, pod.Spec.Containers[0].SecurityContext
	kinds := map[string]bool{}
	for _, volume := range pod.Spec.Volumes {
		kinds["configMap"] = kinds["configMap"] || volume.ConfigMap != nil
		kinds["persistentVolumeClaim"] = kinds["persistentVolumeClaim"] || volume.PersistentVolumeClaim != nil
		kinds["projected"] = kinds["projected"] || volume.Projected != nil
	}
	allowed := constraints{
		AllowPrivilegeEscalation: container.AllowPrivilegeEscalation,
		ReadOnlyRootFilesystem:   *container.ReadOnlyRootFilesystem,
		AllowedCapabilities:      []corev1.Capability{},
		DefaultAddCapabilities:   []corev1.Capability{},
		RequiredDropCapabilities: container.Capabilities.Drop,
		SeccompProfiles:          []string{map[corev1.SeccompProfileType]string{corev1.SeccompProfileTypeRuntimeDefault: "runtime/default"}[pod.Spec.SecurityContext.SeccompProfile.Type]},
		Volumes:                  slices.Sorted(maps.Keys(kinds)),
	}
	allowed.RunAsUser.Type, allowed.RunAsUser.UID = "MustRunAs", &user
	allowed.SELinuxContext.Type, allowed.FSGroup.Type, allowed.SupplementalGroups.Type = "MustRunAs", "RunAsAny", "RunAsAny"
	if diff := cmp.Diff(allowed, got); diff != "" {
		t.Errorf("the constraints (-the pod's +ours):\n%s", diff)
	}
	if user != 0 || len(container.Capabilities.Add) > 0 || pod.Spec.SecurityContext.FSGroup != nil || len(pod.Spec.Volumes) != len(kinds) {
		t.Error("the pod asks for something that this test does not know")
	}
}
