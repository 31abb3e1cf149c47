package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/cbt-populator/cbt-populator/internal/machinery"
)

const head = "apiVersion: " + APIVersion + "\nkind: " + Kind + "\n"

// options compare machinery.Configs; the file says nothing of where metrics are registered.
var options = cmp.Options{cmp.AllowUnexported(machinery.Config{}), cmpopts.IgnoreInterfaces(struct{ prometheus.Registerer }{})}

func TestEmptyFileIsTheDefault(t *testing.T) {
	c, err := decode([]byte(head))
	if err != nil {
		t.Fatal(err)
	}
	c.Namespace, c.Populator.Image = "ns", "image"
	if errs := c.Validate(); len(errs) > 0 {
		t.Error(errs.ToAggregate())
	}
	want := machinery.Config{PopulatorNamespace: "ns", Pod: machinery.PodConfig{Image: "image"}}
	want.Default()
	if diff := cmp.Diff(want, c.Machinery(), options); diff != "" {
		t.Errorf("an empty file is not the machinery's default (-want +got):\n%s", diff)
	}
}

func TestFileReachesTheMachinery(t *testing.T) {
	c, err := decode([]byte(head + `
namespace: backup
populator:
  image: registry.example/populator:v1
  imagePullPolicy: Always
  imagePullSecrets: [pull]
  serviceAccountName: worker
  resources: {requests: {cpu: 1}}
  tolerations: [{key: a, operator: Exists, effect: NoSchedule}]
  nodeSelector: {zone: a}
  priorityClassName: low
  labels: {team: storage}
  annotations: {note: hello}
  blockVolumes: {runAsNonRoot: true}
  maxResults: 1024
  streams: 3
  maxAttempts: 7
  failedPodRetention: 0s
primeClaims:
  labels: {team: disks}
  annotations: {note: bye}
concurrency: {total: 7, perDriver: 3, streamsPerDriver: 5}
retry: {baseDelay: 1s, maxDelay: 1m30s, recheckInterval: 1h}
library: {shards: 2}
`))
	if err != nil {
		t.Fatal(err)
	}
	if errs := c.Validate(); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	want := machinery.Config{
		PopulatorNamespace: "backup", Shards: 2, MaxConcurrent: 7, MaxConcurrentPerDriver: 3, StreamsPerDriver: 5,
		RetryBase: time.Second, RetryMax: 90 * time.Second, RecheckAfter: time.Hour, FailedPodRetention: new(time.Duration),
		PrimeLabels: map[string]string{"team": "disks"}, PrimeAnnotations: map[string]string{"note": "bye"},
		Pod: machinery.PodConfig{
			Image: "registry.example/populator:v1", ImagePullPolicy: corev1.PullAlways, ImagePullSecrets: []string{"pull"}, ServiceAccount: "worker",
			Resources:    &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}},
			Tolerations:  []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
			NodeSelector: map[string]string{"zone": "a"}, PriorityClassName: "low",
			Labels: map[string]string{"team": "storage"}, Annotations: map[string]string{"note": "hello"},
			BlockNonRoot: true, MaxResults: 1024, Streams: 3, MaxAttempts: 7,
		},
	}
	want.Default()
	if diff := cmp.Diff(want, c.Machinery(), options); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDecodeNamesWhatItRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		file string
		want []string
	}{
		"unknown fields, all of them": {head + "populatr: {}\nretry: {basedelay: 1s}\npopulator: {tolerations: [{kee: x}]}\n",
			[]string{`"populatr"`, `"retry.basedelay"`, `"populator.tolerations[0].kee"`}},
		"duplicate key":   {head + "retry: {baseDelay: 1s, baseDelay: 2s}\n", []string{`"baseDelay" already set`}},
		"wrong type":      {head + "library: {shards: many}\n", []string{"library.shards"}},
		"no header":       {"namespace: x\n", []string{"apiVersion", Kind}},
		"another version": {"apiVersion: config.cbt.storage.k8s.io/v2\nkind: " + Kind + "\n", []string{APIVersion}},
		"no mapping":      {"- a\n", []string{"array"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := decode([]byte(test.file))
			if err == nil {
				t.Fatalf("no error; got %+v", c)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not contain %s:\n%v", want, err)
				}
			}
		})
	}
}

