//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// copyListed copies exactly the listed extents of /dev/restored-2 onto /dev/restored-1, with nothing but the list and a
// shell: what a backup does. It copies in 512-byte sectors, since a list need not be aligned to more.
const copyListed = `
awk 'match($0, /"byte_offset":[0-9]+/) { offset = substr($0, RSTART + 14, RLENGTH - 14)
     match($0, /"size_bytes":[0-9]+/);  print offset / 512, substr($0, RSTART + 13, RLENGTH - 13) / 512 }' \
  /mnt/list/changed-blocks.json |
while read -r sector count; do
  dd if=/dev/restored-2 of=/dev/restored-1 bs=512 skip="$sector" seek="$sector" count="$count" conv=notrunc 2>/dev/null
done
`

// TestCopyOfListedExtentsRestores is the proof that a list is right for backups: after 200 random writes, copying only the
// listed extents from the restored second snapshot onto the restored first one makes the two devices identical. The list is
// also compared with the blocks that were written, so that it does not merely list too much.
func TestCopyOfListedExtentsRestores(t *testing.T) {
	t.Parallel()
	const (
		size    = 256 << 20
		sectors = size / 512
		writes  = 200
	)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))

	w := newWorld(t)
	w.create(claim("source", "256Mi", corev1.PersistentVolumeBlock))
	w.tools("writer", "source")
	w.exec("writer", "dd if=/dev/urandom of=/dev/source bs=1M count=64 conv=notrunc 2>/dev/null\n"+syncDevice("/dev/source"))
	w.takeSnapshot("snap-1", "source")

	var script strings.Builder
	var touched []int64
	for range writes {
		count := 1 + rng.Int64N(256)
		start := rng.Int64N(sectors - count)
		fmt.Fprintf(&script, "dd if=/dev/urandom of=/dev/source bs=512 seek=%d count=%d conv=notrunc 2>/dev/null\n", start, count)
		for block := start * 512 / blockSize; block <= ((start+count)*512-1)/blockSize; block++ {
			touched = append(touched, block)
		}
	}
	w.exec("writer", script.String()+syncDevice("/dev/source"))
	w.takeSnapshot("snap-2", "source")

	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"),
		restored("restored-1", "256Mi", "snap-1"), restored("restored-2", "256Mi", "snap-2"))
	w.awaitBound("list", "restored-1", "restored-2")
	w.tools("backup", "list", "restored-1", "restored-2")
	w.wantExtents("delta", w.readList("backup", "list", blocklist.JSON), blocks(touched...))

	w.wantCopyRestores("backup")
}

// wantCopyRestores makes the first restored snapshot the second one by copying the listed extents in a pod.
func (w *world) wantCopyRestores(pod string) {
	w.Helper()
	if out := w.exec(pod, "cmp /dev/restored-1 /dev/restored-2 || true"); len(out) == 0 {
		w.Fatal("the restored snapshots are equal before anything was copied: the test proves nothing")
	}
	w.exec(pod, copyListed)
	w.exec(pod, "cmp /dev/restored-1 /dev/restored-2")
}

// TestPageDrivers does what the page has a reader do who wants to know whether a driver lists freed blocks. The sample driver does.
// busybox has no such commands, so they run on the node, where the device of a pod is one of the node's.
func TestPageDrivers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(claim("source", "16Mi", corev1.PersistentVolumeBlock))
	w.tools("writer", "source")
	w.exec("writer", "dd if=/dev/urandom of=/dev/source bs=1M count=16 conv=notrunc 2>/dev/null\n"+syncDevice("/dev/source"))
	w.takeSnapshot("snap-1", "source")
	var minor int
	if _, err := fmt.Sscanf(string(w.exec("writer", "stat -Lc '%t %T' /dev/source")), "7 %x", &minor); err != nil {
		t.Fatalf("the volume is no loop device: %v", err)
	}
	w.shell(fmt.Sprintf("DEVICE=/dev/loop%d\n%s", minor, w.onPage("docs/drivers.md", "Freed blocks", "sh")))
	w.exec("writer", syncDevice("/dev/source"))
	w.takeSnapshot("snap-2", "source")

	w.create(ranges("delta", "snap-1", "snap-2"), listClaim("list", "delta"),
		restored("restored-1", "16Mi", "snap-1"), restored("restored-2", "16Mi", "snap-2"))
	w.awaitBound("list", "restored-1", "restored-2")
	w.tools("backup", "list", "restored-1", "restored-2")
	freed := []blocklist.Extent{{Offset: 1 << 20, Length: 1 << 20}, {Offset: 4 << 20, Length: 1 << 20}}
	if got := merged(w.readList("backup", "list", blocklist.JSON).extents); !slices.Equal(got, freed) {
		t.Errorf("the list has %v, want the freed blocks %v", got, freed)
	}
	for _, e := range freed {
		w.exec("backup", fmt.Sprintf("dd if=/dev/restored-2 bs=1M skip=%d count=1 2>/dev/null | cmp -n %d - /dev/zero", e.Offset>>20, e.Length))
	}
	w.wantCopyRestores("backup")
}
