package machinery

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	smsv1beta1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// Paths inside the populator pod.
const (
	targetPath   = "/target"
	devicePath   = "/dev/target"
	endpointPath = "/etc/cbt/endpoint"
	tokenDir     = "/var/run/secrets/cbt" //nolint:gosec // a folder
	tokenFile    = "token"
)

// progressPort names the port on which the pod says how far it is; a NetworkPolicy of config/manager opens it.
const progressPort = "progress"

const (
	// nonRootID is the user and group of the populator; distroless images call it nonroot.
	nonRootID int64 = 65532
	// tokenSeconds is the life of the projected token; the kubelet renews it after 80 % of that.
	tokenSeconds int64 = 3600
	// graceSeconds is the time from SIGTERM to SIGKILL: enough to remove the temporary file and leave a result.
	graceSeconds int64 = 10

	// annotationSelectedNode is the scheduler's choice for a claim whose StorageClass waits for its first consumer.
	annotationSelectedNode = "volume.kubernetes.io/selected-node"
)

// podSource is what a claim is filled from.
type podSource struct {
	cbr     *v1alpha1.ChangedBlockRange
	service *smsv1beta1.SnapshotMetadataService
}

// podClaim is what is filled, which attempt this is, from 1, and what the pod is allowed.
type podClaim struct {
	claim   *corev1.PersistentVolumeClaim
	prime   *corev1.PersistentVolumeClaim
	attempt int
	// streams is the number of streams that the pod may read at once.
	streams int
	// volume is the prime claim's.
	volume *corev1.PersistentVolume
}

// block reports whether the claim asks for a raw device.
func (c podClaim) block() bool {
	return c.claim.Spec.VolumeMode != nil && *c.claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

// populatorPod builds the pod that fills target.prime with the list of source. It passes the `restricted` Pod Security
// Standard, except for a Block claim without cfg.Pod.BlockNonRoot, which passes `baseline`: device nodes belong to root.
//
// The pod runs once (restartPolicy Never): a container that restarts in place would lose its logs and its termination
// message, which the controller needs.
func populatorPod(cfg *Config, source podSource, target podClaim) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: podMeta(cfg, source, target),
		Spec: corev1.PodSpec{
			ServiceAccountName:            cfg.Pod.ServiceAccount,
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: ptr.To(graceSeconds),
			SecurityContext:               podSecurity(cfg, target),
			Affinity:                      nodeAffinity(target.prime.Annotations[annotationNode], target.volume),
			NodeSelector:                  nodeSelector(cfg),
			PriorityClassName:             cfg.Pod.PriorityClassName,
			Containers:                    []corev1.Container{populateContainer(cfg, source, target)},
			Volumes:                       podVolumes(source, target),
		},
	}
	for _, t := range cfg.Pod.Tolerations {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, *t.DeepCopy())
	}
	for _, name := range cfg.Pod.ImagePullSecrets {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return pod
}

func podMeta(cfg *Config, source podSource, target podClaim) metav1.ObjectMeta {
	meta := metav1.ObjectMeta{
		Name:        podName(target.claim.UID),
		Namespace:   cfg.PopulatorNamespace,
		Labels:      map[string]string{},
		Annotations: map[string]string{},
	}
	// The administrator's come first, so that they cannot replace ours.
	maps.Copy(meta.Labels, cfg.Pod.Labels)
	maps.Copy(meta.Labels, ownLabels(target.claim.UID))
	meta.Labels[v1alpha1.LabelChangedBlockRangeUID] = string(source.cbr.UID)

	maps.Copy(meta.Annotations, cfg.Pod.Annotations)
	maps.Copy(meta.Annotations, map[string]string{
		v1alpha1.AnnotationClaimNamespace:    target.claim.Namespace,
		v1alpha1.AnnotationClaimName:         target.claim.Name,
		v1alpha1.AnnotationChangedBlockRange: source.cbr.Namespace + "/" + source.cbr.Name,
		annotationAttempt:                    strconv.Itoa(target.attempt),
		annotationPrimeUID:                   string(target.prime.UID),
		v1alpha1.AnnotationDriver:            source.cbr.Status.Driver,
		v1alpha1.AnnotationSource:            source.cbr.ListFingerprint(),
		annotationSetting:                    settingDigest(cfg, source),
	})
	return meta
}

// settingDigest covers what a failure may be due to beside the source.
func settingDigest(cfg *Config, source podSource) string {
	return digest(struct {
		Service smsv1beta1.SnapshotMetadataServiceSpec
		Pod     PodConfig
	}{source.service.Spec, cfg.Pod})
}

