package cluster

import (
	"context"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

const (
	// namespace is where everything that is measured lives; the populators' own objects are in theirs.
	namespace = "cbt-bench"
	// installed is where cbt-populator is; the API server writes down what its service accounts ask for.
	installed = "cbt-populator"
	// storageClass and snapshotClass are the local cluster's.
	storageClass  = "csi-hostpath-sc"
	snapshotClass = "csi-hostpath-snapclass"
	// image has a shell, dd and true.
	image = "busybox:stable"
	// poll is how often is looked whether something is done, for a few objects; lists of many cost the API server more.
	poll, pollMany = 50 * time.Millisecond, time.Second
	// patience bounds every wait.
	patience = 8 * time.Minute
)

// world is a cluster with an empty namespace.
type world struct {
	client.Client
	config *rest.Config
}

func connect(ctx context.Context, kubeconfig string) (*world, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	// What is measured must not wait for this client.
	config.QPS = -1
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, snapshotv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(types); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	c, err := client.New(config, client.Options{Scheme: types})
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	w := &world{Client: c, config: config}
	if err := w.remove(ctx); err != nil {
		return nil, err
	}
	return w, w.create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
}

// remove removes the namespace, if it is there, and waits until it is gone.
func (w *world) remove(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if err := client.IgnoreNotFound(w.Delete(ctx, ns)); err != nil {
		return fmt.Errorf("remove namespace %s: %w", namespace, err)
	}
	return w.until(ctx, "namespace "+namespace+" is gone", func(ctx context.Context) (bool, error) {
		err := w.Get(ctx, client.ObjectKeyFromObject(ns), ns)
		return err != nil, client.IgnoreNotFound(err)
	})
}

func (w *world) create(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		if err := w.Create(ctx, o); err != nil {
			return fmt.Errorf("create %T %s: %w", o, o.GetName(), err)
		}
	}
	return nil
}

// until waits until done returns true.
func (w *world) until(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	return untilEvery(ctx, poll, what, done)
}

// untilEvery looks so often whether done returns true.
func untilEvery(ctx context.Context, every time.Duration, what string, done func(context.Context) (bool, error)) error {
	if err := wait.PollUntilContextTimeout(ctx, every, patience, true, done); err != nil {
		return fmt.Errorf("wait until %s: %w", what, err)
	}
	return nil
}

// pollFor returns how often to list n objects, so that what is measured is not the listing.
func pollFor(n int) time.Duration { return min(max(poll, time.Duration(n)*poll/10), pollMany) }

// count waits until so many objects of the list meet the condition.
func (w *world) count(ctx context.Context, what string, n int, in string, list client.ObjectList, meet func() int) error {
	return untilEvery(ctx, pollFor(n), fmt.Sprintf("%d %s", n, what), func(ctx context.Context) (bool, error) {
		if err := w.List(ctx, list, client.InNamespace(in)); err != nil {
			return false, err
		}
		return meet() == n, nil
	})
}

func (w *world) awaitPods(ctx context.Context, n int) error {
	var pods corev1.PodList
	return w.count(ctx, "pods Succeeded", n, namespace, &pods, func() (done int) {
		for _, p := range pods.Items {
			if p.Status.Phase == corev1.PodSucceeded {
				done++
			}
		}
		return done
	})
}

func (w *world) awaitBound(ctx context.Context, prefix string, n int) error {
	var claims corev1.PersistentVolumeClaimList
	return w.count(ctx, "claims Bound", n, namespace, &claims, func() (done int) {
		for _, c := range claims.Items {
			if len(c.Name) > len(prefix) && c.Name[:len(prefix)] == prefix && c.Status.Phase == corev1.ClaimBound {
				done++
			}
		}
		return done
	})
}

// awaitNone waits until the namespace has neither claims nor pods, but for those that are kept: a source's, a controller's.
func (w *world) awaitNone(ctx context.Context, in string, kept func(client.Object) bool) error {
	var claims corev1.PersistentVolumeClaimList
	var pods corev1.PodList
	left := func() (n int) {
		for i := range claims.Items {
			if !kept(&claims.Items[i]) {
				n++
			}
		}
		for i := range pods.Items {
			if !kept(&pods.Items[i]) {
				n++
			}
		}
		return n
	}
	return w.until(ctx, "nothing is left in "+in, func(ctx context.Context) (bool, error) {
		if err := w.List(ctx, &claims, client.InNamespace(in)); err != nil {
			return false, err
		}
		if err := w.List(ctx, &pods, client.InNamespace(in)); err != nil {
			return false, err
		}
		return left() == 0, nil
	})
}
