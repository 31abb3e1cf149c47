package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/internal/machinery"
)

// Default returns the configuration of an empty file.
func Default() *ControllerConfiguration {
	var m machinery.Config
	m.Default()
	return &ControllerConfiguration{
		APIVersion: APIVersion,
		Kind:       Kind,
		Populator: Populator{
			ImagePullPolicy:    m.Pod.ImagePullPolicy,
			ServiceAccountName: m.Pod.ServiceAccount,
			Resources:          defaultResources(m.Pod.Resources),
			Streams:            m.Pod.Streams,
			FailedPodRetention: Duration{Duration: machinery.DefaultFailedPodRetention},
		},
		Concurrency: Concurrency{Total: m.MaxConcurrent, StreamsPerDriver: m.StreamsPerDriver},
		Retry: Retry{
			BaseDelay: Duration{Duration: m.RetryBase}, MaxDelay: Duration{Duration: m.RetryMax},
			RecheckInterval: Duration{Duration: m.RecheckAfter},
		},
		Library:        Library{Shards: m.Shards},
		LeaderElection: LeaderElection{Enabled: true},
		HealthProbe:    Endpoint{BindAddress: ":8081"},
		Metrics:        Endpoint{BindAddress: ":8080"},
		Profiling:      Endpoint{BindAddress: "0"},
	}
}

func defaultResources(r *corev1.ResourceRequirements) *Resources {
	convert := func(from corev1.ResourceList) map[corev1.ResourceName]Quantity {
		to := map[corev1.ResourceName]Quantity{}
		for name, amount := range from {
			to[name] = Quantity{Quantity: amount}
		}
		return to
	}
	return &Resources{Requests: convert(r.Requests), Limits: convert(r.Limits)}
}

// Load reads a file over the defaults. It refuses fields that it does not know and keys that occur twice, and names all
// of them; the values are checked by Validate, after flags have had their say.
func Load(path string) (*ControllerConfiguration, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return c, nil
}

func decode(data []byte) (*ControllerConfiguration, error) {
	// Duplicate keys are an error here; in JSON only the last one would be left.
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	c := Default()
	// What these say in the file is to be checked, and resources are replaced as a whole.
	c.APIVersion, c.Kind, c.Populator.Resources = "", "", nil
	unknown, err := strictjson.UnmarshalStrict(asJSON, c)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(unknown, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if c.APIVersion != APIVersion || c.Kind != Kind {
		unknown = append(unknown, fmt.Errorf("apiVersion %q, kind %q: must be %s and %s", c.APIVersion, c.Kind, APIVersion, Kind))
	}
	if len(unknown) > 0 {
		return nil, errors.Join(unknown...)
	}
	if c.Populator.Resources == nil {
		c.Populator.Resources = Default().Populator.Resources
	}
	return c, nil
}

// Machinery is what the package that fills claims is told. c must be valid.
func (c *ControllerConfiguration) Machinery() machinery.Config {
	p := &c.Populator
	m := machinery.Config{
		PopulatorNamespace:     c.Namespace,
		Shards:                 c.Library.Shards,
		MaxConcurrent:          c.Concurrency.Total,
		MaxConcurrentPerDriver: c.Concurrency.PerDriver,
		StreamsPerDriver:       c.Concurrency.StreamsPerDriver,
		RetryBase:              c.Retry.BaseDelay.Duration,
		RetryMax:               c.Retry.MaxDelay.Duration,
		RecheckAfter:           c.Retry.RecheckInterval.Duration,
		FailedPodRetention:     &p.FailedPodRetention.Duration,
		PrimeLabels:            c.PrimeClaims.Labels,
		PrimeAnnotations:       c.PrimeClaims.Annotations,
		Pod: machinery.PodConfig{
			Image:             p.Image,
			ImagePullPolicy:   p.ImagePullPolicy,
			ImagePullSecrets:  p.ImagePullSecrets,
			ServiceAccount:    p.ServiceAccountName,
			Resources:         p.Resources.requirements(),
			Tolerations:       p.Tolerations,
			NodeSelector:      p.NodeSelector,
			PriorityClassName: p.PriorityClassName,
			Labels:            p.Labels,
			Annotations:       p.Annotations,
			BlockNonRoot:      p.BlockVolumes.RunAsNonRoot,
			MaxResults:        p.MaxResults,
			Streams:           p.Streams,
			MaxAttempts:       p.MaxAttempts,
		},
	}
	m.Default()
	return m
}

func (r *Resources) requirements() *corev1.ResourceRequirements {
	convert := func(from map[corev1.ResourceName]Quantity) corev1.ResourceList {
		if len(from) == 0 {
			return nil
		}
		to := corev1.ResourceList{}
		for name, amount := range from {
			to[name] = amount.Quantity
		}
		return to
	}
	return &corev1.ResourceRequirements{Requests: convert(r.Requests), Limits: convert(r.Limits)}
}
