//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

func clientKey(ns, name string) client.ObjectKey { return client.ObjectKey{Namespace: ns, Name: name} }

// list is a whole, verified list.
type list struct {
	raw     []byte
	header  blocklist.Header
	extents []blocklist.Extent
	trailer blocklist.Trailer
}

// readList reads the list that the pod has mounted from the claim, and has the pod check its checksum file.
func (w *world) readList(pod, claim string, format blocklist.Format) list {
	w.Helper()
	file := blocklist.FileName(format)
	w.exec(pod, fmt.Sprintf("cd /mnt/%s && sha256sum -c %s.sha256", claim, file))
	return w.parse(w.exec(pod, fmt.Sprintf("cat /mnt/%s/%s", claim, file)))
}

func (w *world) parse(raw []byte) list {
	w.Helper()
	r, err := blocklist.NewReader(bytes.NewReader(raw))
	if err != nil {
		w.Fatalf("read list: %v\n%.300s", err, raw)
	}
	l := list{raw: raw, header: r.Header()}
	for r.Next() {
		l.extents = append(l.extents, r.Extent())
	}
	if err := r.Err(); err != nil {
		w.Fatalf("read list: %v", err)
	}
	l.trailer = r.Trailer()
	return l
}

// readDevice reads the list from an image of a Block volume.
func (w *world) readDevice(image []byte) list {
	w.Helper()
	path := filepath.Join(w.TempDir(), "device.img")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		w.Fatal(err)
	}
	f, err := blocklist.Open(path)
	if err != nil {
		w.Fatalf("open device image: %v", err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			w.Errorf("close device image: %v", err)
		}
	}()
	l := list{header: f.Header()}
	for f.Next() {
		l.extents = append(l.extents, f.Extent())
	}
	if err := f.Err(); err != nil {
		w.Fatalf("read device image: %v", err)
	}
	l.trailer = f.Trailer()
	return l
}

// blocks turns block numbers into the extents that the sample driver reports for them.
func blocks(numbers ...int64) []blocklist.Extent {
	slices.Sort(numbers)
	var extents []blocklist.Extent
	for _, n := range slices.Compact(numbers) {
		extents = append(extents, blocklist.Extent{Offset: n * blockSize, Length: blockSize})
	}
	return extents
}

// merged joins adjacent extents.
func merged(extents []blocklist.Extent) []blocklist.Extent {
	var out []blocklist.Extent
	for _, e := range extents {
		if n := len(out); n > 0 && out[n-1].End() == e.Offset {
			out[n-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	return out
}

func (w *world) wantExtents(what string, got list, want []blocklist.Extent) {
	w.Helper()
	if diff := cmp.Diff(want, got.extents); diff != "" {
		w.Fatalf("%s: wrong list (-want +got):\n%s", what, diff)
	}
	var bytes int64
	for _, e := range want {
		bytes += e.Length
	}
	if got.trailer.EntryCount != int64(len(want)) || got.trailer.ChangedBytes != bytes {
		w.Fatalf("%s: the trailer counts %d extents and %d bytes, want %d and %d", what,
			got.trailer.EntryCount, got.trailer.ChangedBytes, len(want), bytes)
	}
}

// writeBlocks writes 4 KiB of random data to each of the blocks of a device in the pod.
func (w *world) writeBlocks(pod, device string, numbers ...int64) {
	w.Helper()
	script := ""
	for _, n := range numbers {
		script += fmt.Sprintf("dd if=/dev/urandom of=%s bs=%d count=1 seek=%d conv=notrunc 2>/dev/null\n", device, blockSize, n)
	}
	w.exec(pod, script+syncDevice(device))
}

// syncDevice is the command that has a device's written data on the volume before a snapshot is taken.
func syncDevice(device string) string {
	return fmt.Sprintf("dd if=/dev/null of=%s conv=notrunc,fsync 2>/dev/null\n", device)
}

// differingBlocks compares two images of equal size block by block.
func (w *world) differingBlocks(a, b []byte) []int64 {
	w.Helper()
	if len(a) != len(b) {
		w.Fatalf("the images have %d and %d bytes", len(a), len(b))
	}
	var numbers []int64
	for off := 0; off < len(a); off += blockSize {
		end := min(off+blockSize, len(a))
		if !bytes.Equal(a[off:end], b[off:end]) {
			numbers = append(numbers, int64(off/blockSize))
		}
	}
	return numbers
}
