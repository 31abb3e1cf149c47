package machinery

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/reference"
)

// Field indexes of PersistentVolumeClaims in the manager's cache. The names are this package's own: an index can be
// registered only once, and others may index the same fields.
const (
	// indexSource maps "namespace/name" of a ChangedBlockRange to the claims that are filled from it.
	indexSource = "machinery.source"
	// indexUID maps a UID to the claim, for claims that are filled from a ChangedBlockRange, and those that have the finalizer
	// although they are not.
	indexUID = "machinery.uid"
	// indexClass maps a StorageClass to the claims that are filled from a ChangedBlockRange and name it.
	indexClass = "machinery.class"
	// indexForeign maps a namespace, and the value anywhere, to the claims of other namespaces that refer to it.
	indexForeign = "machinery.foreign"
)

// anywhere is a value of indexForeign that no namespace has.
const anywhere = "*"

// registerIndexes registers this package's field indexes. Call it before the cache starts.
func registerIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for name, extract := range map[string]client.IndexerFunc{
		indexSource: func(o client.Object) []string {
			if source, ok := reference.Of(o.(*corev1.PersistentVolumeClaim)); ok {
				return []string{source.String()}
			}
			return nil
		},
		indexUID: func(o client.Object) []string {
			if concernsUs(o.(*corev1.PersistentVolumeClaim)) {
				return []string{string(o.GetUID())}
			}
			return nil
		},
		indexClass: func(o client.Object) []string {
			claim := o.(*corev1.PersistentVolumeClaim)
			if _, ok := reference.Of(claim); ok && claim.Spec.StorageClassName != nil {
				return []string{*claim.Spec.StorageClassName}
			}
			return nil
		},
		indexForeign: func(o client.Object) []string {
			claim := o.(*corev1.PersistentVolumeClaim)
			if source, ok := reference.Of(claim); ok && source.Namespace != claim.Namespace {
				return []string{source.Namespace, anywhere}
			}
			return nil
		},
	} {
		if err := indexer.IndexField(ctx, &corev1.PersistentVolumeClaim{}, name, extract); err != nil {
			return fmt.Errorf("index claims by %s: %w", name, err)
		}
	}
	return nil
}

// concernsUs reports whether there may be something to do for a claim: it refers to a ChangedBlockRange, or has the finalizer.
func concernsUs(claim *corev1.PersistentVolumeClaim) bool {
	_, refers := reference.Of(claim)
	return refers || hasFinalizer(claim)
}

// gate decides which claims the library may work on. It reads caches only.
type gate struct {
	cache      client.Reader
	namespace  string
	references *reference.Policy
	settling   *settling
	// running ends when the manager stops: queues ask without a context of their own, and a cache that is stopped while it
	// starts would let them wait for its objects for good.
	running context.Context
	end     context.CancelFunc
}

func newGate(cache client.Reader, namespace string, references *reference.Policy, settling *settling) *gate {
	g := &gate{cache: cache, namespace: namespace, references: references, settling: settling}
	g.running, g.end = context.WithCancel(context.Background()) //nolint:gosec // the library calls end
	return g
}

// admitOwn is admit for claims that refer to a ChangedBlockRange of their own namespace, admitForeign for the others.
func (g *gate) admitOwn(key string) bool     { return g.admit(key, false) }
func (g *gate) admitForeign(key string) bool { return g.admit(key, true) }

// admit reports whether the library may work on the claim with this key now. What it refuses, a watch brings back: of
// claims (the library's own), of ChangedBlockRanges and StorageClasses (wake.go), of ReferenceGrants (foreign.go), or the
// releaser takes care of it.
func (g *gate) admit(key string, foreign bool) bool {
	name, ok := parseClaimKey(key)
	if !ok || name.Namespace == g.namespace {
		return false
	}
	ctx := g.running
	var claim corev1.PersistentVolumeClaim
	if err := g.cache.Get(ctx, name, &claim); err != nil {
		return false
	}
	source, ok := reference.Of(&claim)
	if !ok || claim.DeletionTimestamp != nil {
		// A claim that is being deleted is the releaser's.
		return false
	}
	switch {
	case reference.Foreign(&claim) != foreign:
		// Another queue's.
		return false
	case g.settling.has(&claim):
		// Its next version brings it back.
		return false
	case g.references.Refused(&claim) != nil:
		// What was begun is the releaser's, which makes it undone. No object of the other namespace is looked at.
		return false
	case !g.exists(ctx, source):
		// What was begun is the releaser's, which makes it undone.
		return false
	case claim.Spec.VolumeName != "":
		// Bound and released: it was filled, or was never ours to fill. The library would report it as finished again.
		return hasFinalizer(&claim)
	case !hasFinalizer(&claim):
		return g.open(ctx, source) && g.classExists(ctx, &claim)
	default:
		// What was begun goes on without the StorageClass, except that no other prime claim can be made.
		return g.classExists(ctx, &claim) || g.primeExists(ctx, claim.UID)
	}
}

// classExists reports whether the claim's StorageClass exists. A claim that names none is left to the library.
func (g *gate) classExists(ctx context.Context, claim *corev1.PersistentVolumeClaim) bool {
	name := claim.Spec.StorageClassName
	if name == nil {
		return true
	}
	var class storagev1.StorageClass
	return g.cache.Get(ctx, types.NamespacedName{Name: *name}, &class) == nil
}

func (g *gate) primeExists(ctx context.Context, claim types.UID) bool {
	var prime corev1.PersistentVolumeClaim
	return g.cache.Get(ctx, types.NamespacedName{Namespace: g.namespace, Name: primeName(claim)}, &prime) == nil
}

func (g *gate) exists(ctx context.Context, source types.NamespacedName) bool {
	var cbr v1alpha1.ChangedBlockRange
	return g.cache.Get(ctx, source, &cbr) == nil
}

// open reports whether a new population from source may begin.
func (g *gate) open(ctx context.Context, source types.NamespacedName) bool {
	var cbr v1alpha1.ChangedBlockRange
	if err := g.cache.Get(ctx, source, &cbr); err != nil {
		return false
	}
	return cbr.DeletionTimestamp == nil && cbr.MayPopulate()
}

// claimByUID returns the claim with this UID from the cache, or nil.
func claimByUID(ctx context.Context, cache client.Reader, uid types.UID) (*corev1.PersistentVolumeClaim, error) {
	var claims corev1.PersistentVolumeClaimList
	if err := cache.List(ctx, &claims, client.MatchingFields{indexUID: string(uid)}); err != nil {
		return nil, fmt.Errorf("look up claim with UID %s: %w", uid, err)
	}
	if len(claims.Items) == 0 {
		return nil, nil
	}
	return &claims.Items[0], nil
}
