package machinery

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
	"github.com/cbt-populator/cbt-populator/internal/tracing"
)

// Config says how claims are filled. The zero value of a field that is not required stands for its default, which Default
// fills in. Its values are not checked here.
type Config struct {
	// PopulatorNamespace is the namespace of the prime claims, pods and endpoint ConfigMaps. Required. A claim in it is
	// never filled.
	PopulatorNamespace string
	// Shards is the number of library instances. Each has one worker and a client of 5 requests/s. Default 8.
	Shards int
	// MaxConcurrent bounds the populator pods that are not finished, in all. Default 20.
	MaxConcurrent int
	// MaxConcurrentPerDriver bounds them per CSI driver. Default MaxConcurrent.
	MaxConcurrentPerDriver int

	// StreamsPerDriver bounds the streams that all pods for one CSI driver may read at once. A pod gets what the others
	// leave of it, but no more than Pod.Streams, and always one. Default 12.
	StreamsPerDriver int

	// RetryBase and RetryMax bound the wait between attempts after a failure that may pass: RetryBase doubles with each
	// attempt up to RetryMax. Defaults 10 s and 5 min.
	RetryBase, RetryMax time.Duration
	// RecheckAfter is the wait before another attempt after a terminal failure whose cause lies where no watch reaches:
	// a permission, or the driver's own state. Default 10 min.
	RecheckAfter time.Duration
	// FailedPodRetention is how long a failed pod that is not replaced before is kept for its logs. Default 1 h; 0 keeps
	// it only until its result is recorded.
	FailedPodRetention *time.Duration
	// PrimeLabels and PrimeAnnotations are added to prime claims; they cannot replace the ones that the controller sets.
	PrimeLabels, PrimeAnnotations map[string]string

	// Metrics is where the library's metrics are registered. Default controller-runtime's registry, which the manager serves.
	Metrics prometheus.Registerer

	// rejectedWait is the wait before another attempt after the API server refused a pod or an endpoint ConfigMap, should no
	// watch wake the claim before.
	rejectedWait time.Duration

	// References decides which claims may be filled from ChangedBlockRanges of other namespaces; nil: none. It has to be
	// added to the manager by whoever made it.
	References *reference.Policy

	// Tracer is told about claims that were filled; nil: nobody is.
	Tracer *tracing.Tracer

	// Pod is what cluster administrators may choose about populator pods.
	Pod PodConfig
}

// PodConfig is what cluster administrators may choose about populator pods.
type PodConfig struct {
	// Image is the populator's image. Required.
	Image string
	// ImagePullPolicy is the kubelet's; default IfNotPresent.
	ImagePullPolicy corev1.PullPolicy
	// ImagePullSecrets are names of secrets in the populator namespace.
	ImagePullSecrets []string
	// ServiceAccount is the pod's service account in the populator namespace; its token, with the metadata service's
	// audience, is the pod's only credential. Default cbt-populator-worker.
	ServiceAccount string
	// Resources of the container. Default: requests of 50m CPU and 64Mi memory, limit of 256Mi memory.
	Resources *corev1.ResourceRequirements
	// Tolerations, NodeSelector and PriorityClassName are passed on to the pod, whose nodes have Linux unless NodeSelector says otherwise.
	Tolerations       []corev1.Toleration
	NodeSelector      map[string]string
	PriorityClassName string
	// Labels and Annotations are added to the pod; they cannot replace the ones that the controller sets.
	Labels, Annotations map[string]string
	// BlockNonRoot runs the pods of Block claims as a non-root user too. It needs a container runtime that hands device
	// nodes to the pod's user (containerd and CRI-O: device_ownership_from_security_context = true); without that the
	// populator cannot open the device.
	BlockNonRoot bool
	// MaxResults is the number of extents that the populator asks for in one message; 0 leaves it to the populator.
	MaxResults int32
	// Streams is the number of streams that one populator may read at once. Default 4.
	Streams int
	// MaxAttempts is the number of attempts without progress after which the populator gives up; 0 leaves it to the
	// populator.
	MaxAttempts int
}

// Defaults of Config.
const (
	DefaultShards        = 8
	DefaultMaxConcurrent = 20
	DefaultStreams       = 4
	DefaultRetryBase     = 10 * time.Second
	DefaultRetryMax      = 5 * time.Minute
	DefaultRecheckAfter  = 10 * time.Minute
	// DefaultStreamsPerDriver is what a metadata service takes with the five requests to the API server a second that it
	// allows itself: each call costs it two, and one stream makes a call every few seconds.
	DefaultStreamsPerDriver = 12

	DefaultServiceAccount = "cbt-populator-worker"

	DefaultFailedPodRetention = time.Hour

	// defaultRejectedWait is for refusals whose cause no watch of ours reports, such as another component's policy.
	defaultRejectedWait = 30 * time.Second
)

// Default fills in the defaults.
func (c *Config) Default() {
	setDefault(&c.Shards, DefaultShards)
	setDefault(&c.MaxConcurrent, DefaultMaxConcurrent)
	setDefault(&c.MaxConcurrentPerDriver, c.MaxConcurrent)
	setDefault(&c.StreamsPerDriver, DefaultStreamsPerDriver)
	setDefault(&c.RetryBase, DefaultRetryBase)
	setDefault(&c.RetryMax, DefaultRetryMax)
	setDefault(&c.RecheckAfter, DefaultRecheckAfter)
	setDefault(&c.rejectedWait, defaultRejectedWait)
	if c.Metrics == nil {
		c.Metrics = ctrlmetrics.Registry
	}
	if c.FailedPodRetention == nil {
		c.FailedPodRetention = ptr.To(DefaultFailedPodRetention)
	}
	setDefault(&c.Pod.ImagePullPolicy, corev1.PullIfNotPresent)
	setDefault(&c.Pod.ServiceAccount, DefaultServiceAccount)
	setDefault(&c.Pod.Streams, DefaultStreams)
	if c.Pod.Resources == nil {
		c.Pod.Resources = &corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("50m"),
				corev1.ResourceMemory: resource.MustParse("64Mi"),
			},
			Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
		}
	}
}

func setDefault[T comparable](value *T, def T) {
	var zero T
	if *value == zero {
		*value = def
	}
}

// check refuses what nothing can be done with. Everything else is checked where it comes from, with the names that the
// administrator knows.
func (c *Config) check() error {
	if c.PopulatorNamespace == "" || c.Pod.Image == "" {
		return fmt.Errorf("populator namespace %q and image %q are both required", c.PopulatorNamespace, c.Pod.Image)
	}
	return nil
}

// libraryPrefix is the prefix of the finalizer on claims and of the annotation on rebound volumes.
const libraryPrefix = v1alpha1.GroupName
