package boot

import (
	"fmt"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/config"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/pki"
)

// identity is a user of the API server: whose certificate is in NAME.kubeconfig.
type identity struct {
	file, user string
	groups     []string
}

// identities are the components' users, with the names and groups for which
// Kubernetes has roles, and those that rbac.yaml binds.
var identities = []identity{
	{"kube-controller-manager", "system:kube-controller-manager", nil},
	{"kube-scheduler", "system:kube-scheduler", nil},
	{"kube-proxy", "system:kube-proxy", nil},
	{"kubelet", "system:node:" + layout.NodeName, []string{"system:nodes"}},
	{"snapshot-controller", "snapshot-controller", []string{csiGroup}},
	{"csi-snapshotter", "csi-snapshotter", []string{csiGroup}},
	{"csi-provisioner", "csi-provisioner", []string{csiGroup}},
	{"csi-snapshot-metadata", "csi-snapshot-metadata", nil},
}

const csiGroup = "csi-controllers"

// credentials are those that the supervisor itself goes on to use.
type credentials struct {
	ca, metadataCA *pki.Authority
	admin          pki.Pair
}

// makeCredentials writes every certificate, key and kubeconfig.
func makeCredentials(l layout.Layout) (*credentials, error) {
	var c credentials
	var err error
	if c.ca, err = pki.NewAuthority("cbt-cluster"); err != nil {
		return nil, err
	}
	if c.metadataCA, err = pki.NewAuthority("cbt-cluster snapshot metadata"); err != nil {
		return nil, err
	}
	accounts, err := pki.NewAuthority("service accounts")
	if err != nil {
		return nil, err
	}
	apiserver, err := c.ca.Server("kube-apiserver", layout.Loopback, "localhost", layout.NodeIP, layout.ServiceIP,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return nil, err
	}
	kubelet, err := c.ca.Server("system:node:"+layout.NodeName, layout.NodeIP, layout.NodeName)
	if err != nil {
		return nil, err
	}
	kubeletClient, err := c.ca.Client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return nil, err
	}
	if c.admin, err = c.ca.Client("cbt-cluster-admin", "system:masters"); err != nil {
		return nil, err
	}
	for name, pair := range map[string]pki.Pair{
		"ca": c.ca.Pair, "metadata-ca": c.metadataCA.Pair, "service-accounts": accounts.Pair, "kube-apiserver": apiserver,
		"kubelet-server": kubelet, "apiserver-kubelet-client": kubeletClient, "admin": c.admin,
	} {
		if err := pki.WritePair(l.PKI(name), pair); err != nil {
			return nil, err
		}
	}
	if err := ServingCertificate(l, c.metadataCA); err != nil {
		return nil, err
	}
	return &c, c.writeKubeconfigs(l)
}

func (c *credentials) writeKubeconfigs(l layout.Layout) error {
	write := func(path string, pair pki.Pair) error {
		data, err := config.Kubeconfig(c.ca.Cert, pair)
		if err != nil {
			return err
		}
		return config.Write(path, data, 0o600)
	}
	for _, id := range identities {
		pair, err := c.ca.Client(id.user, id.groups...)
		if err != nil {
			return err
		}
		if err := write(l.ConfigFile(id.file+".kubeconfig"), pair); err != nil {
			return err
		}
	}
	return write(l.Kubeconfig(), c.admin)
}

// ServingCertificate writes a new serving certificate for the
// snapshot-metadata sidecar. The sidecar watches the file.
func ServingCertificate(l layout.Layout, ca *pki.Authority) error {
	pair, err := ca.Server("csi-snapshot-metadata", layout.NodeIP, layout.Loopback, "localhost", "csi-snapshot-metadata")
	if err != nil {
		return fmt.Errorf("sidecar's certificate: %w", err)
	}
	return pki.WritePair(l.PKI("csi-snapshot-metadata"), pair)
}