func podSecurity(cfg *Config, target podClaim) *corev1.PodSecurityContext {
	sc := &corev1.PodSecurityContext{
		RunAsNonRoot:   ptr.To(true),
		RunAsUser:      ptr.To(nonRootID),
		RunAsGroup:     ptr.To(nonRootID),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if !target.block() {
		// A fresh filesystem belongs to root; the group makes it writable, and is set only once.
		sc.FSGroup = ptr.To(nonRootID)
		sc.FSGroupChangePolicy = ptr.To(corev1.FSGroupChangeOnRootMismatch)
		return sc
	}
	if !cfg.Pod.BlockNonRoot {
		sc.RunAsNonRoot = ptr.To(false)
		sc.RunAsUser = ptr.To(int64(0))
		sc.RunAsGroup = ptr.To(int64(0))
	}
	return sc
}

// nodeSelector keeps the pod on Linux, for which the image is, unless the administrator says otherwise.
func nodeSelector(cfg *Config) map[string]string {
	labels := map[string]string{corev1.LabelOSStable: string(corev1.Linux)}
	maps.Copy(labels, cfg.Pod.NodeSelector)
	return labels
}

// nodeAffinity takes the pod to node through the scheduler, which, unlike spec.nodeName, still checks resources, taints
// and volume limits. No node, no affinity.
//
// If the volume says which nodes reach it, the scheduler sees to that anyway, and any of them will do: node may be full, or gone
// since the volume was made. Of a volume that does not say, nobody knows whether another node reaches it.
func nodeAffinity(node string, volume *corev1.PersistentVolume) *corev1.Affinity {
	if node == "" {
		return nil
	}
	term := corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{
		Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
	}}}
	if volume.Spec.NodeAffinity != nil && volume.Spec.NodeAffinity.Required != nil {
		return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 100, Preference: term}},
		}}
	}
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term}},
	}}
}

func populateContainer(cfg *Config, source podSource, target podClaim) corev1.Container {
	c := corev1.Container{
		Name:            v1alpha1.ContainerPopulate,
		Image:           cfg.Pod.Image,
		ImagePullPolicy: cfg.Pod.ImagePullPolicy,
		Args:            populatorArgs(cfg, source, target),
		Resources:       *cfg.Pod.Resources.DeepCopy(),
		VolumeMounts: []corev1.VolumeMount{
			// A folder, not a subPath: the kubelet updates it in place when the service's address or CA changes.
			{Name: "endpoint", MountPath: endpointPath, ReadOnly: true},
			{Name: "token", MountPath: tokenDir, ReadOnly: true},
		},
		Ports:                  []corev1.ContainerPort{{Name: progressPort, ContainerPort: outcome.ProgressPort, Protocol: corev1.ProtocolTCP}},
		TerminationMessagePath: corev1.TerminationMessagePathDefault,
		// A crash leaves no message; the last log lines say more about it than nothing.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false),
			ReadOnlyRootFilesystem:   ptr.To(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	if target.block() {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: "target", DevicePath: devicePath}}
	} else {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "target", MountPath: targetPath})
	}
	return c
}

// streamsFlag is looked for in the pods of other processes.
const streamsFlag = "streams"

// populatorArgs returns the populator's command line. Every flag is one argument, so that a value that starts with a
// dash stays a value.
func populatorArgs(cfg *Config, source podSource, target podClaim) []string {
	spec, status := &source.cbr.Spec, &source.cbr.Status
	output := targetPath
	if target.block() {
		output = devicePath
	}
	flags := []struct{ name, value string }{
		{"namespace", source.cbr.Namespace},
		{"snapshot", spec.ToVolumeSnapshotName},
		{"snapshot-handle", status.ToSnapshotHandle},
		{"base-snapshot", spec.FromVolumeSnapshotName},
		{"base-snapshot-handle", status.FromSnapshotHandle},
		{"driver", status.Driver},
		{"endpoint-dir", endpointPath},
		{"token-file", tokenDir + "/" + tokenFile},
		{"format", string(spec.Format)},
		{"output", output},
		{"max-size-bytes", positive(spec.MaxSizeInBytes)},
		{"granularity-bytes", positive(spec.GranularityBytes)},
		{"merge-extents", strconv.FormatBool(spec.Merge())},
		{"when-delta-unavailable", string(spec.WhenDeltaUnavailable)},
		{"base-restore-size-bytes", positive(status.FromRestoreSizeBytes)},
		{"restore-size-bytes", positive(status.ToRestoreSizeBytes)},
		{"progress-address", fmt.Sprintf(":%d", outcome.ProgressPort)},
		{streamsFlag, strconv.Itoa(target.streams)},
		{"max-results", positive(ptr.To(int64(cfg.Pod.MaxResults)))},
		{"max-attempts", positive(ptr.To(int64(cfg.Pod.MaxAttempts)))},
	}
	var args []string
	for _, f := range flags {
		if f.value != "" {
			args = append(args, fmt.Sprintf("--%s=%s", f.name, literal(f.value)))
		}
	}
	return args
}

// positive formats n, or returns "" to leave the flag out.
func positive(n *int64) string {
	if n == nil || *n <= 0 {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

// literal keeps the kubelet from expanding $(NAME) in a value that a user chose.
func literal(value string) string {
	return strings.ReplaceAll(value, "$", "$$")
}

func podVolumes(source podSource, target podClaim) []corev1.Volume {
	return []corev1.Volume{
		{
			Name: "target",
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
				ClaimName: primeName(target.claim.UID),
			}},
		},
		{
			Name: "endpoint",
			VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: endpointName(source.service.Name)},
			}},
		},
		{
			Name: "token",
			VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
						Audience:          source.service.Spec.Audience,
						ExpirationSeconds: ptr.To(tokenSeconds),
						Path:              tokenFile,
					},
				}},
			}},
		},
	}
}
