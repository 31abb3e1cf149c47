package blocklist

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cbt-populator/cbt-populator/test/seeded"
)

// write puts raw into a file and returns its path.
func write(t testing.TB, raw []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// image returns the content of a Block volume of size bytes that holds a list, with old data behind it.
func image(raw []byte, trailer Trailer, size int) []byte {
	b := append(DeviceRecord(trailer.ListBytes, trailer.ListSHA256), raw...)
	for len(b) < size {
		b = append(b, 0x5a)
	}
	return b
}

// load opens a list in memory, with a layout that may be small.
func load(raw []byte, l layout, how func(*io.SectionReader, *deviceRecord, layout) (*File, error)) (*File, error) {
	section, record, err := findList(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return nil, err
	}
	return how(section, record, l)
}

func collect(t testing.TB, c *Cursor) []Extent {
	t.Helper()
	var all []Extent
	for e, err := range c.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func TestOpen(t *testing.T) {
	eachFormat(t, func(t *testing.T, f Format) {
		extents := benchExtents(20_000)
		raw, trailer := encode(t, f, formatLayout, benchHeader(), extents)
		for name, content := range map[string][]byte{"file": raw, "device": image(raw, trailer, len(raw)+3*DeviceHeaderBytes), "full device": image(raw, trailer, 0)} {
			for how, open := range map[string]func(string) (*File, error){"Open": Open, "OpenUnverified": OpenUnverified} {
				t.Run(name+"/"+how, func(t *testing.T) {
					list, err := open(write(t, content))
					if err != nil {
						t.Fatal(err)
					}
					got := list.Trailer()
					if how == "OpenUnverified" && f == Binary && name == "file" {
						got.ListSHA256 = trailer.ListSHA256 // the only thing that it does not know
					}
					if list.Header() != benchHeader() || got != trailer || list.Format() != f {
						t.Errorf("header %+v, trailer %+v, format %s", list.Header(), got, list.Format())
					}
					if !slices.Equal(collect(t, &list.Cursor), extents) {
						t.Error("the extents changed")
					}
					if err := list.Close(); err != nil {
						t.Fatal(err)
					}
					if c := list.From(0); c.Next() || !errors.Is(c.Err(), os.ErrClosed) {
						t.Errorf("after Close: %v", c.Err())
					}
				})
			}
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	raw, trailer := encode(t, Binary, formatLayout, sampleHeader(), blocks(1))
	other := trailer
	other.ListSHA256[5] ^= 1
	longer := trailer
	longer.ListBytes++
	for _, c := range []struct {
		name, path string
		is         error
		says       string
	}{
		{"absent", filepath.Join(dir, "absent"), fs.ErrNotExist, "absent"},
		{"a folder", dir, nil, "neither a regular file nor a block device"},
		{"a pipe", pipe, nil, "NewReader"},
		{"a character device", "/dev/null", nil, "neither"},
		{"an empty file", write(t, nil), ErrNotAList, "empty"},
		{"a blank volume", write(t, make([]byte, 1<<20)), ErrNotAList, "no list was committed"},
		{"a volume without its record", write(t, append(make([]byte, DeviceHeaderBytes), raw...)), ErrNotAList, "no list was committed"},
		{"a text", write(t, []byte("# changed blocks\n")), ErrNotAList, "begins with"},
		{"the lister's JSON", write(t, []byte(`[{"byte_offset":4096,"size_bytes":4096}]`)), ErrNotAList, "begins with"},
		{"a record of another list", write(t, image(raw, other, 1<<20)), ErrCorrupt, "another list"},
		{"a record of a longer list", write(t, image(raw, longer, 1<<20)), ErrCorrupt, ""},
		{"a list longer than the volume", write(t, image(raw[:len(raw)-1], trailer, 0)), ErrIncomplete, "room"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := Open(c.path)
			if err == nil {
				t.Fatalf("it opens: %+v", list.Trailer())
			}
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("error %v, want %v, the path and %q", err, c.is, c.says)
			}
		})
	}
}

// TestDeviceDamage flips every bit of a Block volume's record and list, and cuts the volume at every byte.
func TestDeviceDamage(t *testing.T) {
	raw, trailer := encode(t, Binary, formatLayout, sampleHeader(), blocks(2, 4, 9))
	whole := image(raw, trailer, 0)
	if _, err := load(whole, formatLayout, verifyList); err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		for bit := range 8 {
			whole[i] ^= 1 << bit
			if _, err := load(whole, formatLayout, verifyList); !isRefusal(err) {
				t.Fatalf("bit %d of byte %d of %d flipped: error %v", bit, i, len(whole), err)
			}
			whole[i] ^= 1 << bit
		}
	}
	for n := range whole {
		if _, err := load(whole[:n], formatLayout, verifyList); !isRefusal(err) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(whole), err)
		}
	}
}

// TestCommitOrder writes a Block volume as the populator does: before the record is complete there is no list.
func TestCommitOrder(t *testing.T) {
	raw, trailer := encode(t, Binary, formatLayout, sampleHeader(), blocks(2, 4, 9))
	record := DeviceRecord(trailer.ListBytes, trailer.ListSHA256)
	for n := range deviceUsedBytes {
		volume := append(append(append([]byte{}, record[:n]...), make([]byte, DeviceHeaderBytes-n)...), raw...)
		if _, err := load(volume, formatLayout, verifyList); !isRefusal(err) {
			t.Fatalf("%d bytes of the record written: error %v", n, err)
		}
	}
}