func TestValidateNamesEveryBadValue(t *testing.T) {
	c, err := decode([]byte(head + `
namespace: Not A Namespace
populator:
  image: two words
  imagePullPolicy: Sometimes
  imagePullSecrets: [fine, NOT FINE]
  serviceAccountName: a b
  resources: {requests: {cpu: lots, memory: 2Gi, "a b": 1}, limits: {memory: 1Gi, cpu: -1}}
  tolerations: [{key: fine}, {}, {key: a, operator: Exists, value: b}, {key: a, operator: Maybe}, {key: a, effect: Never}, {key: a, tolerationSeconds: 5}]
  nodeSelector: {"a b": c}
  priorityClassName: _
  labels: {"cbt.storage.k8s.io/claim-uid": mine, "velero.io/exclude-from-backup": "false", ok: "not ok!"}
  annotations: {"cbt.storage.k8s.io/attempt": "99", "a b": c, fine: anything goes}
  maxResults: -1
  streams: 17
  maxAttempts: -1
  failedPodRetention: a while
primeClaims:
  labels: {"app.kubernetes.io/name": mine}
  annotations: {"volume.kubernetes.io/selected-node": node, "pv.kubernetes.io/bind-completed": "yes"}
concurrency: {total: 0, perDriver: -1, streamsPerDriver: 0}
retry: {baseDelay: 0s, maxDelay: 5, recheckInterval: -1s}
library: {shards: 65}
healthProbe: {bindAddress: nowhere}
metrics: {bindAddress: ":99999"}
logging: {verbosity: -1}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range c.Validate() {
		got = append(got, e.Field)
	}
	want := []string{
		"namespace", "populator.image", "populator.imagePullPolicy", "populator.imagePullSecrets[1]", "populator.serviceAccountName",
		"populator.priorityClassName", "populator.resources.requests[a b]", "populator.resources.requests[cpu]", "populator.resources.requests[memory]",
		"populator.resources.limits[cpu]", "populator.tolerations[1].operator", "populator.tolerations[2].value", "populator.tolerations[3].operator",
		"populator.tolerations[4].effect", "populator.tolerations[5].tolerationSeconds", "populator.nodeSelector", "populator.labels",
		"populator.labels[cbt.storage.k8s.io/claim-uid]", "populator.labels[velero.io/exclude-from-backup]", "populator.annotations",
		"populator.annotations[cbt.storage.k8s.io/attempt]", "populator.maxResults", "populator.streams", "populator.maxAttempts", "populator.failedPodRetention",
		"primeClaims.labels[app.kubernetes.io/name]", "primeClaims.annotations[pv.kubernetes.io/bind-completed]",
		"primeClaims.annotations[volume.kubernetes.io/selected-node]", "concurrency.total", "concurrency.perDriver", "concurrency.streamsPerDriver", "retry.baseDelay", "retry.maxDelay",
		"retry.recheckInterval", "library.shards", "healthProbe.bindAddress", "metrics.bindAddress", "logging.verbosity",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s\n%v", diff, c.Validate().ToAggregate())
	}
}

// TestValidateSaysWhatToDo changes one thing in a valid configuration.
func TestValidateSaysWhatToDo(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*ControllerConfiguration)
		field  string
		says   []string
	}{
		"the longest delay is below the first": {func(c *ControllerConfiguration) { c.Retry.MaxDelay = Duration{Duration: time.Second} },
			"retry.maxDelay", []string{"baseDelay"}},
		"a name for ko": {func(c *ControllerConfiguration) { c.Populator.Image = "ko://x" },
			"populator.image", []string{"ko://x", "install.yaml", "POPULATOR_IMAGE", "--populator-image"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			c.Namespace, c.Populator.Image = "ns", "image"
			test.change(c)
			errs := c.Validate()
			if len(errs) != 1 || errs[0].Field != test.field {
				t.Fatalf("got %v, want one about %s", errs, test.field)
			}
			for _, want := range test.says {
				if !strings.Contains(errs[0].Error(), want) {
					t.Errorf("the error does not contain %s:\n%v", want, errs[0])
				}
			}
		})
	}
}

// TestShippedFile reads the file that config/manager installs. Image and namespace come from the environment there.
func TestShippedFile(t *testing.T) {
	c, err := Load(filepath.Join("..", "..", "config", "manager", "controller.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c.Namespace, c.Populator.Image = "cbt-populator", "image"
	if errs := c.Validate(); len(errs) > 0 {
		t.Error(errs.ToAggregate())
	}
	if _, err := Load(filepath.Join(t.TempDir(), "missing.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
