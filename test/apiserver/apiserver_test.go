package apiserver

import (
	"strings"
	"testing"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
)

func TestServesEveryKind(t *testing.T) {
	server := Start(t)
	config, err := clientcmd.BuildConfigFromFlags("", server.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for groupVersion, kinds := range map[string][]string{
		"cbt.storage.k8s.io/v1alpha1": {"ChangedBlockRange"},
		"cbt.storage.k8s.io/v1beta1":  {"SnapshotMetadataService"},
		"snapshot.storage.k8s.io/v1":  {"VolumeSnapshot", "VolumeSnapshotContent", "VolumeSnapshotClass"},
	} {
		resources, err := client.ServerResourcesForGroupVersion(groupVersion)
		if err != nil {
			t.Fatal(err)
		}
		served := map[string]bool{}
		for _, r := range resources.APIResources {
			served[r.Kind] = true
		}
		for _, kind := range kinds {
			if !served[kind] {
				t.Errorf("%s is not served in %s", kind, groupVersion)
			}
		}
	}
}

func TestMissingBinariesAreNamed(t *testing.T) {
	t.Setenv(AssetsVariable, t.TempDir())
	_, err := New()
	if err == nil || !strings.Contains(err.Error(), "needs etcd") || !strings.Contains(err.Error(), "make test") {
		t.Fatalf("got %v, want an error that names etcd and says how to get it", err)
	}
}
