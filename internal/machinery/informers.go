package machinery

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// sharedInformers are the informers that every library instance uses instead of its own. Left alone, each instance would
// list and watch every claim, volume and pod of the cluster once more.
type sharedInformers struct {
	claims, classes toolscache.SharedIndexInformer
}

// newSharedInformers takes the informers from the manager's cache, which must be running.
func newSharedInformers(ctx context.Context, c cache.Informers) (sharedInformers, error) {
	claims, err := sharedInformer(ctx, c, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return sharedInformers{}, err
	}
	classes, err := sharedInformer(ctx, c, &storagev1.StorageClass{})
	if err != nil {
		return sharedInformers{}, err
	}
	return sharedInformers{claims: claims, classes: classes}, nil
}

func sharedInformer(ctx context.Context, c cache.Informers, obj client.Object) (toolscache.SharedIndexInformer, error) {
	informer, err := c.GetInformer(ctx, obj)
	if err != nil {
		return nil, fmt.Errorf("get informer of %T: %w", obj, err)
	}
	shared, ok := informer.(toolscache.SharedIndexInformer)
	if !ok {
		return nil, fmt.Errorf("informer of %T is a %T: the manager's cache must hold it for all namespaces, without a namespace filter", obj, informer)
	}
	return shared, nil
}

// injection puts informers into the informer factory of one library instance before the library asks for them.
type injection struct {
	informers sharedInformers
	// registered is closed once the library has added its first handler: by then it has registered its signal handler and
	// its metrics, both of which touch state of the whole process.
	registered chan struct{}
	once       sync.Once
}

// option returns the informer option that does it. Options run right after the library has made its clients.
//
// The parameter type of informers.SharedInformerOption is not exported; a type parameter stands for it.
func (i *injection) option() informers.SharedInformerOption {
	return withFactory(informers.WithNamespace(metav1.NamespaceAll), i.fill)
}

func withFactory[F any](option func(F) F, use func(informers.SharedInformerFactory)) func(F) F {
	return func(f F) F {
		f = option(f)
		use(any(f).(informers.SharedInformerFactory))
		return f
	}
}

// fill registers an informer for each type that the library asks for; a factory keeps the first one of a type.
func (i *injection) fill(factory informers.SharedInformerFactory) {
	for _, informer := range []struct {
		object   runtime.Object
		informer toolscache.SharedIndexInformer
	}{
		{&corev1.PersistentVolumeClaim{}, &attached{SharedIndexInformer: i.informers.claims, added: i.markRegistered}},
		{&storagev1.StorageClass{}, &attached{SharedIndexInformer: lastingClasses{i.informers.classes}, added: i.markRegistered}},
		// With provider functions the library reads volumes from the API server, never from its cache, and pods not at
		// all; their events would only wake claims that our own watches wake.
		{&corev1.PersistentVolume{}, newSilentInformer(&corev1.PersistentVolume{})},
		{&corev1.Pod{}, newSilentInformer(&corev1.Pod{})},
	} {
		factory.InformerFor(informer.object, func(kubernetes.Interface, time.Duration) toolscache.SharedIndexInformer {
			return informer.informer
		})
	}
}

func (i *injection) markRegistered() { i.once.Do(func() { close(i.registered) }) }

// attached is an informer that someone else runs.
type attached struct {
	toolscache.SharedIndexInformer
	added func()
}

// Run implements toolscache.SharedInformer: the owner runs it.
func (*attached) Run(<-chan struct{}) {}

// RunWithContext implements toolscache.SharedInformer: the owner runs it.
func (*attached) RunWithContext(context.Context) {}

// AddEventHandler implements toolscache.SharedInformer.
func (a *attached) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	defer a.added()
	return a.SharedIndexInformer.AddEventHandler(handler)
}

// silent is an informer of a type of which there seem to be no objects. It never runs.
type silent struct {
	toolscache.SharedIndexInformer
}

func newSilentInformer(obj runtime.Object) silent {
	return silent{toolscache.NewSharedIndexInformer(&toolscache.ListWatch{}, obj, 0, toolscache.Indexers{
		toolscache.NamespaceIndex: toolscache.MetaNamespaceIndexFunc,
	})}
}

// Run implements toolscache.SharedInformer.
func (silent) Run(<-chan struct{}) {}

// RunWithContext implements toolscache.SharedInformer.
func (silent) RunWithContext(context.Context) {}

// HasSynced implements toolscache.SharedInformer; without it the library would wait for good.
func (silent) HasSynced() bool { return true }

// lastingClasses is the informer of StorageClasses as the library sees it: a class that is gone seems to exist still. The
// library looks the class up on every sync and stops without it, although it needs one only to make the prime claim; a
// volume that was filled when its class was deleted would never be handed over. What does need the class, the gate and
// the mutator keep from the library.
type lastingClasses struct {
	toolscache.SharedIndexInformer
}

// GetIndexer implements toolscache.SharedIndexInformer.
func (c lastingClasses) GetIndexer() toolscache.Indexer {
	return lastingIndexer{c.SharedIndexInformer.GetIndexer()}
}

type lastingIndexer struct {
	toolscache.Indexer
}

// GetByKey implements toolscache.Store.
func (i lastingIndexer) GetByKey(key string) (any, bool, error) {
	class, exists, err := i.Indexer.GetByKey(key)
	if exists || err != nil {
		return class, exists, err
	}
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: key}}, true, nil
}
