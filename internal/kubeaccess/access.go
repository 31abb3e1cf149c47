// Package kubeaccess is the way of the command line tool to a cluster: the usual kubeconfig flags, or the service account of
// the pod that it runs in; the kinds that it reads and makes; a token for the driver's snapshot metadata service; and what
// the API server's refusals mean to a person.
package kubeaccess

import (
	"fmt"
	"io"

	"github.com/go-logr/logr"
	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/spf13/pflag"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Requests a second and at once. A command makes a handful; the default of 5 would only slow it down.
const (
	requestsPerSecond = 50
	requestsAtOnce    = 100
)

// Flags are the usual flags that say which cluster is meant, and as whom.
type Flags struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
}

// rareFlags work, but would bury a command's own flags in its help.
var rareFlags = []string{
	"as-group", "as-uid", "certificate-authority", "client-certificate", "client-key", "cluster", "disable-compression",
	"insecure-skip-tls-verify", "password", "proxy-url", "request-timeout", "server", "tls-server-name", "token", "user", "username",
}

// Register adds the flags to s.
func (f *Flags) Register(s *pflag.FlagSet) {
	f.rules = clientcmd.NewDefaultClientConfigLoadingRules()
	s.StringVar(&f.rules.ExplicitPath, "kubeconfig", "", "path of the kubeconfig file (default: $KUBECONFIG, else ~/.kube/config, else the pod's service account)")
	clientcmd.BindOverrideFlags(&f.overrides, s, clientcmd.RecommendedConfigOverrideFlags(""))
	for _, name := range rareFlags {
		s.Lookup(name).Hidden = true
	}
}

// Access reaches one cluster.
type Access struct {
	client.WithWatch
	// Namespace is the one of the flag, else of the context, else of the pod, else "default".
	Namespace string
}

// Connect returns the access that the flags ask for. It contacts nobody yet. The API server's warnings go to warnings.
func (f *Flags) Connect(warnings io.Writer) (*Access, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(f.rules, &f.overrides)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w: give --kubeconfig or set KUBECONFIG", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("find the namespace: %w", err)
	}
	return New(config, namespace, warnings)
}

// New returns the access that config describes.
func New(config *rest.Config, namespace string, warnings io.Writer) (*Access, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = requestsPerSecond, requestsAtOnce
	config.WarningHandler = rest.NewWarningWriter(warnings, rest.WarningWriterOptions{Deduplicate: true})
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("reach the API server %s: %w", config.Host, err)
	}
	return &Access{WithWatch: c, Namespace: namespace}, nil
}

// Silence discards what the libraries have to say, which is for developers; what matters comes back as an error. It is for the
// start of a program, because the libraries' loggers may not be set while somebody uses them.
func Silence() {
	log.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, storagev1.AddToScheme, authenticationv1.AddToScheme,
		v1alpha1.AddToScheme, snapshotv1.AddToScheme, metadatav1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register kinds: %w", err)
		}
	}
	return scheme, nil
}
