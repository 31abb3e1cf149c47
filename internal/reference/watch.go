package reference

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsinformers "k8s.io/apiextensions-apiserver/pkg/client/informers/externalversions"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
	gatewayinformers "sigs.k8s.io/gateway-api/pkg/client/informers/externalversions"
	gatewaylisters "sigs.k8s.io/gateway-api/pkg/client/listers/apis/v1beta1"
)

// definition is the name of the definition of ReferenceGrants.
const definition = "referencegrants." + gatewayv1beta1.GroupName

// notInstalled is what claims hear while the cluster lacks the kind.
const notInstalled = "The cluster does not serve the kind ReferenceGrant of gateway.networking.k8s.io/v1beta1: " +
	"install its definition, of the Gateway API. Nothing has to be restarted then."

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Policy) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable: it watches until ctx ends. That ReferenceGrants do not exist or cannot be read is no
// error; claims hear of it.
func (p *Policy) Start(ctx context.Context) error {
	factory := apiextensionsinformers.NewSharedInformerFactoryWithOptions(p.extensions, 0,
		apiextensionsinformers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", definition).String()
		}))
	definitions := factory.Apiextensions().V1().CustomResourceDefinitions().Informer()
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	poke := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if err := p.prepare(definitions, "the definition of ReferenceGrants", poke); err != nil {
		return err
	}
	go definitions.RunWithContext(ctx)
	if !toolscache.WaitForCacheSync(ctx.Done(), definitions.HasSynced) {
		return nil
	}
	return p.follow(ctx, changed, func() bool { return slices.ContainsFunc(definitions.GetStore().List(), serves) })
}

// follow watches ReferenceGrants for as long as they are served, which it asks whenever changed delivers, until ctx ends.
func (p *Policy) follow(ctx context.Context, changed <-chan struct{}, served func() bool) error {
	logger := log.FromContext(ctx).WithName("references")
	none := &watch{cancel: func() {}}
	watching := none
	for {
		select {
		case <-ctx.Done():
			watching.cancel()
			return nil
		case grants := <-watching.synced:
			logger.Info("references to other namespaces go by ReferenceGrants")
			p.know(grants, false, "")
		case <-changed:
			switch {
			case !served():
				watching.cancel()
				watching = none
				logger.Info("references to other namespaces are switched on, but the cluster has no ReferenceGrants", "missing", definition)
				p.know(nil, true, notInstalled)
			case watching == none:
				var err error
				if watching, err = p.watchGrants(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// watch is a watch of ReferenceGrants. Its channel delivers them once all are known; it is nil while none are watched.
type watch struct {
	cancel context.CancelFunc
	synced chan gatewaylisters.ReferenceGrantLister
}

// serves reports whether a definition is established and has the version that we read. One that is being deleted still serves
// the objects that are not deleted yet.
func serves(o any) bool {
	crd, ok := o.(*apiextensionsv1.CustomResourceDefinition)
	return ok &&
		slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
		}) &&
		slices.ContainsFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool {
			return v.Name == gatewayv1beta1.GroupVersion.Version && v.Served
		})
}

// watchGrants starts to watch ReferenceGrants until ctx ends or the watch is cancelled.
func (p *Policy) watchGrants(ctx context.Context) (*watch, error) {
	grants := gatewayinformers.NewSharedInformerFactory(p.gateway, 0).Gateway().V1beta1().ReferenceGrants()
	informer := grants.Informer()
	changed := func(o any) {
		if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if grant, ok := o.(*gatewayv1beta1.ReferenceGrant); ok {
			p.notify(grant.Namespace)
		}
	}
	if err := p.prepare(informer, "ReferenceGrants", changed); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{cancel: cancel, synced: make(chan gatewaylisters.ReferenceGrantLister)}
	go informer.RunWithContext(ctx)
	go func() {
		if !toolscache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			return
		}
		select {
		case w.synced <- grants.Lister():
		case <-ctx.Done():
		}
	}()
	return w, nil
}

// prepare has changed called for every change of an object, and claims told when the objects may not be read.
func (p *Policy) prepare(informer toolscache.SharedIndexInformer, what string, changed func(any)) error {
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, o any) { changed(o) }, DeleteFunc: changed,
	}); err != nil {
		return fmt.Errorf("watch %s: %w", what, err)
	}
	err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *toolscache.Reflector, err error) {
		if apierrors.IsForbidden(err) && !informer.HasSynced() {
			p.know(nil, false, fmt.Sprintf("The controller may not read %s; install the permissions of config/components/cross-namespace. (%v)", what, err))
		}
		toolscache.DefaultWatchErrorHandler(ctx, r, err)
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", what, err)
	}
	return nil
}

// Source returns a source of requests for a controller: those that requests returns for a namespace whose ReferenceGrants
// changed, or "" when they changed everywhere. The controller starts once the policy knows what it goes by, so that no
// reference is taken for one that is not granted only because nobody has looked.
func (p *Policy) Source(requests func(ctx context.Context, namespace string) []reconcile.Request) source.Source {
	return &grantSource{policy: p, requests: requests}
}

type grantSource struct {
	policy   *Policy
	requests func(context.Context, string) []reconcile.Request
}

var _ source.SyncingSource = &grantSource{}

// Start implements source.Source.
func (s *grantSource) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	if s.policy == nil {
		return nil
	}
	cancel := s.policy.subscribe(func(namespace string) {
		for _, request := range s.requests(ctx, namespace) {
			queue.Add(request)
		}
	})
	context.AfterFunc(ctx, cancel)
	return nil
}

// WaitForSync implements source.SyncingSource.
func (s *grantSource) WaitForSync(ctx context.Context) error {
	if s.policy == nil {
		return nil
	}
	select {
	case <-s.policy.looked:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil // the manager stops
		}
		return fmt.Errorf("wait until it is known which ReferenceGrants there are: %w", ctx.Err())
	}
}
