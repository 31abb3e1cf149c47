package machinery

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestPopulatorPod compares the pods with testdata/*.yaml; -update writes those.
func TestPopulatorPod(t *testing.T) {
	for name, change := range map[string]func(*Config, *podSource, *podClaim){
		// Whoever may create a claim may write this annotation; it counts where the scheduler has to write it.
		"filesystem": func(_ *Config, _ *podSource, c *podClaim) {
			c.claim.Annotations = map[string]string{annotationSelectedNode: "nowhere"}
		},
		"block": func(_ *Config, s *podSource, c *podClaim) {
			c.claim.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
			s.cbr.Spec.Format = v1alpha1.FormatBinary
		},
		"block-nonroot-late": func(cfg *Config, s *podSource, c *podClaim) {
			cfg.Pod.BlockNonRoot = true
			c.claim.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
			c.prime.Annotations = map[string]string{annotationNode: "node-7"}
			s.cbr.Spec.Format = v1alpha1.FormatBinary
			c.attempt = 3
		},
		"filesystem-late-elsewhere": func(_ *Config, _ *podSource, c *podClaim) {
			c.prime.Annotations = map[string]string{annotationNode: "node-7"}
			c.volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}}
		},
		"everything": func(cfg *Config, s *podSource, _ *podClaim) {
			cfg.Pod.ImagePullSecrets = []string{"pull"}
			cfg.Pod.Tolerations = []corev1.Toleration{{Key: "backup", Operator: corev1.TolerationOpExists}}
			cfg.Pod.NodeSelector = map[string]string{"zone": "a"}
			cfg.Pod.PriorityClassName = "low"
			cfg.Pod.Labels = map[string]string{"team": "storage", v1alpha1.LabelClaimUID: "mine"}
			cfg.Pod.Annotations = map[string]string{"note": "hello", annotationAttempt: "99"}
			cfg.Pod.MaxResults, cfg.Pod.MaxAttempts = 1024, 7
			s.cbr.Spec.FromVolumeSnapshotName = ""
			s.cbr.Spec.FromSnapshotHandle = "-h $(HOSTNAME)"
			s.cbr.Status.FromSnapshotHandle = s.cbr.Spec.FromSnapshotHandle
			s.cbr.Status.FromRestoreSizeBytes = nil
			s.cbr.Spec.MaxSizeInBytes = ptr.To[int64](1 << 30)
			s.cbr.Spec.GranularityBytes = ptr.To[int64](65536)
			s.cbr.Spec.MergeExtents = ptr.To(true)
			s.cbr.Spec.WhenDeltaUnavailable = v1alpha1.FallbackUseAllocated
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, source, target := sampleConfig(), sampleSource(), sampleTarget()
			change(cfg, &source, &target)
			data, err := yaml.Marshal(populatorPod(cfg, source, target))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "pod-"+name+".yaml")
			if *update {
				if err := os.WriteFile(file, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(data)); diff != "" {
				t.Errorf("%s differs (-want +got):\n%s", file, diff)
			}
		})
	}
}

// TestPopulatorNodes: Linux, and what the configuration says, which may also be another value for that very label.
func TestPopulatorNodes(t *testing.T) {
	for name, test := range map[string]struct{ configured, want map[string]string }{
		"nothing":      {nil, map[string]string{"kubernetes.io/os": "linux"}},
		"other labels": {map[string]string{"zone": "a"}, map[string]string{"kubernetes.io/os": "linux", "zone": "a"}},
		"that label":   {map[string]string{"kubernetes.io/os": "other"}, map[string]string{"kubernetes.io/os": "other"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sampleConfig()
			cfg.Pod.NodeSelector = test.configured
			before := settingDigest(cfg, sampleSource())
			if diff := cmp.Diff(test.want, populatorPod(cfg, sampleSource(), sampleTarget()).Spec.NodeSelector); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if settingDigest(cfg, sampleSource()) != before {
				t.Error("the configuration was changed")
			}
		})
	}
}

// TestVolumeDecidesWhetherItsNodeIsAMust: one that says where it is leaves the scheduler any of those nodes.
func TestVolumeDecidesWhetherItsNodeIsAMust(t *testing.T) {
	for name, test := range map[string]struct {
		reached *corev1.VolumeNodeAffinity
		must    bool
	}{
		"it says where it is":   {&corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}}, false},
		"it does not":           {nil, true},
		"it says so of no node": {&corev1.VolumeNodeAffinity{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(target podClaim, _ podSource, volume *corev1.PersistentVolume) {
				target.prime.Annotations = map[string]string{annotationNode: "node-7"}
				volume.Spec.NodeAffinity = test.reached
			}, interceptor.Funcs{})
			if err := b.populateOnce(); !errors.Is(err, errWaiting) {
				t.Fatalf("populate: %v, want waiting", err)
			}
			affinity := b.currentPod(t).Spec.Affinity.NodeAffinity
			must, may := affinity.RequiredDuringSchedulingIgnoredDuringExecution, affinity.PreferredDuringSchedulingIgnoredDuringExecution
			if (must != nil) != test.must || (len(may) > 0) == test.must {
				t.Errorf("the pod's affinity is %v, want the node to be a must: %v", affinity, test.must)
			}
		})
	}
}

func TestPopulatorArgsKeepHandlesLiteral(t *testing.T) {
	cfg, source, target := sampleConfig(), sampleSource(), sampleTarget()
	source.cbr.Status.ToSnapshotHandle = "-x $(HOME) $$"
	args := populatorArgs(cfg, source, target)
	want := "--snapshot-handle=-x $$(HOME) $$$$"
	if !slices.Contains(args, want) {
		t.Errorf("no argument %q in:\n%s", want, strings.Join(args, "\n"))
	}
}

// TestDigests changes one thing at a time and looks which digest tells.
func TestDigests(t *testing.T) {
	for _, test := range []struct {
		name            string
		change          func(*Config, *podSource)
		source, setting bool
	}{
		{"nothing", func(*Config, *podSource) {}, false, false},
		{"handle", func(_ *Config, s *podSource) { s.cbr.Status.ToSnapshotHandle = "other" }, true, false},
		{"granularity", func(_ *Config, s *podSource) { s.cbr.Spec.GranularityBytes = ptr.To[int64](4096) }, true, false},
		{"condition", func(_ *Config, s *podSource) { s.cbr.Status.Message = "other" }, false, false},
		{"address", func(_ *Config, s *podSource) { s.service.Spec.Address = "other" }, false, true},
		{"certificate", func(_ *Config, s *podSource) { s.service.Spec.CACert = []byte("other") }, false, true},
		{"image", func(c *Config, _ *podSource) { c.Pod.Image = "other" }, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, source := sampleConfig(), sampleSource()
			beforeSource, beforeSetting := source.cbr.ListFingerprint(), settingDigest(cfg, source)
			test.change(cfg, &source)
			if got := source.cbr.ListFingerprint() != beforeSource; got != test.source {
				t.Errorf("the source's digest changed: %v, want %v", got, test.source)
			}
			if got := settingDigest(cfg, source) != beforeSetting; got != test.setting {
				t.Errorf("the setting's digest changed: %v, want %v", got, test.setting)
			}
		})
	}
}
