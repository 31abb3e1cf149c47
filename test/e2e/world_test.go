//go:build e2e

// Package e2e runs the product's main job on a real cluster: the sample CSI driver, the upstream sidecars and the
// installed controller, with nothing faked. `make e2e` sets all of that up; KUBECONFIG names the cluster and kubectl is on
// the PATH.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const (
	storageClass      = "csi-hostpath-sc"
	snapshotClass     = "csi-hostpath-snapclass"
	populatorNS       = "cbt-populator"
	toolsImage        = "busybox:stable"
	blockSize         = 4096
	patience          = 2 * time.Minute
	pollInterval      = 200 * time.Millisecond
	namespaceDeadline = 4 * time.Minute
)

var (
	scheme = runtime.NewScheme()
	// api is the client that all tests share.
	api client.Client
)

func TestMain(m *testing.M) {
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(snapshotv1.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	secrets, err := connect()
	if err != nil {
		fmt.Fprintln(os.Stderr, "no cluster: set KUBECONFIG, or run make e2e:", err)
		os.Exit(1)
	}
	code := m.Run()
	for _, check := range []func(context.Context) error{removed, nothingLeft, rightsAreMinimal, secrets.finish} {
		if err := check(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL: after all tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// connect makes the clients, and starts to look for secrets.
func connect() (*guard, error) {
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 100, 200
	if api, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return newGuard(clients), nil
}

// nothingLeft says what the controller left behind in its namespace once every claim is gone.
func nothingLeft(ctx context.Context) error {
	var left []string
	err := wait.PollUntilContextTimeout(ctx, pollInterval, namespaceDeadline, true, func(ctx context.Context) (bool, error) {
		left = nil
		var claims corev1.PersistentVolumeClaimList
		var pods corev1.PodList
		if err := api.List(ctx, &claims, client.InNamespace(populatorNS)); err != nil {
			return false, err
		}
		if err := api.List(ctx, &pods, client.InNamespace(populatorNS), client.HasLabels{v1alpha1.LabelClaimUID}); err != nil {
			return false, err
		}
		for _, c := range claims.Items {
			left = append(left, "claim "+c.Name)
		}
		for _, p := range pods.Items {
			left = append(left, "pod "+p.Name)
		}
		return len(left) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("left in namespace %s: %s: %w", populatorNS, strings.Join(left, ", "), err)
	}
	return nil
}

// world is a namespace of a test's own.
type world struct {
	*testing.T
	ns string
	// removal is how long the namespace may take to go.
	removal time.Duration
}

// removals are the namespaces that are being removed: when the test that each belongs to ended, the next one begins. Their removal
// must not hang, because that is what a claim that was left in Terminating looks like; a test that has ended can fail no more, so the
// run does.
var removals struct {
	sync.WaitGroup
	mu     sync.Mutex
	failed []error
}

// removed says which namespaces did not go.
func removed(context.Context) error {
	removals.Wait()
	return errors.Join(removals.failed...)
}

// newWorld makes a namespace, and removes it after the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	if err := api.Create(context.Background(), ns); err != nil {
		t.Fatalf("create a namespace: %v", err)
	}
	w := &world{T: t, ns: ns.Name, removal: namespaceDeadline}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(dump(ns.Name))
		}
		removals.Go(func() {
			if err := remove(context.Background(), ns, w.removal); err != nil {
				err = fmt.Errorf("namespace of %s: %w\n%s", t.Name(), err, dump(ns.Name))
				removals.mu.Lock()
				defer removals.mu.Unlock()
				removals.failed = append(removals.failed, err)
			}
		})
	})
	return w
}

// newWorldAlone is newWorld for a test that is not parallel and that nothing of an earlier one may meet.
func newWorldAlone(t *testing.T) *world {
	t.Helper()
	removals.Wait()
	return newWorld(t)
}

// remove deletes a namespace and waits until it is gone.
func remove(ctx context.Context, ns *corev1.Namespace, limit time.Duration) error {
	if err := api.Delete(ctx, ns); err != nil {
		return fmt.Errorf("delete %s: %w", ns.Name, err)
	}
	var state error
	err := wait.PollUntilContextTimeout(ctx, time.Second, limit, false, func(ctx context.Context) (bool, error) {
		state = api.Get(ctx, client.ObjectKeyFromObject(ns), ns)
		// One failed read says nothing.
		return apierrors.IsNotFound(state), nil
	})
	if err != nil {
		return fmt.Errorf("%s is not gone after %v: %w; its conditions: %v", ns.Name, limit, errors.Join(err, state), ns.Status.Conditions)
	}
	return nil
}

// dump returns what someone would look at who has to find out why a test in this namespace failed.
func dump(ns string) string {
	var seen strings.Builder
	for _, args := range [][]string{
		{"get", "pvc,volumesnapshot,cbr,pod", "-n", ns, "-o", "wide"},
		{"get", "cbr", "-n", ns, "-o", "yaml"},
		{"get", "events", "-n", ns},
		{"get", "pvc,pod", "-n", populatorNS},
		{"get", "events", "-n", populatorNS},
		{"logs", "-n", populatorNS, "deployment/cbt-populator-controller", "--tail=60"},
	} {
		out, _ := exec.Command("kubectl", args...).CombinedOutput()
		fmt.Fprintf(&seen, "kubectl %s\n%s\n", strings.Join(args, " "), out)
	}
	return seen.String()
}

// eventually waits until check says that what is true. The check's second result is the state that a failure prints.
func (w *world) eventually(what string, limit time.Duration, check func(context.Context) (bool, string)) {
	w.Helper()
	var state string
	err := wait.PollUntilContextTimeout(context.Background(), pollInterval, limit, true, func(ctx context.Context) (done bool, _ error) {
		done, state = check(ctx)
		return done, nil
	})
	if err != nil {
		w.Fatalf("%s: not within %s; last seen: %s", what, limit, state)
	}
}

func (w *world) create(objs ...client.Object) {
	w.Helper()
	for _, obj := range objs {
		obj.SetNamespace(w.ns)
		if err := api.Create(context.Background(), obj); err != nil {
			w.Fatalf("create %T %s: %v", obj, obj.GetName(), err)
		}
	}
}

func (w *world) get(name string, obj client.Object) error {
	return api.Get(context.Background(), client.ObjectKey{Namespace: w.ns, Name: name}, obj)
}

// kubectl runs kubectl in the test's namespace and returns what it printed.
func (w *world) kubectl(args ...string) string {
	w.Helper()
	return string(w.run(nil, append([]string{"-n", w.ns}, args...)...))
}

// exec runs a shell script in a pod of the test's and returns its standard output.
func (w *world) exec(pod, script string) []byte {
	w.Helper()
	return w.run(strings.NewReader(script), "-n", w.ns, "exec", "-i", pod, "--", "sh", "-e")
}

func (w *world) run(stdin *strings.Reader, args ...string) []byte {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if err := cmd.Run(); err != nil {
		w.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.Bytes()
}
