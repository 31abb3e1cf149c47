package blocklist_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Open verifies the whole list before it returns, so every extent may be acted on at once.
func ExampleOpen() {
	list, err := blocklist.Open("testdata/guide.json") // /mnt/list/changed-blocks.json, or a block device
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := list.Close(); err != nil {
			log.Print(err)
		}
	}()
	h, t := list.Header(), list.Trailer()
	fmt.Printf("%s of %s since %s: %d extents, %d bytes\n", h.Mode, h.TargetSnapshot, h.BaseSnapshot, t.EntryCount, t.ChangedBytes)
	for e, err := range list.All() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("back up", e.Offset, e.Length)
	}
	// Output:
	// Delta of snap-2 since snap-1: 3 extents, 12288 bytes
	// back up 8192 4096
	// back up 16384 4096
	// back up 36864 4096
}

// Workers share a list: every extent goes to exactly one of them.
func ExampleFile_Split() {
	list, err := blocklist.Open("testdata/guide.cbl")
	if err != nil {
		log.Fatal(err)
	}
	parts := list.Split(2)
	done := make([]string, len(parts))
	var workers sync.WaitGroup
	for i, part := range parts {
		workers.Go(func() {
			for part.Next() {
				done[i] += fmt.Sprint(" ", part.Extent().Offset)
			}
			if err := part.Err(); err != nil {
				log.Print(err)
			}
		})
	}
	workers.Wait()
	if err := list.Close(); err != nil {
		log.Fatal(err)
	}
	for i := range done {
		fmt.Printf("worker %d:%s\n", i, done[i])
	}
	// Output:
	// worker 0: 8192 16384
	// worker 1: 36864
}

// From continues a backup that was interrupted at an offset of the volume.
func ExampleFile_From() {
	list, err := blocklist.Open("testdata/guide.cbl")
	if err != nil {
		log.Fatal(err)
	}
	for e, err := range list.From(16384 + 1000).All() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Offset, e.Length)
	}
	if err := list.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 16384 4096
	// 36864 4096
}

// A stream is read once and gives its extents before it has proved whole: collect first, act when Err is nil.
func ExampleNewReader() {
	stream, err := os.Open("testdata/guide.cbl") // os.Stdin, a connection
	if err != nil {
		log.Fatal(err)
	}
	list, err := blocklist.NewReader(stream)
	if err != nil {
		log.Fatal(err)
	}
	var extents []blocklist.Extent
	for list.Next() {
		extents = append(extents, list.Extent())
	}
	if err := list.Err(); err != nil {
		log.Fatal(err) // none of the extents may be used
	}
	fmt.Println(len(extents), "extents; the next increment's base is", list.Header().TargetSnapshotHandle)
	if err := stream.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: 3 extents; the next increment's base is b2
}

// A list that was cut is refused.
func ExampleVerify() {
	whole, err := os.ReadFile("testdata/guide.json")
	if err != nil {
		log.Fatal(err)
	}
	_, _, err = blocklist.Verify(bytes.NewReader(whole[:500]))
	fmt.Println(errors.Is(err, blocklist.ErrIncomplete), err)
	// Output: true list is incomplete: it ends at byte 500, inside an extent's line
}

// Writing a list; the bytes depend on the header and the extents alone.
func ExampleNewEncoder() {
	var file bytes.Buffer
	e, err := blocklist.NewEncoder(&file, blocklist.Binary, blocklist.Header{
		Mode:                blocklist.Allocated,
		BlockMetadataType:   blocklist.VariableLength,
		VolumeCapacityBytes: 1 << 30,
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := e.Encode([]blocklist.Extent{{Offset: 0, Length: 4096}, {Offset: 1 << 20, Length: 65536}}); err != nil {
		log.Fatal(err)
	}
	t, err := e.Finish()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(t.EntryCount, "extents,", t.ChangedBytes, "bytes; the list has", t.ListBytes, "bytes:", t.ListBytes == int64(file.Len()))
	// Output: 2 extents, 69632 bytes; the list has 134 bytes: true
}
