//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
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

	if out := w.exec("backup", "cmp /dev/restored-1 /dev/restored-2 || true"); len(out) == 0 {
		t.Fatal("the restored snapshots are equal before anything was copied: the test proves nothing")
	}
	w.exec("backup", copyListed)
	w.exec("backup", "cmp /dev/restored-1 /dev/restored-2")
}
