package boot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/isolate"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/kube"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/supervise"
)

// set builds the components of one cluster.
type set struct {
	layout.Layout
	ns     *isolate.Namespace
	client *kube.Client
	gates  gates
}

// component is one of our own binaries.
func (s set) component(name string, ready func(context.Context) error, args ...string) supervise.Component {
	return supervise.Component{Name: name, Binary: s.Bin(name), Args: args, Ready: ready}
}

// kubeFlags lift the client-side limits, which would otherwise pace every
// test that makes more than a handful of objects.
func kubeFlags(l layout.Layout, name string) []string {
	return []string{"--kubeconfig=" + l.ConfigFile(name+".kubeconfig"), "--kube-api-qps=200", "--kube-api-burst=400"}
}

func (s set) etcd() supervise.Component {
	client, peer := "http://"+layout.Loopback+":"+layout.EtcdPort, "http://"+layout.Loopback+":"+layout.EtcdPeerPort
	return s.component("etcd", s.http(client+"/readyz"),
		"--name=default", "--data-dir="+s.Path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
}

func (s set) apiserver() supervise.Component {
	c := s.component("kube-apiserver", s.client.Healthy, append(s.gates.flag(),
		"--etcd-servers=http://"+layout.Loopback+":"+layout.EtcdPort,
		"--secure-port="+layout.APIPort, "--bind-address=0.0.0.0", "--advertise-address="+layout.NodeIP,
		"--tls-cert-file="+s.PKI("kube-apiserver.crt"), "--tls-private-key-file="+s.PKI("kube-apiserver.key"),
		"--client-ca-file="+s.PKI("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+s.PKI("service-accounts.crt"),
		"--service-account-signing-key-file="+s.PKI("service-accounts.key"),
		"--service-cluster-ip-range="+layout.ServiceCIDR,
		"--authorization-mode=Node,RBAC", "--allow-privileged",
		// PodSecurity, ResourceQuota and LimitRanger are among the defaults.
		"--enable-admission-plugins=NodeRestriction",
		"--kubelet-certificate-authority="+s.PKI("ca.crt"),
		"--kubelet-client-certificate="+s.PKI("apiserver-kubelet-client.crt"),
		"--kubelet-client-key="+s.PKI("apiserver-kubelet-client.key"),
		"--audit-policy-file="+s.ConfigFile("audit.json"), "--audit-log-path="+s.AuditLog(), "--audit-log-mode=batch",
		// Else logs and exec look up the Node's name.
		"--kubelet-preferred-address-types=InternalIP")...)
	// It holds little and makes much garbage, and spent a quarter of its time on that.
	c.Env = []string{"GOGC=400"}
	return c
}

func (s set) controllerManager() supervise.Component {
	return s.component("kube-controller-manager", s.http("https://"+layout.Loopback+":"+layout.ControllerMgr+"/healthz"),
		append(append(s.gates.flag(), kubeFlags(s.Layout, "kube-controller-manager")...),
			"--leader-elect=false", "--bind-address="+layout.Loopback, "--use-service-account-credentials",
			"--root-ca-file="+s.PKI("ca.crt"), "--service-account-private-key-file="+s.PKI("service-accounts.key"),
			"--flex-volume-plugin-dir="+s.Path("flex-volumes"),
			"--cluster-signing-cert-file="+s.PKI("ca.crt"), "--cluster-signing-key-file="+s.PKI("ca.key"))...)
}

func (s set) scheduler() supervise.Component {
	return s.component("kube-scheduler", s.http("https://"+layout.Loopback+":"+layout.Scheduler+"/healthz"),
		append(append(s.gates.flag(), kubeFlags(s.Layout, "kube-scheduler")...),
			"--leader-elect=false", "--bind-address="+layout.Loopback)...)
}

func (s set) proxy() supervise.Component {
	return s.component("kube-proxy", s.http("http://"+layout.Loopback+":"+layout.ProxyHealth+"/livez"),
		append(s.gates.flag(),
			"--kubeconfig="+s.ConfigFile("kube-proxy.kubeconfig"), "--hostname-override="+layout.NodeName,
			"--proxy-mode=iptables", "--cluster-cidr="+layout.PodCIDR,
			// Replies between pods on one bridge bypass the rules unless their request came through the gateway.
			"--masquerade-all",
			"--conntrack-max-per-core=0", "--conntrack-min=0",
			"--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
			"--healthz-bind-address="+layout.Loopback+":"+layout.ProxyHealth,
			"--metrics-bind-address="+layout.Loopback+":"+layout.ProxyMetrics)...)
}

func (s set) containerd() supervise.Component {
	return supervise.Component{
		Name: "containerd", Binary: "/usr/bin/containerd", Args: []string{"--config=" + s.ConfigFile("containerd.toml")},
		Ready: unixSocket(s.ContainerdSocket()),
	}
}

func (s set) kubelet() supervise.Component {
	return s.component("kubelet", s.http("http://"+layout.Loopback+":"+layout.KubeletHealth+"/healthz"),
		"--config="+s.ConfigFile("kubelet.json"), "--kubeconfig="+s.ConfigFile("kubelet.kubeconfig"),
		"--root-dir="+s.Kubelet(), "--cert-dir="+s.Kubelet("pki"),
		"--hostname-override="+layout.NodeName, "--node-ip="+layout.NodeIP)
}

func (s set) driver() supervise.Component {
	return s.component("csidriver", unixSocket(s.CSISocket()),
		"--endpoint=unix://"+s.CSISocket(), "--driver-name="+layout.Driver, "--node-id="+layout.NodeName,
		"--state-dir="+s.DriverState(), "--registration-dir="+s.RegistrationDir())
}

func (s set) snapshotController() supervise.Component {
	return s.component("snapshot-controller", nil, kubeFlags(s.Layout, "snapshot-controller")...)
}

// sidecar components end when the driver goes away, and are started again.
func (s set) sidecar(name string, ready func(context.Context) error, args ...string) supervise.Component {
	c := s.component(name, ready, append(append(kubeFlags(s.Layout, name), "--csi-address="+s.CSISocket()), args...)...)
	c.Restarts = true
	return c
}

func (s set) snapshotter() supervise.Component {
	return s.sidecar("csi-snapshotter", nil, "--extra-create-metadata")
}

func (s set) provisioner() supervise.Component {
	args := []string{"--default-fstype=ext4", "--extra-create-metadata"}
	if s.gates.crossNamespace() {
		args = append(args, "--feature-gates="+crossNamespaceGate+"=true")
	}
	return s.sidecar("csi-provisioner", nil, args...)
}

func (s set) metadataSidecar() supervise.Component {
	return s.sidecar("csi-snapshot-metadata", s.tls(layout.MetadataService),
		"--tls-cert="+s.PKI("csi-snapshot-metadata.crt"), "--tls-key="+s.PKI("csi-snapshot-metadata.key"),
		"--port="+layout.MetadataPort, "--http-endpoint="+layout.Loopback+":"+layout.SidecarHealth)
}

// http returns a check that expects a success from a URL inside the
// namespace. Who answers there is not in question, so that its certificate,
// self-signed by most components, is not checked.
func (s set) http(url string) func(context.Context) error {
	client := &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{
			DialContext:       s.ns.Dial,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		},
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	}
}

// tls returns a check that expects a TLS handshake from an address inside.
func (s set) tls(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := s.ns.Dial(ctx, "tcp", address)
		if err != nil {
			return err
		}
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		return errors.Join(secure.HandshakeContext(ctx), conn.Close())
	}
}

// unixSocket returns a check that somebody accepts connections on a socket.
func unixSocket(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		// A socket file that a dead process left is refused, not answered.
		if _, err := os.Stat(path); err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
