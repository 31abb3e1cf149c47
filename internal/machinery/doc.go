// Package machinery fills claims. It runs lib-volume-populator, whose only importer it is, and gives it what it lacks: a
// pod of our own making, a queue that lets a claim in only when its ChangedBlockRange is ready, watches that wake a claim
// the moment something relevant happens, bounds on the number of running pods, retries that know which failures are
// worth one, and a release of claims that waits until every temporary object is gone.
//
// Three parts work on a claim and never at the same time on the same step:
//
//   - the library (library.go, informers.go, queue.go): prime claim, finalizer, rebinding of the volume, end;
//   - the provider functions (populate.go, verdict.go, pod.go, slots.go): the populator pod;
//   - the releaser (release.go): everything about a claim that is being deleted, because the library returns before its
//     own cleanup whenever the data source, the storage class or the selected node is missing.
//
// The package knows the reconciler of ChangedBlockRanges through API objects alone: it reads the ChangedBlockRange's
// status and finalizer, and it hands a finished pod over by waiting until the status or the pod says that its result is recorded.
package machinery

// What the library and this package need, and nothing else. The library reads claims, StorageClasses and ChangedBlockRanges
// of the whole cluster, patches the finalizer of claims and the claimRef of volumes. Everything that is created or deleted
// lives in the populator namespace.
//
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;patch
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
// +kubebuilder:rbac:groups=cbt.storage.k8s.io,resources=changedblockranges,verbs=get;list;watch
// +kubebuilder:rbac:groups=cbt.storage.k8s.io,resources=snapshotmetadataservices,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",namespace=cbt-populator,resources=persistentvolumeclaims,verbs=create;delete
// +kubebuilder:rbac:groups="",namespace=cbt-populator,resources=pods,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups="",namespace=cbt-populator,resources=resourcequotas;limitranges,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,resourceNames=cbt-populator,verbs=list;watch
// +kubebuilder:rbac:groups="",namespace=cbt-populator,resources=configmaps,verbs=list;watch;create;update
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=cbt-populator,resources=leases,verbs=get;create;update
// The leader election tells about itself by the old events API.
// +kubebuilder:rbac:groups="",namespace=cbt-populator,resources=events,verbs=create;patch
