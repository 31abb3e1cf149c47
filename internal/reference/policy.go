package reference

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
	gatewaylisters "sigs.k8s.io/gateway-api/pkg/client/listers/apis/v1beta1"
)

// Policy decides which claims may refer to ChangedBlockRanges of other namespaces. A nil Policy refuses all of them. It is
// safe for concurrent use.
//
// It is a Runnable of the manager, on every replica, so that a new leader need not wait for it. It needs no kind to be
// installed: the definition of ReferenceGrants is watched, and ReferenceGrants are watched for as long as it is there.
type Policy struct {
	extensions apiextensionsclient.Interface
	gateway    gatewayclient.Interface

	mu sync.Mutex
	// grants is nil unless all ReferenceGrants are known.
	grants gatewaylisters.ReferenceGrantLister
	// unavailable says why grants is nil; absent says that it is because there can be none.
	unavailable string
	absent      bool
	subscribers map[int]func(namespace string)
	subscribed  int

	// looked is closed once it is known whether there are ReferenceGrants, or that they cannot be read.
	looked     chan struct{}
	lookedOnce sync.Once
	ready      chan struct{}
	readyOnce  sync.Once
}

// New returns a policy that goes by the ReferenceGrants of the cluster that config reaches, once it is started.
func New(config *rest.Config) (*Policy, error) {
	extensions, err := apiextensionsclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client of the kinds' definitions: %w", err)
	}
	gateway, err := gatewayclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client of ReferenceGrants: %w", err)
	}
	return &Policy{
		extensions: extensions, gateway: gateway,
		unavailable: "The controller has not read the cluster's ReferenceGrants yet.",
		subscribers: map[int]func(string){},
		looked:      make(chan struct{}), ready: make(chan struct{}),
	}, nil
}

// Refused returns why claim may not be filled from the ChangedBlockRange that it refers to, or nil. It goes by what was seen
// last and asks nobody.
func (p *Policy) Refused(claim *corev1.PersistentVolumeClaim) *Refusal {
	source, ok := Of(claim)
	if !ok || source.Namespace == claim.Namespace {
		return nil
	}
	if p == nil {
		return refuse(ReasonDisabled, source, "References to other namespaces are switched off; an administrator switches them on "+
			"with crossNamespace.enabled in the controller's configuration and the permissions of config/components/cross-namespace.")
	}
	p.mu.Lock()
	grants, unavailable := p.grants, p.unavailable
	p.mu.Unlock()
	if grants == nil {
		return refuse(ReasonUnavailable, source, "%s", unavailable)
	}
	all, err := grants.ReferenceGrants(source.Namespace).List(labels.Everything())
	if err != nil {
		return refuse(ReasonUnavailable, source, "The controller cannot read the ReferenceGrants there: %v.", err)
	}
	for _, grant := range all {
		if permits(grant, claim.Namespace, source) {
			return nil
		}
	}
	return notGranted(claim, source)
}

// Withdrawn reports whether it is certain that claim may not be filled from the ChangedBlockRange that it refers to: what
// was seen last says so, and so does the API server. It is for what cannot be undone.
func (p *Policy) Withdrawn(ctx context.Context, claim *corev1.PersistentVolumeClaim) (bool, error) {
	refusal := p.Refused(claim)
	if refusal == nil || p == nil {
		return refusal != nil, nil
	}
	if !p.decided() {
		return false, nil
	}
	source, _ := Of(claim)
	all, err := p.gateway.GatewayV1beta1().ReferenceGrants(source.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) { // not found: there is no such kind
		return false, fmt.Errorf("list ReferenceGrants of namespace %s: %w", source.Namespace, err)
	}
	for i := range all.Items {
		if permits(&all.Items[i], claim.Namespace, source) {
			return false, nil
		}
	}
	return true, nil
}

// decided reports whether it is known which ReferenceGrants there are, if only that there can be none.
func (p *Policy) decided() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.grants != nil || p.absent
}

// Ready returns a channel that is closed once ReferenceGrants are known for the first time; nil if they never will be.
func (p *Policy) Ready() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.ready
}

// subscribe has f called with the namespace whose ReferenceGrants changed, or "" for all of them, until cancel is called.
func (p *Policy) subscribe(f func(namespace string)) (cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subscribed++
	n := p.subscribed
	p.subscribers[n] = f
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.subscribers, n)
	}
}

func (p *Policy) notify(namespace string) {
	p.mu.Lock()
	subscribers := make([]func(string), 0, len(p.subscribers))
	for _, f := range p.subscribers {
		subscribers = append(subscribers, f)
	}
	p.mu.Unlock()
	for _, f := range subscribers {
		f(namespace)
	}
}

// know takes note of what was found: all grants, or that there can be none, or neither because they cannot be read.
func (p *Policy) know(grants gatewaylisters.ReferenceGrantLister, absent bool, unavailable string) {
	p.mu.Lock()
	same := grants == nil && p.grants == nil && p.unavailable == unavailable
	p.grants, p.absent, p.unavailable = grants, absent, unavailable
	p.mu.Unlock()
	p.lookedOnce.Do(func() { close(p.looked) })
	if grants != nil {
		p.readyOnce.Do(func() { close(p.ready) })
	}
	if !same {
		p.notify("")
	}
}
