package lives

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/machinery/fakecluster"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

// stage says how far the parts that are played let a claim come.
type stage struct {
	// provision lets the prime claim get its volume, bind the claim the volume that was handed over to it.
	provision, bind bool
	// result is how a populator ends; empty lets it run.
	result outcome.Reason
}

// everything lets a claim come to its end.
var everything = stage{provision: true, bind: true, result: outcome.Populated}

// holdsVolume keeps the provisioner from prime claims whose life does not let it provision.
func (w *world) holdsVolume(prime *corev1.PersistentVolumeClaim) bool {
	l := w.lifeOf(prime)
	return l != nil && !l.at().provision
}

func (w *world) holdsBinding(claim *corev1.PersistentVolumeClaim) bool {
	l := w.lifeOf(claim)
	return l != nil && claim.Namespace == l.namespace && !l.at().bind
}

// holdsLoss keeps the binder from noticing that a prime claim lost its volume, as the real one does for seconds, once its
// claim may have it.
func (w *world) holdsLoss(prime *corev1.PersistentVolumeClaim) bool {
	l := w.lifeOf(prime)
	return l != nil && l.at().bind
}

// kubelet runs populators: their list is what their command line asks for.
func (w *world) kubelet(pod *corev1.Pod) *fakecluster.End {
	l := w.lifeOf(pod)
	if l == nil || l.at().result == "" {
		return nil
	}
	result, phase := outcome.Result{Reason: l.at().result, Message: "as the test wants it"}, corev1.PodFailed
	if result.Reason == outcome.Populated {
		phase = corev1.PodSucceeded
		result = outcome.Result{
			Reason: outcome.Populated, Mode: "Delta", EntryCount: 3, ChangedBytes: 12288, NumBytesWritten: 512,
			ListDigest: listOf(flagsOf(pod)), BlockMetadataType: "FIXED_LENGTH", BlockSize: 4096, VolumeCapacityBytes: 10 << 20,
		}
	}
	message, err := result.Marshal()
	if err != nil {
		panic(fmt.Sprintf("encode a result: %v", err))
	}
	return &fakecluster.End{Phase: phase, Message: string(message)}
}

func flagsOf(pod *corev1.Pod) map[string]string {
	flags := map[string]string{}
	for _, arg := range pod.Spec.Containers[0].Args {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		flags[name] = value
	}
	return flags
}

// listOf stands for the digest of the list that a populator with these flags writes.
func listOf(flags map[string]string) string {
	var asked strings.Builder
	for _, name := range []string{"namespace", "snapshot", "snapshot-handle", "base-snapshot", "base-snapshot-handle", "driver", "format", "granularity-bytes"} {
		asked.WriteString(name + "=" + flags[name] + "\n")
	}
	sum := sha256.Sum256([]byte(asked.String()))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// expectedList is the same, from what a ChangedBlockRange asks for and the names that the test gave to handles.
func expectedList(cbr *v1alpha1.ChangedBlockRange, driver string) string {
	return listOf(map[string]string{
		"namespace": cbr.Namespace, "driver": driver, "format": string(v1alpha1.FormatJSON),
		"snapshot": cbr.Spec.ToVolumeSnapshotName, "snapshot-handle": handle(cbr.Namespace, cbr.Spec.ToVolumeSnapshotName),
		"base-snapshot": cbr.Spec.FromVolumeSnapshotName, "base-snapshot-handle": handle(cbr.Namespace, cbr.Spec.FromVolumeSnapshotName),
		"granularity-bytes": granularity(cbr),
	})
}

func granularity(cbr *v1alpha1.ChangedBlockRange) string {
	if cbr.Spec.GranularityBytes == nil {
		return ""
	}
	return fmt.Sprint(*cbr.Spec.GranularityBytes)
}

func handle(namespace, snapshot string) string { return "handle-" + namespace + "-" + snapshot }
