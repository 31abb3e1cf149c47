//go:build linux

package copier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestCopies compares copies of random data, byte for byte, with the model: to new files, to files and devices with old
// data, from files and devices, through the page cache and past it.
func TestCopies(t *testing.T) {
	rng := random(t)
	for _, unit := range []int64{1, 512, 4096, 64 << 10} {
		for _, ends := range []struct {
			name                       string
			sourceDevice, targetDevice bool
			newTarget, buffered        bool
		}{
			{name: "file to new file", newTarget: true},
			{name: "file to old file"},
			{name: "device to new file", sourceDevice: true, newTarget: true},
			{name: "device to old device", sourceDevice: true, targetDevice: true},
			{name: "device to old device, buffered", sourceDevice: true, targetDevice: true, buffered: true},
		} {
			t.Run(fmt.Sprintf("%s, unit %d", ends.name, unit), func(t *testing.T) {
				capacity := int64(5<<20) + 512
				if unit == 1 && !ends.sourceDevice {
					capacity += 13 // an image need not end with a sector
				}
				extents := randomExtents(rng, capacity, unit, max(1, 256<<10/unit))
				source, old := randomData(rng, capacity), make([]byte, capacity)
				o := Options{
					List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Target: filepath.Join(t.TempDir(), "target"),
					Workers: 1 + rng.IntN(6), Buffered: ends.buffered, Verify: true, checkpointBytes: 1 << 20,
				}
				if !ends.newTarget {
					fill(rng, old)
					o.Target = writeFile(t, "target", old)
				}
				if ends.sourceDevice {
					o.Source = attach(t, o.Source)
				}
				if ends.targetDevice {
					o.Target = attach(t, o.Target)
				}
				result, err := Run(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				sameBytes(t, "target", readFile(t, o.Target), apply(old, source, extents))
				if n := total(extents); result.ReadBytes != n || result.Bytes != n || result.WrittenBytes+result.ZeroBytes != n || !result.Verified {
					t.Errorf("result %+v, want %d bytes read and written, verified", result, n)
				}
				if left, err := filepath.Glob(filepath.Dir(o.Target) + "/*.journal*"); err != nil || len(left) > 0 && !ends.targetDevice {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
	}
}

// TestSparse has an image hold the data that was copied and nothing more.
func TestSparse(t *testing.T) {
	const capacity = 64 << 20
	source := make([]byte, capacity)
	for i := range 256 << 10 {
		source[8<<20+i] = 1
	}
	extents := []blocklist.Extent{{Offset: 0, Length: 32 << 20}}
	o := Options{List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Target: filepath.Join(t.TempDir(), "new")}
	result, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if result.WrittenBytes != 256<<10 || result.ZeroBytes != 32<<20-256<<10 {
		t.Errorf("%d bytes written and %d zeros, want %d and %d", result.WrittenBytes, result.ZeroBytes, 256<<10, 32<<20-256<<10)
	}
	if got := allocated(t, o.Target); got > 512<<10 {
		t.Errorf("a new image with 256 KiB of data takes %d bytes", got)
	}
	// Over old data, zeros become holes.
	old := make([]byte, capacity)
	for i := range old {
		old[i] = 0xff
	}
	o.Target = writeFile(t, "old", old)
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got := allocated(t, o.Target); got > 33<<20 {
		t.Errorf("32 MiB of old data under zeros, and 32 MiB that are not listed, take %d bytes", got)
	}
	sameBytes(t, "old target", readFile(t, o.Target), apply(old, source, extents))
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestShards has several copies, each of its own part of the list, fill one target at the same time.
func TestShards(t *testing.T) {
	rng := random(t)
	const capacity, shards = 8 << 20, 5
	for _, device := range []bool{false, true} {
		t.Run(fmt.Sprintf("device %t", device), func(t *testing.T) {
			extents := randomExtents(rng, capacity, 4096, 20)
			source, old := randomData(rng, capacity), make([]byte, capacity)
			o := Options{List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Target: filepath.Join(t.TempDir(), "target")}
			if device {
				fill(rng, old)
				o.Target = attach(t, writeFile(t, "target", old))
			}
			results, errs := make([]Result, shards), make([]error, shards)
			var wg sync.WaitGroup
			for i := range shards {
				wg.Go(func() {
					o := o
					o.Shard = Shard{Index: i, Total: shards}
					results[i], errs[i] = Run(t.Context(), o)
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			sameBytes(t, "target", readFile(t, o.Target), apply(old, source, extents))
			read := int64(0)
			for _, r := range results {
				read += r.ReadBytes
			}
			if read != total(extents) {
				t.Errorf("the shards read %d bytes together, the list has %d", read, total(extents))
			}
		})
	}
}

// TestShardsShareNoPage demands that no page of a target is written by two shards, which may be two machines: not even of the
// largest pages that a node has, by lists of the smallest blocks. Together the shards have every byte once.
func TestShardsShareNoPage(t *testing.T) {
	rng := random(t)
	const capacity, largestPage = 8 << 20, 64 << 10
	for _, unit := range []int64{1, 512, 4096, largestPage} {
		extents := randomExtents(rng, capacity, unit, max(2, 16<<10/unit))
		list, err := blocklist.Open(writeList(t, capacity, extents))
		if err != nil {
			t.Fatal(err)
		}
		bytes, writers := int64(0), make(map[int64]int) // by page
		shards := 1 + rng.IntN(40)
		for i := range shards {
			shard := &task{options: Options{Shard: Shard{Index: i, Total: shards}}, list: list}
			if err := shard.choose(); err != nil {
				t.Fatal(err)
			}
			bytes += shard.survey.bytes
			for batch, err := range shard.extents(0) {
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range batch {
					for page := e.Offset / largestPage; page*largestPage < e.End(); page++ {
						if other, taken := writers[page]; taken && other != i {
							t.Fatalf("unit %d: shards %d and %d of %d both write to the page at %d", unit, other, i, shards, page*largestPage)
						}
						writers[page] = i
					}
				}
			}
		}
		if want := total(extents); bytes != want {
			t.Errorf("unit %d: %d shards have %d bytes together, the list has %d", unit, shards, bytes, want)
		}
		if err := list.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVerifyFinds changes the target behind the copy's back: the verification must see it, and nothing may continue from
// what was found to be wrong.
func TestVerifyFinds(t *testing.T) {
	rng := random(t)
	const capacity = 4 << 20
	extents := []blocklist.Extent{{Offset: 4096, Length: 3 << 20}}
	source := make([]byte, capacity)
	fill(rng, source)
	o := Options{List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Target: filepath.Join(t.TempDir(), "target"), Verify: true}
	at := 4096 + rng.Int64N(3<<20)
	tampered := false
	o.Progress = func(p Progress) {
		if p.Phase != Copying || p.DoneBytes != p.TotalBytes || tampered {
			return
		}
		tampered = true
		f, err := os.OpenFile(o.Target, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte{source[at] + 1}, at)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Error(err)
		}
	}
	result, err := Run(t.Context(), o)
	if !errors.Is(err, ErrDiffers) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("byte %d", at)) || result.Verified {
		t.Fatalf("byte %d was changed; verified %t, error %v", at, result.Verified, err)
	}
	if _, err := os.Stat(o.Target + ".journal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "target", readFile(t, o.Target), apply(make([]byte, capacity), source, extents))
}

// TestFull runs out of space on a real file system, and continues once there is more.
func TestFull(t *testing.T) {
	rng := random(t)
	const capacity = 8 << 20
	dir := t.TempDir()
	if err := unix.Mount("copier-test", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatalf("mount a tmpfs (as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	source := make([]byte, capacity)
	fill(rng, source)
	extents := []blocklist.Extent{{Offset: 0, Length: capacity}}
	o := Options{List: writeList(t, capacity, extents), Source: writeFile(t, "source", source), Target: filepath.Join(dir, "target"),
		Journal: filepath.Join(t.TempDir(), "journal"), Workers: 1, checkpointBytes: 1}
	_, err := Run(t.Context(), o)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "it continues from "+o.Journal) {
		t.Fatalf("error %v", err)
	}
	if err := unix.Mount("copier-test", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	result, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if result.ResumedBytes == 0 {
		t.Error("the copy began again although there was a journal")
	}
	sameBytes(t, "target", readFile(t, o.Target), source)
}

// TestReadError has a device fail to read: a loop device whose file ends too early.
func TestReadError(t *testing.T) {
	const capacity = 8 << 20
	for _, buffered := range []bool{false, true} {
		file := writeFile(t, "source", make([]byte, capacity))
		o := Options{
			List: writeList(t, capacity, []blocklist.Extent{{Offset: 0, Length: capacity}}), Source: attach(t, file),
			Target: filepath.Join(t.TempDir(), "target"), Buffered: buffered,
		}
		if err := os.Truncate(file, 5<<20); err != nil {
			t.Fatal(err)
		}
		result, err := Run(t.Context(), o)
		if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), o.Source) || errors.Is(err, ErrRefused) {
			t.Errorf("buffered %t: error %v", buffered, err)
		}
		if result.ReadBytes > 5<<20 {
			t.Errorf("buffered %t: %d bytes read of 5 MiB", buffered, result.ReadBytes)
		}
	}
}
