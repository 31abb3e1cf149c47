// Package layout says where everything of the local cluster lies and what it
// is called: folders, sockets, addresses, ports and object names. Nothing
// else in the program spells one of them out.
package layout

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Addresses, ports and names of the one cluster that a machine can have.
const (
	// Netns is the network namespace that every process of the cluster runs in.
	Netns = "cbt-cluster"
	// NetnsFile is where `ip netns` looks for it.
	NetnsFile = "/run/netns/" + Netns
	// Cgroup is the folder, in every cgroup hierarchy, that holds the cluster's processes.
	Cgroup = "cbt-cluster"
	// SystemCgroup holds the components, beside the kubelet's kubepods.
	SystemCgroup = Cgroup + "/system"
	// NodeName is the name of the only Node.
	NodeName = "cbt-node"
	// NodeIP is from TEST-NET-2 and lies on the namespace's loopback device.
	NodeIP = "198.51.100.1"
	// Loopback is where host and namespace each find the API server and the registry.
	Loopback = "127.0.0.1"
	// ServiceCIDR, ServiceIP: the cluster IPs, and the one of the API server.
	ServiceCIDR = "10.96.0.0/16"
	ServiceIP   = "10.96.0.1"
	// PodCIDR is the bridge's network.
	PodCIDR = "10.244.0.0/16"

	APIPort       = "16443"
	RegistryPort  = "15000"
	MetadataPort  = "50051"
	EtcdPort      = "2379"
	EtcdPeerPort  = "2380"
	ControllerMgr = "10257"
	Scheduler     = "10259"
	KubeletHealth = "10248"
	ProxyHealth   = "10256"
	ProxyMetrics  = "10249"
	SidecarHealth = "18080"

	// Registry is the local registry's host, as image names spell it.
	Registry = Loopback + ":" + RegistryPort
	// APIServer is the API server's address, the same in both namespaces.
	APIServer = "https://" + Loopback + ":" + APIPort
	// MetadataService is the address that the SnapshotMetadataService advertises.
	MetadataService = NodeIP + ":" + MetadataPort

	// Driver is the sample CSI driver's name.
	Driver = "sample-csi.cbt-populator.test"
	// Audited is the namespace whose service accounts' requests the API
	// server writes down: the one that cbt-populator is installed in.
	Audited = "cbt-populator"
	// Audience is the audience of tokens for the snapshot-metadata sidecar.
	Audience = "sample-csi-snapshot-metadata"
)

// Layout holds the two folders that everything else is relative to.
type Layout struct {
	// State is made by `up` and removed by `down`.
	State string
	// Source is the checkout.
	Source string
}

// Find returns the layout for this process: the state folder from
// CBT_CLUSTER_DIR or its default, and the checkout that the executable or the
// working directory lies in.
func Find() (Layout, error) {
	state := os.Getenv("CBT_CLUSTER_DIR")
	if state == "" {
		state = "/var/lib/cbt-cluster"
	}
	state, err := filepath.Abs(state)
	if err != nil {
		return Layout{}, fmt.Errorf("state folder: %w", err)
	}
	// A CSI socket's path may have 107 bytes; the longest of ours adds 63 to the state folder.
	if len(state) > 40 {
		return Layout{}, fmt.Errorf("state folder %s: its path may have at most 40 characters, because sockets below it must fit into 107", state)
	}
	if state == "/" {
		return Layout{}, errors.New("state folder: CBT_CLUSTER_DIR must not be /")
	}
	source, err := findSource()
	if err != nil {
		return Layout{}, err
	}
	return Layout{State: state, Source: source}, nil
}

func findSource() (string, error) {
	var starts []string
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	for _, start := range starts {
		for dir := start; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "test", "cluster", "components")); err == nil {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("the checkout is not found: keep this program in the checkout's bin folder, or run it inside the checkout")
}

// Bin is where a built program lies.
func (l Layout) Bin(name string) string { return filepath.Join(l.Source, "bin", name) }

// BuildLog is where the output of a failed build is kept.
func (l Layout) BuildLog(name string) string { return l.Bin(filepath.Join(".logs", name+".log")) }

// ComponentDir is the folder with the go.mod that pins an upstream project.
func (l Layout) ComponentDir(name string) string {
	return filepath.Join(l.Source, "test/cluster/components", name)
}

// Path is a path in the state folder.
func (l Layout) Path(elem ...string) string {
	return filepath.Join(append([]string{l.State}, elem...)...)
}

// Log is a component's log file.
func (l Layout) Log(component string) string { return l.Path("logs", component+".log") }

// AuditLog is where the API server writes down the requests of the audited
// namespace's service accounts, one JSON object a line.
func (l Layout) AuditLog() string { return l.Path("logs", "audit.log") }

// Kubeconfig is the cluster administrator's.
func (l Layout) Kubeconfig() string { return l.Path("kubeconfig") }

// ConfigFile is a component's configuration file.
func (l Layout) ConfigFile(name string) string { return l.Path("config", name) }

// PKI is a certificate, a key, or without its suffix a pair of them.
func (l Layout) PKI(name string) string { return l.Path("pki", name) }

// Control is the supervisor's socket.
func (l Layout) Control() string { return l.Path("supervisor.sock") }

// SupervisorRecord names the supervisor's process.
func (l Layout) SupervisorRecord() string { return l.Path("supervisor.json") }

// HostRecord says what `down` has to undo on the host.
func (l Layout) HostRecord() string { return l.Path("host.json") }

// Kubelet is a path in the kubelet's root folder.
func (l Layout) Kubelet(elem ...string) string {
	return l.Path(append([]string{"kubelet"}, elem...)...)
}

// ContainerdSocket is where containerd answers the kubelet.
func (l Layout) ContainerdSocket() string { return l.Path("containerd", "containerd.sock") }

// CSISocket is where the sample driver answers the kubelet and its sidecars.
func (l Layout) CSISocket() string { return l.Kubelet("plugins", Driver, "csi.sock") }

// RegistrationDir is where the kubelet looks for drivers.
func (l Layout) RegistrationDir() string { return l.Kubelet("plugins_registry") }

// DriverState holds the sample driver's volumes and snapshots.
func (l Layout) DriverState() string { return l.Path("csidriver") }
