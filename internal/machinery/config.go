package machinery

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Config says how claims are filled. The zero value of a field that is not required stands for its default; call
// Default before Validate.
type Config struct {
	// PopulatorNamespace is the namespace of the prime claims, pods and endpoint ConfigMaps. Required. A claim in it is
	// never filled.
	PopulatorNamespace string
	// Kubeconfig is the file from which the library builds its own client; empty stands for the pod's service account.
	Kubeconfig string
	// Shards is the number of library instances. Each has one worker and a client of 5 requests/s. Default 8.
	Shards int
	// MaxConcurrent bounds the populator pods that are not finished, in all. Default 20.
	MaxConcurrent int
	// MaxConcurrentPerDriver bounds them per CSI driver. Default MaxConcurrent.
	MaxConcurrentPerDriver int

	// RetryBase and RetryMax bound the wait between attempts after a failure that may pass: RetryBase doubles with each
	// attempt up to RetryMax. Defaults 10 s and 5 min.
	RetryBase, RetryMax time.Duration
	// RecheckAfter is the wait before another attempt after a terminal failure whose cause lies where no watch reaches:
	// a permission, or the driver's own state. Default 10 min.
	RecheckAfter time.Duration

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
	// Tolerations, NodeSelector and PriorityClassName are passed on to the pod.
	Tolerations       []corev1.Toleration
	NodeSelector      map[string]string
	PriorityClassName string
	// Labels and Annotations are added to the pod; they cannot replace the ones that the controller sets.
	Labels, Annotations map[string]string
	// BlockNonRoot runs the pods of Block claims as a non-root user too. It needs a container runtime that hands device
	// nodes to the pod's user (containerd and CRI-O: device_ownership_from_security_context = true); without that the
	// populator cannot open the device.
	BlockNonRoot bool
	// MaxResults is the number of extents that the populator asks for in one message; 0 leaves it to the driver.
	MaxResults int32
	// MaxAttempts is the number of attempts without progress after which the populator gives up; 0 leaves it to the
	// populator.
	MaxAttempts int
}

// Defaults of Config.
const (
	DefaultShards         = 8
	DefaultMaxConcurrent  = 20
	DefaultRetryBase      = 10 * time.Second
	DefaultRetryMax       = 5 * time.Minute
	DefaultRecheckAfter   = 10 * time.Minute
	DefaultServiceAccount = "cbt-populator-worker"

	// maxShards keeps a mistyped flag from starting hundreds of instances.
	maxShards = 64
)

// Default fills in the defaults.
func (c *Config) Default() {
	setDefault(&c.Shards, DefaultShards)
	setDefault(&c.MaxConcurrent, DefaultMaxConcurrent)
	setDefault(&c.MaxConcurrentPerDriver, c.MaxConcurrent)
	setDefault(&c.RetryBase, DefaultRetryBase)
	setDefault(&c.RetryMax, DefaultRetryMax)
	setDefault(&c.RecheckAfter, DefaultRecheckAfter)
	setDefault(&c.Pod.ImagePullPolicy, corev1.PullIfNotPresent)
	setDefault(&c.Pod.ServiceAccount, DefaultServiceAccount)
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

// Validate returns every bad value, joined, each with the field's name.
func (c *Config) Validate() error {
	errs := []error{
		checkName("PopulatorNamespace", c.PopulatorNamespace, validation.IsDNS1123Label),
		checkRange("Shards", c.Shards, 1, maxShards),
		checkRange("MaxConcurrent", c.MaxConcurrent, 1, 1<<20),
		checkRange("MaxConcurrentPerDriver", c.MaxConcurrentPerDriver, 1, 1<<20),
		c.Pod.validate(),
	}
	if c.RetryBase <= 0 || c.RetryMax < c.RetryBase {
		errs = append(errs, fmt.Errorf("RetryBase %v and RetryMax %v: both must be positive, and RetryMax not below RetryBase",
			c.RetryBase, c.RetryMax))
	}
	if c.RecheckAfter <= 0 {
		errs = append(errs, fmt.Errorf("RecheckAfter %v: must be positive", c.RecheckAfter))
	}
	return errors.Join(errs...)
}

func (p *PodConfig) validate() error {
	var errs []error
	if p.Image == "" {
		errs = append(errs, errors.New("Pod.Image: the populator's image is required (--populator-image or POPULATOR_IMAGE)"))
	}
	switch p.ImagePullPolicy {
	case corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		errs = append(errs, fmt.Errorf("Pod.ImagePullPolicy %q: must be Always, IfNotPresent or Never", p.ImagePullPolicy))
	}
	errs = append(errs, checkName("Pod.ServiceAccount", p.ServiceAccount, validation.IsDNS1123Subdomain))
	for i, name := range p.ImagePullSecrets {
		errs = append(errs, checkName(fmt.Sprintf("Pod.ImagePullSecrets[%d]", i), name, validation.IsDNS1123Subdomain))
	}
	if p.PriorityClassName != "" {
		errs = append(errs, checkName("Pod.PriorityClassName", p.PriorityClassName, validation.IsDNS1123Subdomain))
	}
	for _, labels := range []struct {
		name   string
		values map[string]string
	}{{"Pod.Labels", p.Labels}, {"Pod.NodeSelector", p.NodeSelector}} {
		if err := metav1validation.ValidateLabels(labels.values, field.NewPath(labels.name)).ToAggregate(); err != nil {
			errs = append(errs, err)
		}
	}
	for key := range p.Annotations {
		errs = append(errs, checkName("Pod.Annotations", key, validation.IsQualifiedName))
	}
	if p.MaxResults < 0 {
		errs = append(errs, fmt.Errorf("Pod.MaxResults %d: must not be negative", p.MaxResults))
	}
	if p.MaxAttempts < 0 {
		errs = append(errs, fmt.Errorf("Pod.MaxAttempts %d: must not be negative", p.MaxAttempts))
	}
	return errors.Join(errs...)
}

func checkName(name, value string, check func(string) []string) error {
	for _, complaint := range check(value) {
		return fmt.Errorf("%s %q: %s", name, value, complaint)
	}
	return nil
}

func checkRange(name string, value, low, high int) error {
	if value < low || value > high {
		return fmt.Errorf("%s %d: must be from %d to %d", name, value, low, high)
	}
	return nil
}

// libraryPrefix is the prefix of the finalizer on claims and of the annotation on rebound volumes.
const libraryPrefix = v1alpha1.GroupName
