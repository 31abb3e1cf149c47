// Package apiserver starts a real Kubernetes API server, with etcd and without any controller or kubelet, for tests of
// what only an API server does: admission, watches, finalizers, optimistic locking. Every kind that this project uses is
// installed: ChangedBlockRange, the snapshot kinds and SnapshotMetadataService. ReferenceGrants can be installed.
//
// Nothing binds volumes, runs pods or collects garbage there; a test plays those parts. Claims keep the finalizer
// kubernetes.io/pvc-protection for the same reason.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// AssetsVariable names the environment variable with the folder of kube-apiserver, etcd and kubectl. Without it they are
// taken from the module's bin folder.
const AssetsVariable = "KUBEBUILDER_ASSETS"

// crdModules are the modules whose folder config/crd holds the definitions of other projects' kinds that we use.
var crdModules = []string{
	"github.com/kubernetes-csi/external-snapshotter/client/v8",
	"github.com/kubernetes-csi/external-snapshot-metadata/client",
}

// Server is a running API server.
type Server struct {
	// Config reaches the server as a cluster administrator.
	Config *rest.Config
	// Kubeconfig is the path of a file that says the same as Config.
	Kubeconfig string

	environment *envtest.Environment
	dir         string
	beforeStop  []func()
}

// Start starts a server that stops when the test ends.
func Start(tb testing.TB) *Server {
	tb.Helper()
	server, err := New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := server.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return server
}

// patience bounds what takes seconds, but not while other tests and their compilers have the processors.
const patience = 2 * time.Minute

// shared is the server of Shared. It starts only when a test asks for it, so that a package's other tests need no binaries.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Shared returns the one server of all tests of a package, whose TestMain must be Main.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.once.Do(func() { shared.server, shared.err = New() })
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.server
}

// Main runs a package's tests, stops the server of Shared, and returns the process's exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if shared.server == nil {
		return code
	}
	if err := shared.server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// New starts a server that the caller stops.
func New() (*Server, error) {
	root, err := moduleDir("github.com/cbt-populator/cbt-populator")
	if err != nil {
		return nil, err
	}
	assets, err := findAssets(root)
	if err != nil {
		return nil, err
	}
	crds := []string{filepath.Join(root, "config", "crd")}
	for _, module := range crdModules {
		dir, err := moduleDir(module)
		if err != nil {
			return nil, err
		}
		crds = append(crds, filepath.Join(dir, "config", "crd"))
	}

	server := &Server{environment: &envtest.Environment{
		BinaryAssetsDirectory:    assets,
		CRDDirectoryPaths:        crds,
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: patience,
		ControlPlaneStopTimeout:  patience,
		CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: patience},
	}}
	// Without it the server drops a dataSourceRef that names another namespace.
	server.environment.ControlPlane.GetAPIServer().Configure().Append("feature-gates", "CrossNamespaceVolumeDataSource=true")
	if server.Config, err = start(server.environment); err != nil {
		return nil, errors.Join(fmt.Errorf("start API server from %s: %w", assets, err), server.environment.Stop())
	}
	if err := server.writeKubeconfig(); err != nil {
		return nil, errors.Join(err, server.Stop())
	}
	return server, nil
}

// start starts the processes with a garbage collector that runs less often: they hold little and make much garbage. This process
// has read its own setting already, and programs that tests start have none.
func start(environment *envtest.Environment) (config *rest.Config, err error) {
	const collector = "GOGC"
	if _, set := os.LookupEnv(collector); set {
		return environment.Start()
	}
	if err := os.Setenv(collector, "400"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Unsetenv(collector)) }()
	return environment.Start()
}

// InstallReferenceGrants installs the kind ReferenceGrant of the Gateway API, which a server does not have at first.
func (s *Server) InstallReferenceGrants() error {
	options, err := referenceGrants()
	if err != nil {
		return err
	}
	if _, err := envtest.InstallCRDs(s.Config, options); err != nil {
		return fmt.Errorf("install ReferenceGrants: %w", err)
	}
	return nil
}

// UninstallReferenceGrants deletes the kind ReferenceGrant and all objects of it, and returns when they are gone.
func (s *Server) UninstallReferenceGrants() error {
	options, err := referenceGrants()
	if err != nil {
		return err
	}
	if err := envtest.UninstallCRDs(s.Config, options); err != nil {
		return fmt.Errorf("uninstall ReferenceGrants: %w", err)
	}
	// Until then a new one of the name would go with the old one.
	c, err := client.New(s.Config, client.Options{})
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	crd := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"}}
	return wait.PollUntilContextTimeout(context.Background(), 50*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.Get(ctx, client.ObjectKey{Name: "referencegrants.gateway.networking.k8s.io"}, crd)
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
}

func referenceGrants() (envtest.CRDInstallOptions, error) {
	dir, err := moduleDir("sigs.k8s.io/gateway-api")
	return envtest.CRDInstallOptions{
		Paths:              []string{filepath.Join(dir, "config", "crd", "standard", "gateway.networking.k8s.io_referencegrants.yaml")},
		ErrorIfPathMissing: true,
		MaxTime:            patience,
	}, err
}

// BeforeStop has f called by Stop first. What watches the server has to end before it, because the server waits for open
// connections.
func (s *Server) BeforeStop(f func()) { s.beforeStop = append(s.beforeStop, f) }

// Stop stops the server and removes what it wrote.
func (s *Server) Stop() error {
	for _, f := range s.beforeStop {
		f()
	}
	var errs []error
	if err := s.environment.Stop(); err != nil {
		errs = append(errs, fmt.Errorf("stop API server: %w", err))
	}
	if err := os.RemoveAll(s.dir); err != nil {
		errs = append(errs, fmt.Errorf("remove kubeconfig: %w", err))
	}
	return errors.Join(errs...)
}

func (s *Server) writeKubeconfig() error {
	dir, err := os.MkdirTemp("", "apiserver-")
	if err != nil {
		return fmt.Errorf("make folder for kubeconfig: %w", err)
	}
	s.dir = dir
	s.Kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(s.Kubeconfig, s.environment.KubeConfig, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// findAssets returns the folder with the server's binaries. A missing one is an error, because a test that passes without
// having run says something untrue.
func findAssets(root string) (string, error) {
	dir := os.Getenv(AssetsVariable)
	if dir == "" {
		dir = filepath.Join(root, "bin")
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("this test needs %s in %s: run `make test`, which builds it, or point %s at a folder that has it: %w",
				name, dir, AssetsVariable, err)
		}
	}
	return dir, nil
}

// moduleDir asks the go command where a module's files are.
func moduleDir(module string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", fmt.Errorf("find module %s: its files are not downloaded: run `go mod download`", module)
	}
	return dir, nil
}