// TestUnverifiedDamage flips every bit of a list that is read without its digest: either OpenUnverified or a cursor over
// all extents refuses it.
func TestUnverifiedDamage(t *testing.T) {
	forBinarySamples(t, func(t *testing.T, l layout, raw []byte) {
		read := func() error {
			list, err := load(raw, l, readEnds)
			if err != nil {
				return err
			}
			return list.drain()
		}
		if err := read(); err != nil {
			t.Fatal(err)
		}
		for i := range raw {
			for bit := range 8 {
				raw[i] ^= 1 << bit
				if err := read(); !isRefusal(err) {
					t.Fatalf("bit %d of byte %d of %d flipped: error %v", bit, i, len(raw), err)
				}
				raw[i] ^= 1 << bit
			}
		}
		whole := raw
		for n := range whole {
			if raw = whole[:n]; !isRefusal(read()) {
				t.Fatalf("cut to %d of %d bytes: no refusal", n, len(whole))
			}
		}
	})
}

func forBinarySamples(t *testing.T, f func(t *testing.T, l layout, raw []byte)) {
	for _, l := range []layout{small, formatLayout} {
		for _, n := range []int{0, 1, 4, 5, 16, 17, 60} {
			t.Run(fmt.Sprint(l.chunkEntries, "/", n), func(t *testing.T) {
				raw, _ := encode(t, Binary, l, benchHeader(), benchExtents(n))
				f(t, l, raw)
			})
		}
	}
}

func TestFrom(t *testing.T) {
	rng := seeded.Rand(t)
	for range 50 {
		h, extents := randomList(rng, 50)
		for _, f := range []Format{JSON, Binary} {
			raw, _ := encode(t, f, small, h, extents)
			for _, how := range []func(*io.SectionReader, *deviceRecord, layout) (*File, error){verifyList, readEnds} {
				list, err := load(raw, small, how)
				if err != nil {
					t.Fatal(err)
				}
				offsets := []int64{-1, 0, 1, h.VolumeCapacityBytes - 1, h.VolumeCapacityBytes}
				for _, e := range extents {
					offsets = append(offsets, e.Offset-1, e.Offset, e.Offset+e.Length/2, e.End()-1, e.End())
				}
				for _, offset := range offsets {
					first := slices.IndexFunc(extents, func(e Extent) bool { return e.End() > offset })
					want := extents[len(extents):]
					if first >= 0 {
						want = extents[first:]
					}
					if got := collect(t, list.From(offset)); !slices.Equal(got, want) {
						t.Fatalf("%s: from %d of %v: %v, want %v", f, offset, extents, got, want)
					}
				}
			}
		}
	}
}

// TestSplit demands that the parts hold every extent once and in order, and about the same number of bytes.
func TestSplit(t *testing.T) {
	rng := seeded.Rand(t)
	for range 300 {
		h, extents := randomList(rng, 80)
		var total, longest int64
		for _, e := range extents {
			total += e.Length
			longest = max(longest, e.Length)
		}
		for _, f := range []Format{JSON, Binary} {
			raw, _ := encode(t, f, small, h, extents)
			list, err := load(raw, small, verifyList)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{-1, 0, 1, 2, 3, 1 + rng.IntN(100)} {
				parts := list.Split(n)
				if len(parts) != max(n, 1) {
					t.Fatalf("%d parts, want %d", len(parts), n)
				}
				var all []Extent
				for i, part := range parts {
					extents := collect(t, part)
					var sum int64
					for _, e := range extents {
						sum += e.Length
					}
					if fair := total / int64(len(parts)); sum > fair+1+longest {
						t.Fatalf("part %d of %d has %d of %d bytes; the longest extent has %d", i, len(parts), sum, total, longest)
					}
					all = append(all, extents...)
				}
				if !slices.Equal(all, extents) {
					t.Fatalf("%s: %d parts of %v together hold %v", f, n, extents, all)
				}
			}
		}
	}
}

// TestParallelParts reads all parts of a list of many full-sized chunks at the same time.
func TestParallelParts(t *testing.T) {
	extents := benchExtents(100_000)
	eachFormat(t, func(t *testing.T, f Format) {
		raw, _ := encode(t, f, formatLayout, benchHeader(), extents)
		list, err := Open(write(t, raw))
		if err != nil {
			t.Fatal(err)
		}
		parts := list.Split(7)
		got := make([][]Extent, len(parts))
		errs := make([]error, len(parts))
		var workers sync.WaitGroup
		for i, part := range parts {
			workers.Go(func() {
				for b := part.NextBatch(); b != nil; b = part.NextBatch() {
					got[i] = append(got[i], b...)
				}
				errs[i] = part.Err()
			})
		}
		workers.Wait()
		if err := errors.Join(append(errs, list.Close())...); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(slices.Concat(got...), extents) {
			t.Error("the parts together are not the list")
		}
		for i := range got {
			if len(got[i]) < len(extents)/8 {
				t.Errorf("part %d of %d has %d of %d extents", i, len(got), len(got[i]), len(extents))
			}
		}
	})
}

// TestChangedAfterOpen replaces a list's bytes under an open File: cursors notice.
func TestChangedAfterOpen(t *testing.T) {
	extents := benchExtents(30_000)
	longer := slices.Clone(extents)
	longer[20_000].Length += 512
	longer[20_000].Offset -= 512
	eachFormat(t, func(t *testing.T, f Format) {
		h := benchHeader()
		raw, _ := encode(t, f, formatLayout, h, extents)
		section := io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw)))
		list, err := verifyList(section, nil, formatLayout)
		if err != nil {
			t.Fatal(err)
		}
		other, _ := encode(t, f, formatLayout, h, longer)
		copy(raw, other)
		if err := list.drain(); !isRefusal(err) {
			t.Errorf("error %v, want a refusal", err)
		}
	})
}
