// Package config is the controller's configuration file: its type, its defaults, and the checks that name every bad value
// at once. docs/configuration.md describes each field; a test keeps the two together.
//
// The file is read once, at start. Nothing else in the process reads it: Machinery translates it for the package that
// fills claims.
package config

import corev1 "k8s.io/api/core/v1"

// Group, version and kind of the file.
const (
	APIVersion = "config.cbt.storage.k8s.io/v1alpha1"
	Kind       = "ControllerConfiguration"
)

// ControllerConfiguration is the file. A field that is left out has the default that Default gives it.
type ControllerConfiguration struct {
	// APIVersion and Kind must be the constants of the same names.
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`

	// Namespace is where populator pods, prime claims and endpoint ConfigMaps live. Required, here, as a flag or as
	// POD_NAMESPACE.
	Namespace string `json:"namespace"`

	Populator      Populator      `json:"populator"`
	PrimeClaims    PrimeClaims    `json:"primeClaims"`
	Concurrency    Concurrency    `json:"concurrency"`
	Retry          Retry          `json:"retry"`
	CrossNamespace CrossNamespace `json:"crossNamespace"`
	Library        Library        `json:"library"`
	LeaderElection LeaderElection `json:"leaderElection"`
	HealthProbe    Endpoint       `json:"healthProbe"`
	Metrics        Endpoint       `json:"metrics"`
	Profiling      Endpoint       `json:"profiling"`
	Logging        Logging        `json:"logging"`
	Tracing        Tracing        `json:"tracing"`
}

// Populator is about the pods that write lists.
type Populator struct {
	// Image is required, here, as a flag or as POPULATOR_IMAGE.
	Image            string            `json:"image"`
	ImagePullPolicy  corev1.PullPolicy `json:"imagePullPolicy"`
	ImagePullSecrets []string          `json:"imagePullSecrets"`
	// ServiceAccountName is in the namespace of the pods.
	ServiceAccountName string `json:"serviceAccountName"`
	// Resources replace the default ones as a whole.
	Resources         *Resources          `json:"resources"`
	Tolerations       []corev1.Toleration `json:"tolerations"`
	NodeSelector      map[string]string   `json:"nodeSelector"`
	PriorityClassName string              `json:"priorityClassName"`
	Labels            map[string]string   `json:"labels"`
	Annotations       map[string]string   `json:"annotations"`
	BlockVolumes      BlockVolumes        `json:"blockVolumes"`
	// MaxResults is the number of extents asked for in one message; 0 leaves it to the populator.
	MaxResults int32 `json:"maxResults"`
	// Streams is the number of streams that one populator may read at once; 1: no more than one.
	Streams int `json:"streams"`
	// MaxAttempts is the number of attempts without progress within one pod; 0 leaves it to the populator.
	MaxAttempts int `json:"maxAttempts"`
	// FailedPodRetention is how long a pod that failed is kept for its logs.
	FailedPodRetention Duration `json:"failedPodRetention"`
}

// Resources are a container's requests and limits.
type Resources struct {
	Requests map[corev1.ResourceName]Quantity `json:"requests"`
	Limits   map[corev1.ResourceName]Quantity `json:"limits"`
}

// BlockVolumes is about the pods of claims with volumeMode Block.
type BlockVolumes struct {
	// RunAsNonRoot runs them as user 65532 like all others. It needs a container runtime that hands device nodes to the
	// pod's user.
	RunAsNonRoot bool `json:"runAsNonRoot"`
}

// PrimeClaims is about the temporary claims.
type PrimeClaims struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// Concurrency bounds the populator pods that run at once.
type Concurrency struct {
	Total int `json:"total"`
	// PerDriver is the bound for one CSI driver; 0: no bound of its own.
	PerDriver int `json:"perDriver"`
	// StreamsPerDriver bounds the streams of all pods for one CSI driver, beyond the one that each pod has.
	StreamsPerDriver int `json:"streamsPerDriver"`
}

// Retry is about the time between attempts.
type Retry struct {
	// BaseDelay follows the first failure that may pass; it doubles with each further one, up to MaxDelay.
	BaseDelay Duration `json:"baseDelay"`
	MaxDelay  Duration `json:"maxDelay"`
	// RecheckInterval follows a final failure whose cause no watch reports when it goes away.
	RecheckInterval Duration `json:"recheckInterval"`
}

// CrossNamespace is about claims that refer to a ChangedBlockRange of another namespace.
type CrossNamespace struct {
	// Enabled has the controller fill them where a ReferenceGrant permits it.
	Enabled bool `json:"enabled"`
}

// Library is about lib-volume-populator.
type Library struct {
	// Shards is the number of instances.
	Shards int `json:"shards"`
}

// LeaderElection is about several replicas.
type LeaderElection struct {
	Enabled bool `json:"enabled"`
}

// Endpoint is an HTTP server of the controller.
type Endpoint struct {
	// BindAddress is host:port; the host may be empty, and "0" stands for none.
	BindAddress string `json:"bindAddress"`
}

// Logging is about the controller's log.
type Logging struct {
	Verbosity int `json:"verbosity"`
}

// Tracing is about OpenTelemetry.
type Tracing struct {
	// Endpoint is the host:port of an OTLP collector for gRPC; empty: no traces.
	Endpoint string `json:"endpoint"`
	// Plain leaves TLS out, as for a collector beside the controller.
	Plain bool `json:"plain"`
}
