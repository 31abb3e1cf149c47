// Package v1alpha1 is the API of cbt-populator: the kind ChangedBlockRange, its validation, the names of its conditions
// and reasons, and the names of labels, annotations and finalizers on the objects that belong to it.
//
// The group is shared with the Kubernetes SnapshotMetadataService, which lives in its version v1beta1.
//
// +kubebuilder:object:generate=true
// +groupName=cbt.storage.k8s.io
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group.
const GroupName = "cbt.storage.k8s.io"

// Kind and resource of a ChangedBlockRange, as a PersistentVolumeClaim's dataSourceRef and an RBAC rule name it.
const (
	Kind     = "ChangedBlockRange"
	Resource = "changedblockranges"
)

var (
	// GroupVersion is the group and version of this package.
	GroupVersion = schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}

	// SchemeBuilder collects what AddToScheme registers.
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)

	// AddToScheme registers this package's types.
	AddToScheme = SchemeBuilder.AddToScheme
)

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, &ChangedBlockRange{}, &ChangedBlockRangeList{})
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
