package machinery

import (
	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const sampleDriver = "sample-csi.cbt-populator.test"

func sampleService() *smsv1beta1.SnapshotMetadataService {
	return &smsv1beta1.SnapshotMetadataService{
		ObjectMeta: metav1.ObjectMeta{Name: sampleDriver, UID: "uid-service"},
		Spec: smsv1beta1.SnapshotMetadataServiceSpec{
			Audience: "sample-audience", Address: "metadata.example:50051", CACert: []byte("a certificate"),
		},
	}
}

func sampleSource() podSource {
	return podSource{
		cbr: &v1alpha1.ChangedBlockRange{
			ObjectMeta: metav1.ObjectMeta{Namespace: "backup", Name: "monday", UID: "uid-range", Generation: 1, Finalizers: []string{v1alpha1.FinalizerPopulating}},
			Spec: v1alpha1.ChangedBlockRangeSpec{
				FromVolumeSnapshotName: "vs-from", ToVolumeSnapshotName: "vs-to",
				Format: v1alpha1.FormatJSON, WhenDeltaUnavailable: v1alpha1.FallbackFail,
			},
			Status: v1alpha1.ChangedBlockRangeStatus{
				Driver: sampleDriver, FromSnapshotHandle: "handle-from", ToSnapshotHandle: "handle-to",
				FromRestoreSizeBytes: ptr.To[int64](10 << 20), ToRestoreSizeBytes: ptr.To[int64](20 << 20),
				Conditions: []metav1.Condition{{
					Type: v1alpha1.ConditionSnapshotsResolved, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonResolved, ObservedGeneration: 1,
				}},
			},
		},
		service: sampleService(),
	}
}

func sampleTarget() podClaim {
	return podClaim{
		claim: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "backup", Name: "list", UID: "uid-claim"},
			Spec: corev1.PersistentVolumeClaimSpec{
				DataSourceRef: &corev1.TypedObjectReference{APIGroup: ptr.To(v1alpha1.GroupName), Kind: v1alpha1.Kind, Name: "monday"},
			},
		},
		prime: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "cbt-populator", Name: "prime-uid-claim", UID: "uid-prime"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv"},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		volume:  &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}},
		attempt: 1,
		streams: 4,
	}
}

func sampleConfig() *Config {
	cfg := &Config{PopulatorNamespace: "cbt-populator", Pod: PodConfig{Image: "registry.example/populator:v1"}}
	cfg.Default()
	return cfg
}
