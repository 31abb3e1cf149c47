package config

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const (
	// maxShards keeps a mistyped number from starting hundreds of instances.
	maxShards = 64
	// maxStreams is what the populator allows.
	maxStreams = 16
	// maxConcurrent is more than any cluster runs.
	maxConcurrent = 1 << 20
	// koScheme is what image names begin with in config/manager, until ko resolves them.
	koScheme = "ko://"
)

// Validate returns every bad value with its field.
func (c *ControllerConfiguration) Validate() field.ErrorList {
	var errs field.ErrorList
	namespace := field.NewPath("namespace")
	if c.Namespace == "" {
		errs = append(errs, field.Required(namespace, "the namespace of populator pods (also --populator-namespace, POD_NAMESPACE)"))
	} else {
		errs = append(errs, name(namespace, c.Namespace, validation.IsDNS1123Label)...)
	}
	errs = append(errs, c.Populator.validate(field.NewPath("populator"))...)
	prime := field.NewPath("primeClaims")
	errs = append(errs, labels(prime.Child("labels"), c.PrimeClaims.Labels)...)
	errs = append(errs, annotations(prime.Child("annotations"), c.PrimeClaims.Annotations)...)
	concurrency := field.NewPath("concurrency")
	errs = append(errs, within(concurrency.Child("total"), c.Concurrency.Total, 1, maxConcurrent)...)
	errs = append(errs, within(concurrency.Child("perDriver"), c.Concurrency.PerDriver, 0, maxConcurrent)...)
	errs = append(errs, within(concurrency.Child("streamsPerDriver"), c.Concurrency.StreamsPerDriver, 1, maxConcurrent)...)
	errs = append(errs, c.Retry.validate(field.NewPath("retry"))...)
	errs = append(errs, within(field.NewPath("library", "shards"), c.Library.Shards, 1, maxShards)...)
	errs = append(errs, c.HealthProbe.validate(field.NewPath("healthProbe"))...)
	errs = append(errs, c.Metrics.validate(field.NewPath("metrics"))...)
	errs = append(errs, c.Profiling.validate(field.NewPath("profiling"))...)
	if host, port, err := net.SplitHostPort(c.Tracing.Endpoint); c.Tracing.Endpoint != "" && (err != nil || host == "" || port == "") {
		errs = append(errs, field.Invalid(field.NewPath("tracing", "endpoint"), c.Tracing.Endpoint, "must be host:port, or empty for no traces"))
	}
	return append(errs, within(field.NewPath("logging", "verbosity"), c.Logging.Verbosity, 0, 10)...)
}

func (p *Populator) validate(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.Image == "" {
		errs = append(errs, field.Required(path.Child("image"), "the populator's image (also --populator-image, POPULATOR_IMAGE)"))
	}
	if strings.HasPrefix(p.Image, koScheme) {
		errs = append(errs, field.Invalid(path.Child("image"), p.Image, "is a name for ko, which make deploy has it replace by an image: "+
			"install a release's install.yaml or chart, or name an image here, in POPULATOR_IMAGE or with --populator-image"))
	}
	if strings.ContainsAny(p.Image, " \t\n") {
		errs = append(errs, field.Invalid(path.Child("image"), p.Image, "must not contain white space"))
	}
	policies := []corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}
	if !slices.Contains(policies, p.ImagePullPolicy) {
		errs = append(errs, field.NotSupported(path.Child("imagePullPolicy"), p.ImagePullPolicy, policies))
	}
	for i, secret := range p.ImagePullSecrets {
		errs = append(errs, name(path.Child("imagePullSecrets").Index(i), secret, validation.IsDNS1123Subdomain)...)
	}
	errs = append(errs, name(path.Child("serviceAccountName"), p.ServiceAccountName, validation.IsDNS1123Subdomain)...)
	if p.PriorityClassName != "" {
		errs = append(errs, name(path.Child("priorityClassName"), p.PriorityClassName, validation.IsDNS1123Subdomain)...)
	}
	errs = append(errs, p.Resources.validate(path.Child("resources"))...)
	for i := range p.Tolerations {
		errs = append(errs, toleration(path.Child("tolerations").Index(i), &p.Tolerations[i])...)
	}
	errs = append(errs, metav1validation.ValidateLabels(p.NodeSelector, path.Child("nodeSelector"))...)
	errs = append(errs, labels(path.Child("labels"), p.Labels)...)
	errs = append(errs, annotations(path.Child("annotations"), p.Annotations)...)
	errs = append(errs, within(path.Child("maxResults"), int(p.MaxResults), 0, maxConcurrent)...)
	errs = append(errs, within(path.Child("streams"), p.Streams, 1, maxStreams)...)
	errs = append(errs, within(path.Child("maxAttempts"), p.MaxAttempts, 0, maxConcurrent)...)
	return append(errs, p.FailedPodRetention.validate(path.Child("failedPodRetention"), true)...)
}

