package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
)

const (
	helloModule  = "github.com/kubernetes-csi/lib-volume-populator/v3"
	helloProgram = helloModule + "/example/hello-populator"
	helloGroup   = "hello.example.com"
	// helloNamespace is where upstream's sample keeps its pods and claims.
	helloNamespace = "cbt-bench-hello"
	// helloAccount is the account that it uses. It is in the namespace whose accounts' requests are written down.
	helloAccount = "cbt-bench-hello"
)

// upstream is the running sample populator of lib-volume-populator, unchanged, in pod mode.
type upstream struct {
	world   *world
	process *measure.Process
	objects []client.Object
}

// startUpstream builds the sample, its image too, and starts its controller as a process beside the cluster.
func (w *world) startUpstream(ctx context.Context, o Options, dir string) (*upstream, error) {
	image, err := o.buildHello(ctx, dir)
	if err != nil {
		return nil, err
	}
	u := &upstream{world: w}
	if err := u.install(ctx); err != nil {
		return nil, errors.Join(err, u.stop(context.WithoutCancel(ctx)))
	}
	kubeconfig := filepath.Join(dir, "hello.kubeconfig")
	if err := u.writeKubeconfig(ctx, kubeconfig); err != nil {
		return nil, errors.Join(err, u.stop(context.WithoutCancel(ctx)))
	}
	u.process, err = measure.Start(exec.CommandContext(ctx, filepath.Join(dir, "hello-populator"),
		"--mode=controller", "--image-name="+image, "--kubeconfig="+kubeconfig, "--namespace="+helloNamespace))
	if err != nil {
		return nil, errors.Join(err, u.stop(context.WithoutCancel(ctx)))
	}
	return u, nil
}

// buildHello builds the sample's program into dir and its image into the cluster's registry, and returns the image's name.
func (o Options) buildHello(ctx context.Context, dir string) (string, error) {
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "hello-populator"), helloProgram)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := measure.Run(build); err != nil {
		return "", fmt.Errorf("build upstream's sample populator: %w", err)
	}
	ko := exec.CommandContext(ctx, filepath.Join(o.Bin, "ko"), "build", "--base-import-paths", "--insecure-registry", helloProgram)
	// It runs as root, as upstream's does: a fresh volume belongs to root and the library sets no group.
	ko.Env = append(os.Environ(), "KO_DOCKER_REPO="+o.Registry, "KO_DEFAULTBASEIMAGE="+o.Registry+"/library/busybox:stable")
	var name strings.Builder
	ko.Stdout = &name
	if _, err := measure.Run(ko); err != nil {
		return "", fmt.Errorf("build the image of upstream's sample populator: %w", err)
	}
	return strings.TrimSpace(name.String()), nil
}

// install creates the sample's kind, its namespace, and an account that may do everything.
func (u *upstream) install(ctx context.Context) error {
	crd, err := helloCRD(ctx)
	if err != nil {
		return err
	}
	u.objects = []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: helloNamespace}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: helloAccount, Namespace: installed}},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: helloAccount},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: helloAccount, Namespace: installed}},
		},
		crd,
	}
	for _, object := range u.objects {
		// An earlier bench may have been killed.
		if err := u.world.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
		}
	}
	return u.world.until(ctx, "the kind Hello is served", func(ctx context.Context) (bool, error) {
		hellos := &unstructured.UnstructuredList{}
		hellos.SetAPIVersion(helloGroup + "/v1alpha1")
		hellos.SetKind("HelloList")
		return u.world.List(ctx, hellos) == nil, nil
	})
}

// helloCRD reads the definition that lies beside the sample.
func helloCRD(ctx context.Context) (client.Object, error) {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", helloModule).Output()
	if err != nil {
		return nil, fmt.Errorf("find upstream's sample populator: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(dir)), "example", "hello-populator", "crd.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read upstream's sample kind: %w", err)
	}
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(data, &crd.Object); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return crd, nil
}

// writeKubeconfig writes a kubeconfig with the account's token, so that the API server knows the sample's requests.
func (u *upstream) writeKubeconfig(ctx context.Context, path string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: helloAccount, Namespace: installed}}
	request := &authenticationv1.TokenRequest{}
	if err := u.world.SubResource("token").Create(ctx, account, request); err != nil {
		return fmt.Errorf("request a token for upstream's sample populator: %w", err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["bench"] = &clientcmdapi.Cluster{Server: u.world.config.Host, CertificateAuthorityData: u.world.config.CAData}
	config.AuthInfos["bench"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	config.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "bench"}
	config.CurrentContext = "bench"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write kubeconfig of upstream's sample populator: %w", err)
	}
	return nil
}

// stop ends the controller and removes what install made.
func (u *upstream) stop(ctx context.Context) error {
	var errs []error
	if u.process != nil {
		errs = append(errs, u.process.Stop())
	}
	for _, object := range u.objects {
		if err := client.IgnoreNotFound(u.world.Delete(ctx, object)); err != nil {
			errs = append(errs, fmt.Errorf("delete %T %s: %w", object, object.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// hello builds the source of a claim of the sample.
func hello(name string) client.Object {
	h := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"fileName": "hello.txt", "fileContents": "hello"}}}
	h.SetAPIVersion(helloGroup + "/v1alpha1")
	h.SetKind("Hello")
	h.SetNamespace(namespace)
	h.SetName(name)
	h.SetLabels(map[string]string{measured: "true"})
	return h
}
