package machinery

import (
	"strings"
	"testing"
)

func TestConfigDefaultIsValid(t *testing.T) {
	if err := sampleConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigValidateNamesEveryBadValue(t *testing.T) {
	cfg := sampleConfig()
	cfg.PopulatorNamespace = "Not A Namespace"
	cfg.Shards = 1000
	cfg.MaxConcurrent = -1
	cfg.RetryMax = cfg.RetryBase - 1
	cfg.RecheckAfter = -1
	cfg.Pod.Image = ""
	cfg.Pod.ImagePullPolicy = "Sometimes"
	cfg.Pod.ServiceAccount = "a b"
	cfg.Pod.ImagePullSecrets = []string{"fine", "NOT FINE"}
	cfg.Pod.Labels = map[string]string{"a b": "c"}
	cfg.Pod.MaxResults = -1
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{
		"PopulatorNamespace", "Shards", "MaxConcurrent", "RetryMax", "RecheckAfter", "Pod.Image:", "ImagePullPolicy",
		"ServiceAccount", "ImagePullSecrets[1]", "Pod.Labels", "MaxResults",
	} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s:\n%v", name, err)
		}
	}
	if strings.Contains(err.Error(), "ImagePullSecrets[0]") {
		t.Errorf("the error names a good value:\n%v", err)
	}
}
