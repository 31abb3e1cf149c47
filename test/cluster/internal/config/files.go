// Package config renders the configuration files of the cluster's components
// and the objects that the cluster starts with.
package config

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/pki"
)

type object = map[string]any

// containerd's own folders replace every one that Debian's containerd would
// use. restrict_oom_score_adj is for machines without CAP_SYS_RESOURCE,
// where otherwise no container starts.
var containerd = template.Must(template.New("containerd").Parse(`version = 2
root = "{{.State}}/containerd/root"
state = "{{.State}}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "{{.ContainerdSocket}}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{{.State}}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Registry}}/pause:latest"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  max_concurrent_downloads = 8
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{{.State}}/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{{.State}}/containerd/certs.d"
`))

// RegistryHosts has containerd ask the cluster's own registry for images of
// Docker Hub, so that a manifest which says busybox:stable runs here and on
// any other cluster.
func RegistryHosts() []byte {
	return fmt.Appendf(nil, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+layout.Registry)
}

// Containerd renders containerd's configuration.
func Containerd(l layout.Layout) ([]byte, error) {
	var out strings.Builder
	err := containerd.Execute(&out, object{"State": l.State, "ContainerdSocket": l.ContainerdSocket(), "Registry": layout.Registry})
	if err != nil {
		return nil, fmt.Errorf("containerd configuration: %w", err)
	}
	return []byte(out.String()), nil
}

// CNI is the pods' network: a bridge inside the cluster's network namespace.
func CNI(l layout.Layout) ([]byte, error) {
	return marshal(object{
		"cniVersion": "0.4.0",
		"name":       "cbt-cluster",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cbt0", "isDefaultGateway": true, "hairpinMode": true,
				"ipam": object{
					"type": "host-local", "dataDir": l.Path("cni", "addresses"),
					"ranges": [][]object{{{"subnet": layout.PodCIDR}}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "snat": true},
		},
	})
}

// Kubelet renders the kubelet's configuration. Its thresholds for eviction
// and image collection are as low as can be: a test machine's full disk is
// not the cluster's business.
func Kubelet(l layout.Layout, featureGates map[string]bool) ([]byte, error) {
	health, err := strconv.Atoi(layout.KubeletHealth)
	if err != nil {
		return nil, fmt.Errorf("kubelet configuration: %w", err)
	}
	return marshal(object{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"authentication":           object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": l.PKI("ca.crt")}},
		"authorization":            object{"mode": "Webhook"},
		"tlsCertFile":              l.PKI("kubelet-server.crt"),
		"tlsPrivateKeyFile":        l.PKI("kubelet-server.key"),
		"healthzPort":              health,
		"containerRuntimeEndpoint": "unix://" + l.ContainerdSocket(),
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + layout.Cgroup,
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"podLogsDir":               l.Path("pods"),
		"volumePluginDir":          l.Kubelet("volume-plugins"),
		"resolvConf":               l.ConfigFile("resolv.conf"),
		// There is no DNS. A name is refused at once by an address where nobody listens.
		"clusterDNS":    []string{layout.NodeIP},
		"clusterDomain": "cluster.local",
		"evictionHard": object{
			"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%",
		},
		"imageGCHighThresholdPercent": 100,
		"maxPods":                     250,
		"serializeImagePulls":         false,
		"registryPullQPS":             0,
		"eventRecordQPS":              0,
		"kubeAPIQPS":                  200,
		"kubeAPIBurst":                400,
		// A changed ConfigMap reaches a mounted volume within this time.
		"syncFrequency": "10s",
		"featureGates":  featureGates,
	})
}

// Kubeconfig renders a kubeconfig for a client certificate.
func Kubeconfig(ca []byte, client pki.Pair) ([]byte, error) {
	encode := base64.StdEncoding.EncodeToString
	const name = "cbt-cluster"
	return marshal(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": name,
		"clusters":        []object{{"name": name, "cluster": object{"server": layout.APIServer, "certificate-authority-data": encode(ca)}}},
		"users":           []object{{"name": name, "user": object{"client-certificate-data": encode(client.Cert), "client-key-data": encode(client.Key)}}},
		"contexts":        []object{{"name": name, "context": object{"cluster": name, "user": name}}},
	})
}

// Audit renders the API server's audit policy: what the service accounts of
// one namespace ask for, and nothing else. It shows which permissions a
// program uses and how many requests it makes.
func Audit(namespace string) ([]byte, error) {
	return marshal(object{
		"apiVersion": "audit.k8s.io/v1",
		"kind":       "Policy",
		"omitStages": []string{"RequestReceived"},
		"rules": []object{
			{"level": "Metadata", "userGroups": []string{"system:serviceaccounts:" + namespace}},
			{"level": "None"},
		},
	})
}

// ResolvConf sends the look-ups of pods with the Node's DNS nowhere.
func ResolvConf() []byte {
	return []byte("nameserver " + layout.NodeIP + "\noptions timeout:1 attempts:1\n")
}

func marshal(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// Write writes a file with its folder.
func Write(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