func (r *Resources) validate(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, list := range []struct {
		name    string
		amounts map[corev1.ResourceName]Quantity
	}{{"requests", r.Requests}, {"limits", r.Limits}} {
		for _, resource := range sortedKeys(list.amounts) {
			at, amount := path.Child(list.name).Key(string(resource)), list.amounts[resource]
			errs = append(errs, name(at, string(resource), validation.IsQualifiedName)...)
			switch {
			case amount.bad != "":
				errs = append(errs, field.Invalid(at, amount.bad, "must be a quantity such as 50m or 64Mi"))
			case amount.Sign() < 0:
				errs = append(errs, field.Invalid(at, amount.String(), "must not be negative"))
			}
			limit, limited := r.Limits[resource]
			if list.name == "requests" && limited && limit.bad == "" && amount.bad == "" && amount.Cmp(limit.Quantity) > 0 {
				errs = append(errs, field.Invalid(at, amount.String(), "must not exceed the limit of "+limit.String()))
			}
		}
	}
	return errs
}

func (r *Retry) validate(path *field.Path) field.ErrorList {
	errs := r.BaseDelay.validate(path.Child("baseDelay"), false)
	errs = append(errs, r.MaxDelay.validate(path.Child("maxDelay"), false)...)
	if len(errs) == 0 && r.MaxDelay.Duration < r.BaseDelay.Duration {
		errs = append(errs, field.Invalid(path.Child("maxDelay"), r.MaxDelay.String(), "must not be less than baseDelay, "+r.BaseDelay.String()))
	}
	return append(errs, r.RecheckInterval.validate(path.Child("recheckInterval"), false)...)
}

func (d Duration) validate(path *field.Path, zero bool) field.ErrorList {
	switch {
	case d.bad != "":
		return field.ErrorList{field.Invalid(path, d.bad, "must be a duration in quotes or plain, such as 90s, 5m or 1h30m")}
	case d.Duration < 0, d.Duration == 0 && !zero:
		return field.ErrorList{field.Invalid(path, d.String(), "must be positive")}
	}
	return nil
}

func (e Endpoint) validate(path *field.Path) field.ErrorList {
	if e.BindAddress == "0" {
		return nil
	}
	_, port, err := net.SplitHostPort(e.BindAddress)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return field.ErrorList{field.Invalid(path.Child("bindAddress"), e.BindAddress, `must be host:port or :port, or "0" for none`)}
	}
	return nil
}

// toleration checks what the API server would refuse in every pod.
func toleration(path *field.Path, t *corev1.Toleration) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, name(path.Child("key"), t.Key, validation.IsQualifiedName)...)
	} else if t.Operator != corev1.TolerationOpExists {
		errs = append(errs, field.Invalid(path.Child("operator"), t.Operator, "must be Exists when there is no key"))
	}
	switch t.Operator {
	case corev1.TolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(path.Child("value"), t.Value, "must be empty with the operator Exists"))
		}
	case corev1.TolerationOpEqual, "":
	default:
		errs = append(errs, field.NotSupported(path.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
	}
	effects := []corev1.TaintEffect{"", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
	if !slices.Contains(effects, t.Effect) {
		errs = append(errs, field.NotSupported(path.Child("effect"), t.Effect, effects))
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		errs = append(errs, field.Invalid(path.Child("tolerationSeconds"), *t.TolerationSeconds, "needs the effect NoExecute"))
	}
	return errs
}

func labels(path *field.Path, values map[string]string) field.ErrorList {
	return append(metav1validation.ValidateLabels(values, path), reserved(path, values)...)
}

func annotations(path *field.Path, values map[string]string) field.ErrorList {
	return append(apivalidation.ValidateAnnotations(values, path), reserved(path, values)...)
}

// reserved refuses keys that the controller or Kubernetes itself gives a meaning on these objects.
func reserved(path *field.Path, values map[string]string) field.ErrorList {
	var errs field.ErrorList
	for _, key := range sortedKeys(values) {
		domain, _, _ := strings.Cut(key, "/")
		ours := domain == v1alpha1.GroupName || slices.Contains([]string{v1alpha1.LabelName, v1alpha1.LabelComponent, v1alpha1.LabelVeleroExclude}, key)
		storage := domain == "volume.kubernetes.io" || domain == "volume.beta.kubernetes.io" || domain == "pv.kubernetes.io"
		switch {
		case ours:
			errs = append(errs, field.Forbidden(path.Key(key), "the controller sets this key itself"))
		case storage:
			errs = append(errs, field.Forbidden(path.Key(key), "Kubernetes binds volumes by this key"))
		}
	}
	return errs
}

func name(path *field.Path, value string, check func(string) []string) field.ErrorList {
	var errs field.ErrorList
	for _, complaint := range check(value) {
		errs = append(errs, field.Invalid(path, value, complaint))
	}
	return errs
}

func within(path *field.Path, value, low, high int) field.ErrorList {
	if value < low || value > high {
		return field.ErrorList{field.Invalid(path, value, fmt.Sprintf("must be from %d to %d", low, high))}
	}
	return nil
}
