package main

import (
	"io"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/test/apiserver"
)

// TestLetGo runs what is run before an installation is removed, with the controller's permissions: afterwards nothing of ours keeps
// an object that is deleted.
func TestLetGo(t *testing.T) {
	server := apiserver.Start(t)
	c := newClient(t, server)
	install(t.Context(), t, c)
	held := claim("list")
	held.Finalizers = []string{v1alpha1.FinalizerClaim}
	cbr := &v1alpha1.ChangedBlockRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "monday", Finalizers: []string{v1alpha1.FinalizerPopulating}},
		Spec:       v1alpha1.ChangedBlockRangeSpec{FromVolumeSnapshotName: "from", ToVolumeSnapshotName: "to"},
	}
	create(t.Context(), t, c, held)
	create(t.Context(), t, c, cbr)
	opts, err := parse([]string{
		"--let-go", "--populator-image=populator:test", "--populator-namespace=" + installedIn, "--kubeconfig=" + serviceAccountConfig(t, server),
	}, noEnv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := letGo(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	get(t.Context(), t, c, held.Namespace, held.Name, held)
	get(t.Context(), t, c, cbr.Namespace, cbr.Name, cbr)
	if slices.Contains(held.Finalizers, v1alpha1.FinalizerClaim) || len(cbr.Finalizers) > 0 {
		t.Errorf("the claim still has %q, the ChangedBlockRange %q", held.Finalizers, cbr.Finalizers)
	}
}
