//go:build linux

package copier

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 for a new one")

// random returns a source of random numbers whose seed the test prints.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// writeList writes a list of the extents and returns its path.
func writeList(t testing.TB, capacity int64, extents []blocklist.Extent) string {
	t.Helper()
	var b bytes.Buffer
	enc, err := blocklist.NewEncoder(&b, blocklist.Binary, blocklist.Header{
		Mode: blocklist.Delta, Namespace: "ns", TargetSnapshot: "snap", TargetSnapshotHandle: "handle",
		VolumeCapacityBytes: capacity, BlockMetadataType: blocklist.VariableLength,
	})
	if err == nil {
		err = enc.Encode(extents)
	}
	if err == nil {
		_, err = enc.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "list.cbl", b.Bytes())
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// attach makes a loop device of the file until the test ends. It needs root.
func attach(t testing.TB, path string, options ...string) string {
	t.Helper()
	out, err := exec.Command("losetup", append(append([]string{"--find", "--show"}, options...), path)...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (as root): %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v\n%s", device, err, out)
		}
	})
	return device
}

// randomExtents returns extents of random lengths, up to longest units, of a volume. Some are adjacent.
func randomExtents(rng *rand.Rand, capacity, unit, longest int64) []blocklist.Extent {
	var extents []blocklist.Extent
	for offset := int64(0); offset < capacity; {
		if rng.IntN(4) > 0 {
			offset += rng.Int64N(2*longest) * unit
		}
		length := min((1+rng.Int64N(longest))*unit, capacity-offset)
		if length > 0 {
			extents = append(extents, blocklist.Extent{Offset: offset, Length: length})
			offset += length
		}
	}
	return extents
}

// randomData returns n bytes of which some stretches are zeros, aligned and not.
func randomData(rng *rand.Rand, n int64) []byte {
	data := make([]byte, n)
	for i := int64(0); i < n; {
		length := min(1+rng.Int64N(300<<10), n-i)
		if rng.IntN(2) == 0 {
			length = min(length&^4095+4096, n-i)
		}
		if rng.IntN(3) > 0 {
			fill(rng, data[i:i+length])
		}
		i += length
	}
	return data
}

// fill does not ask rng for every byte, which takes most of a test's time with the race detector.
func fill(rng *rand.Rand, p []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p) // it never fails
}

// apply is the model: target with the extents of source.
func apply(target, source []byte, extents []blocklist.Extent) []byte {
	out := bytes.Clone(target)
	for _, e := range extents {
		copy(out[e.Offset:e.End()], source[e.Offset:e.End()])
	}
	return out
}

func total(extents []blocklist.Extent) int64 {
	var n int64
	for _, e := range extents {
		n += e.Length
	}
	return n
}

// sameBytes says where two images differ first.
func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	t.Fatalf("%s: byte %d is %#02x, want %#02x", what, i, got[i], want[i])
}
