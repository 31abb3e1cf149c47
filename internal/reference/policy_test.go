package reference

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

const deadline = time.Minute

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	os.Exit(apiserver.Main(m))
}

// started is a policy that runs, and what its source asked to look at.
type started struct {
	*testing.T
	*Policy
	asked chan string
}

// start runs a policy until the test ends; it has decided when start returns.
func start(t *testing.T, config *rest.Config) *started {
	t.Helper()
	p, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	s := &started{T: t, Policy: p, asked: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	source := p.Source(func(_ context.Context, namespace string) []reconcile.Request {
		s.asked <- namespace
		return nil
	}).(*grantSource)
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	t.Cleanup(queue.ShutDown)
	waiting, done := context.WithTimeout(ctx, deadline)
	defer done()
	if err := errors.Join(source.Start(ctx, queue), source.WaitForSync(waiting)); err != nil {
		t.Fatal(err)
	}
	return s
}

// until waits, from one change that is told of to the next, until the claim is refused with the reason; "" for permitted.
func (s *started) until(reason string) {
	s.Helper()
	timeout := time.After(deadline)
	for {
		got := ""
		if r := s.Refused(aClaim(nil)); r != nil {
			got = r.Reason
		}
		if got == reason {
			return
		}
		select {
		case <-s.asked:
		case <-timeout:
			s.Fatalf("the claim is refused with %q, want %q", got, reason)
		}
	}
}

func (s *started) withdrawn() bool {
	s.Helper()
	withdrawn, err := s.Withdrawn(s.Context(), aClaim(nil))
	if err != nil {
		s.Error(err)
	}
	return withdrawn
}

func install(t *testing.T, s *apiserver.Server) {
	t.Helper()
	if err := s.InstallReferenceGrants(); err != nil {
		t.Fatal(err)
	}
}

func uninstall(t *testing.T, s *apiserver.Server) {
	t.Helper()
	if err := s.UninstallReferenceGrants(); err != nil {
		t.Fatal(err)
	}
}

// TestPolicyFollowsTheCluster: the kind is installed, a grant comes, changes and goes, the kind goes and comes again.
func TestPolicyFollowsTheCluster(t *testing.T) {
	server := apiserver.Shared(t)
	core, err := kubernetes.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "app"}}
	if _, err := core.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	p := start(t, server.Config)
	p.until(ReasonUnavailable)
	if !strings.Contains(p.Refused(aClaim(nil)).Message, "install its definition") || !p.withdrawn() {
		t.Errorf("without the kind: %+v", p.Refused(aClaim(nil)))
	}
	select {
	case <-p.Ready():
		t.Error("ready without the kind")
	default:
	}

	install(t, server)
	p.until(ReasonNotGranted)
	<-p.Ready()
	grants := p.gateway.GatewayV1beta1().ReferenceGrants("app")
	grant, err := grants.Create(t.Context(), aGrant(func(g *gatewayv1beta1.ReferenceGrant) { g.Spec.From[0].Namespace = "stranger" }), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !p.withdrawn() {
		t.Error("a grant to somebody else keeps it")
	}
	grant.Spec.From[0].Namespace = "backup"
	if _, err = grants.Update(t.Context(), grant, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.until("")
	if p.withdrawn() {
		t.Error("withdrawn although it is granted")
	}
	if err := grants.Delete(t.Context(), grant.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.until(ReasonNotGranted)
	if !p.withdrawn() {
		t.Error("not withdrawn although the grant is gone")
	}

	uninstall(t, server)
	p.until(ReasonUnavailable)
	install(t, server)
	if _, err := grants.Create(t.Context(), aGrant(nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.until("")
	uninstall(t, server)
	p.until(ReasonUnavailable)
	if !p.withdrawn() {
		t.Error("not withdrawn although the kind is gone")
	}
}

// TestPolicyWithoutPermission: who cannot read the grants says so, and nothing that was begun is given up for it.
func TestPolicyWithoutPermission(t *testing.T) {
	server := apiserver.Shared(t)
	config := rest.CopyConfig(server.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "nobody", Groups: []string{"system:authenticated"}}
	p := start(t, config)
	p.until(ReasonUnavailable)
	if r := p.Refused(aClaim(nil)); !strings.Contains(r.Message, "may not read the definition of ReferenceGrants") {
		t.Errorf("the claim hears %q", r.Message)
	}
	if p.withdrawn() {
		t.Error("withdrawn, although nobody could look")
	}
}
