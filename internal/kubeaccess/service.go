package kubeaccess

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	metadatav1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/internal/snapmeta"
)

// ServiceFlags replace what the cluster says of a driver's metadata service, and say with whose token it is asked. The zero
// value takes everything from the cluster.
type ServiceFlags struct {
	// Address is host:port to connect to instead of the service's own address, such as the end of a forwarded port. The
	// certificate is still checked against the name in the service's own address, unless ServerName says otherwise.
	Address, ServerName string
	// CAFile is a PEM bundle that replaces the service's.
	CAFile string
	// TokenFile holds a token for the service's audience. Without it one is asked for.
	TokenFile string
	// ServiceAccount is NAME or NAMESPACE/NAME of the account that the token is of; empty: the one that the command runs
	// as, else "default".
	ServiceAccount string
}

// Service is a driver's metadata service, with what it takes to be let in.
type Service struct {
	// Endpoint and Token are for snapmeta.Config. Both ask the cluster afresh when it is time to.
	Endpoint func() (snapmeta.Endpoint, error)
	Token    func() (string, error)
	// Address is where the service says it listens, and Account whose token it is shown.
	Address, Account string
}

// tokenLifetime is the shortest that the API server grants. Half of it is used, so that a token is still good at the end of
// the call that it opens.
const tokenLifetime = 10 * time.Minute

// Service finds the metadata service of a driver and makes ready for asking it about snapshots of namespace. It fails at
// once if no token can be had.
func (a *Access) Service(ctx context.Context, driver, namespace string, f ServiceFlags) (*Service, error) {
	found, err := a.readService(ctx, driver)
	if err != nil {
		return nil, err
	}
	s := &Service{Address: found.Spec.Address}
	s.Endpoint = func() (snapmeta.Endpoint, error) {
		fresh, err := a.readService(ctx, driver)
		if err != nil {
			return snapmeta.Endpoint{}, err
		}
		return f.endpoint(fresh)
	}
	if f.TokenFile != "" {
		s.Account = "the owner of the token in " + f.TokenFile
		s.Token = snapmeta.TokenFile(f.TokenFile)
	} else {
		account, err := a.account(ctx, namespace, f.ServiceAccount)
		if err != nil {
			return nil, err
		}
		s.Account = "service account " + account.String()
		s.Token = (&tokenSource{access: a, ctx: ctx, account: account, audience: found.Spec.Audience}).token
	}
	if _, err := s.Token(); err != nil {
		return nil, err
	}
	return s, nil
}

func (a *Access) readService(ctx context.Context, driver string) (*metadatav1.SnapshotMetadataService, error) {
	var service metadatav1.SnapshotMetadataService
	found, err := a.read(ctx, client.ObjectKey{Name: driver}, &service, "SnapshotMetadataService")
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("MetadataServiceNotFound: driver %s has no SnapshotMetadataService of its name: the driver's administrator must deploy the snapshot metadata sidecar", driver)
	}
	return &service, nil
}

// endpoint returns where to connect and whom to trust there.
func (f *ServiceFlags) endpoint(service *metadatav1.SnapshotMetadataService) (snapmeta.Endpoint, error) {
	e := snapmeta.Endpoint{Address: service.Spec.Address, CA: service.Spec.CACert, ServerName: f.ServerName}
	if f.Address != "" {
		e.Address = f.Address
		if host, _, err := net.SplitHostPort(service.Spec.Address); err == nil {
			e.ServerName = cmp.Or(f.ServerName, host)
		}
	}
	if f.CAFile != "" {
		ca, err := os.ReadFile(f.CAFile)
		if err != nil {
			return snapmeta.Endpoint{}, fmt.Errorf("read the service's CA: %w", err)
		}
		e.CA = ca
	}
	return e, nil
}

// account returns the service account that wanted names, or the one that the command runs as, or "default".
func (a *Access) account(ctx context.Context, namespace, wanted string) (client.ObjectKey, error) {
	if wanted != "" {
		if ns, name, ok := strings.Cut(wanted, "/"); ok {
			return client.ObjectKey{Namespace: ns, Name: name}, nil
		}
		return client.ObjectKey{Namespace: namespace, Name: wanted}, nil
	}
	review := &authenticationv1.SelfSubjectReview{}
	// Kubernetes before 1.28 does not tell: then it is "default".
	if err := a.Create(ctx, review); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return client.ObjectKey{}, Explain("ask who you are", err)
	}
	if account, ok := strings.CutPrefix(review.Status.UserInfo.Username, "system:serviceaccount:"); ok {
		if ns, name, ok := strings.Cut(account, ":"); ok {
			return client.ObjectKey{Namespace: ns, Name: name}, nil
		}
	}
	return client.ObjectKey{Namespace: namespace, Name: "default"}, nil
}

// tokenSource keeps a token and replaces it in time.
type tokenSource struct {
	access   *Access
	ctx      context.Context
	account  client.ObjectKey
	audience string

	mu    sync.Mutex
	last  string
	until time.Time
}

func (s *tokenSource) token() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.until) {
		return s.last, nil
	}
	seconds := int64(tokenLifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{s.audience}, ExpirationSeconds: &seconds,
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: s.account.Namespace, Name: s.account.Name}}
	err := s.access.SubResource("token").Create(s.ctx, account, request)
	switch {
	case apierrors.IsForbidden(err):
		return "", fmt.Errorf("you may not make tokens for service account %s: ask for the permission to create serviceaccounts/token for it, name another one with --service-account, or give a token with --token-file: %w", s.account, err)
	case apierrors.IsNotFound(err):
		return "", fmt.Errorf("service account %s does not exist: name one with --service-account: %w", s.account, err)
	case err != nil:
		return "", Explain(fmt.Sprintf("make a token for service account %s", s.account), err)
	}
	s.last, s.until = request.Status.Token, time.Now().Add(time.Until(request.Status.ExpirationTimestamp.Time)/2)
	return s.last, nil
}
