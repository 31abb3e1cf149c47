package config

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/pki"
)

var testLayout = layout.Layout{State: "/state", Source: "../../../.."}

func TestNoFolderOfTheHostIsNamed(t *testing.T) {
	kubelet, err := Kubelet(testLayout, map[string]bool{"A": true})
	if err != nil {
		t.Fatal(err)
	}
	containerd, err := Containerd(testLayout)
	if err != nil {
		t.Fatal(err)
	}
	cni, err := CNI(testLayout)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"kubelet": kubelet, "containerd": containerd, "cni": cni} {
		for _, host := range []string{"/var/", "/run/", "/opt/", "/etc/"} {
			if strings.Contains(string(text), host) {
				t.Errorf("%s's configuration names a folder below %s:\n%s", name, host, text)
			}
		}
		if !strings.Contains(string(text), "/state/") {
			t.Errorf("%s's configuration does not name the state folder", name)
		}
	}
}

func TestKubeletConfiguration(t *testing.T) {
	data, err := Kubelet(testLayout, map[string]bool{"A": true, "B": false})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		FailCgroupV1 *bool
		CgroupRoot   string
		HealthzPort  int
		FeatureGates map[string]bool
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.FailCgroupV1 == nil || *got.FailCgroupV1 {
		t.Error("a machine with cgroup v1 is refused")
	}
	if got.CgroupRoot != "/cbt-cluster" || got.HealthzPort != 10248 {
		t.Errorf("cgroup %s, port %d", got.CgroupRoot, got.HealthzPort)
	}
	if diff := cmp.Diff(map[string]bool{"A": true, "B": false}, got.FeatureGates); diff != "" {
		t.Error(diff)
	}
}

func TestKubeconfigCarriesTheCertificate(t *testing.T) {
	data, err := Kubeconfig([]byte("ca"), pki.Pair{Cert: []byte("cert"), Key: []byte("key")})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"https://127.0.0.1:16443", base64.StdEncoding.EncodeToString([]byte("ca")), base64.StdEncoding.EncodeToString([]byte("key"))} {
		if !strings.Contains(string(data), want) {
			t.Errorf("the kubeconfig lacks %s", want)
		}
	}
}

func TestManifestsRender(t *testing.T) {
	docs, err := Manifests(testLayout, []byte("authority"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, doc := range docs {
		var o struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct{ CACert, Address string }
		}
		if err := json.Unmarshal(doc, &o); err != nil {
			t.Fatal(err)
		}
		names[o.Kind+"/"+o.Metadata.Name] = true
		if o.Kind == "SnapshotMetadataService" && (o.Spec.CACert != "YXV0aG9yaXR5" || o.Spec.Address != "198.51.100.1:50051") {
			t.Errorf("the service names %+v", o.Spec)
		}
	}
	for _, want := range []string{
		"StorageClass/csi-hostpath-sc", "StorageClass/csi-hostpath-wffc", "VolumeSnapshotClass/csi-hostpath-snapclass",
		"CSIDriver/" + layout.Driver, "SnapshotMetadataService/" + layout.Driver, "ClusterRole/csi-snapshot-metadata",
	} {
		if !names[want] {
			t.Errorf("%s is missing among %v", want, names)
		}
	}
}

func TestRenderNamesWhatItDoesNotKnow(t *testing.T) {
	if _, err := Render("name: {{.Drvier}}", nil); err == nil || !strings.Contains(err.Error(), "Drvier") {
		t.Errorf("a misspelt placeholder passes: %v", err)
	}
	if _, err := Render("a: b: c", nil); err == nil {
		t.Error("broken YAML passes")
	}
}

func TestSplit(t *testing.T) {
	docs, err := split([]byte("---\n# comment only\n---\na: 1\n---\nb: x---y\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range docs {
		got = append(got, string(d))
	}
	if diff := cmp.Diff([]string{`{"a":1}`, `{"b":"x---y"}`}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWriteMakesTheFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	if err := Write(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
