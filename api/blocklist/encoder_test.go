package blocklist

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/cbt-populator/cbt-populator/test/seeded"
)

func TestHeaderCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(h *Header)
		want   string
	}{
		{"mode", func(h *Header) { h.Mode = "" }, `mode ""`},
		{"type", func(h *Header) { h.BlockMetadataType = "SOME_LENGTH" }, `type "SOME_LENGTH"`},
		{"unknown capacity", func(h *Header) { h.VolumeCapacityBytes = 0 }, "capacity 0"},
		{"negative capacity", func(h *Header) { h.VolumeCapacityBytes = -1 }, "capacity -1"},
		{"base restore size", func(h *Header) { h.BaseRestoreSizeBytes = -1 }, "base restore size -1"},
		{"target restore size", func(h *Header) { h.TargetRestoreSizeBytes = -1 }, "target restore size -1"},
		{"granularity", func(h *Header) { h.GranularityBytes = 3 << 20 }, "granularity 3145728"},
		{"negative granularity", func(h *Header) { h.GranularityBytes = math.MinInt64 }, "is not a power of two"},
		{"long string", func(h *Header) { h.Driver = strings.Repeat("x", MaxStringBytes+1) }, "4097 bytes"},
		{"broken string", func(h *Header) { h.TargetSnapshotHandle = "a\xffb" }, "UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := sampleHeader()
			c.change(&h)
			for _, f := range []Format{JSON, Binary} {
				_, err := NewEncoder(io.Discard, f, h)
				if !errors.Is(err, ErrHeader) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: error %v, want one that names %q", f, err, c.want)
				}
			}
		})
	}
	if _, err := NewEncoder(io.Discard, "YAML", sampleHeader()); err == nil || !strings.Contains(err.Error(), `"YAML"`) {
		t.Errorf("format YAML: error %v", err)
	}
}

// TestLongestHeader takes the longest strings, in which JSON must escape every byte, through both formats.
func TestLongestHeader(t *testing.T) {
	h := sampleHeader()
	long := strings.Repeat("\x01", MaxStringBytes)
	h.Driver, h.Namespace, h.BaseSnapshot, h.BaseSnapshotHandle, h.TargetSnapshot, h.TargetSnapshotHandle = long, long, long, long, long, long
	eachFormat(t, func(t *testing.T, f Format) {
		raw, trailer := encode(t, f, formatLayout, h, blocks(1))
		if err := survives(raw, formatLayout, h, blocks(1), trailer); err != nil {
			t.Error(err)
		}
	})
}

func TestEncodeRefuses(t *testing.T) {
	unknown := sampleHeader()
	unknown.BlockMetadataType = UnknownLength
	for _, c := range []struct {
		name    string
		header  Header
		before  []Extent
		extents []Extent
		want    string
	}{
		{"negative offset", sampleHeader(), nil, []Extent{{-1, 4096}}, "extent 1: bad extent: offset -1 is negative"},
		{"empty extent", sampleHeader(), nil, []Extent{{0, 0}}, "extent 1: bad extent: length 0"},
		{"negative length", sampleHeader(), nil, []Extent{{8192, -4096}}, "length -4096"},
		{"overflow", sampleHeader(), nil, []Extent{{math.MaxInt64, 1}}, "overflows"},
		{"overlap in one call", sampleHeader(), nil, []Extent{{0, 8192}, {4096, 4096}}, "extent 2: bad extent: offset 4096 lies before 8192"},
		{"overlap between calls", sampleHeader(), []Extent{{0, 8192}}, []Extent{{4096, 4096}}, "extent 2: bad extent: offset 4096 lies before 8192"},
		{"twice", sampleHeader(), blocks(1, 2), blocks(2), "extent 3"},
		{"past the capacity", sampleHeader(), nil, []Extent{{10<<20 - 4096, 4097}}, "capacity 10485760"},
		{"extents of an unknown type", unknown, nil, blocks(1), "a list of type UNKNOWN holds none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachFormat(t, func(t *testing.T, f Format) {
				var out bytes.Buffer
				e := newLayoutEncoder(t, &out, f, formatLayout, c.header)
				if err := e.Encode(c.before); err != nil {
					t.Fatal(err)
				}
				err := e.Encode(c.extents)
				if !errors.Is(err, ErrExtent) || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want one that says %q", err, c.want)
				}
				if again := e.Encode(blocks(100)); !errors.Is(again, err) {
					t.Errorf("Encode after a failure: %v, want the same error", again)
				}
				if _, again := e.Finish(); !errors.Is(again, err) {
					t.Errorf("Finish after a failure: %v, want the same error", again)
				}
				if _, err := decode(&out, formatLayout); err == nil {
					t.Error("what was written up to the failure is read as a whole list")
				}
			})
		})
	}
}

func TestFinishTwice(t *testing.T) {
	eachFormat(t, func(t *testing.T, f Format) {
		var out bytes.Buffer
		e := newLayoutEncoder(t, &out, f, formatLayout, sampleHeader())
		if _, err := e.Finish(); err != nil {
			t.Fatal(err)
		}
		length := out.Len()
		if _, err := e.Finish(); err == nil {
			t.Error("the second Finish succeeds")
		}
		if err := e.Encode(blocks(1)); err == nil {
			t.Error("Encode after Finish succeeds")
		}
		if out.Len() != length {
			t.Error("calls after Finish write")
		}
	})
}

// limited is a writer that fails, or writes short without an error, when its room is used up.
type limited struct {
	room int
	err  error
}

func (w *limited) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	if n < len(p) {
		return n, w.err
	}
	return n, nil
}

func TestWriterFails(t *testing.T) {
	full := errors.New("no space")
	extents := benchExtents(400_000) // more than two pieces of either format
	eachFormat(t, func(t *testing.T, f Format) {
		for _, room := range []int{0, 1, writeBytes - 1, writeBytes, 2*writeBytes - 1, 2 * writeBytes} {
			for _, c := range []struct{ fails, want error }{{full, full}, {nil, io.ErrShortWrite}} {
				t.Run(fmt.Sprint(room, c.fails), func(t *testing.T) {
					e := newLayoutEncoder(t, &limited{room: room, err: c.fails}, f, formatLayout, benchHeader())
					err := e.Encode(extents)
					if _, finished := e.Finish(); err == nil {
						err = finished
					} else if !errors.Is(finished, err) {
						t.Errorf("Finish: %v, want the error of Encode", finished)
					}
					if !errors.Is(err, c.want) {
						t.Errorf("error %v, want %v", err, c.want)
					}
				})
			}
		}
	})
}

// TestAllocations demands that neither encoding nor decoding allocates per extent: twice as many extents must not take
// more allocations, once the buffers have grown.
func TestAllocations(t *testing.T) {
	const many = 20 * 8192
	extents := benchExtents(2 * many)
	eachFormat(t, func(t *testing.T, f Format) {
		e := newLayoutEncoder(t, io.Discard, f, formatLayout, benchHeader())
		next := 0
		if err := e.Encode(extents[:many]); err != nil {
			t.Fatal(err)
		}
		next = many
		perCall := testing.AllocsPerRun(15, func() {
			if err := e.Encode(extents[next : next+8192]); err != nil {
				t.Fatal(err)
			}
			next += 8192
		})
		// The index of a Binary list has one point for 8192 extents; its slice grows now and then. A JSON list takes up
		// to two pieces for them, and the digest of each a goroutine with two small objects.
		if perCall > 4 {
			t.Errorf("encoding 8192 extents takes %v allocations", perCall)
		}

		raw, _ := encode(t, f, formatLayout, benchHeader(), extents)
		r, err := NewReader(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		read := func(n int) {
			for range n {
				if !r.Next() {
					t.Fatalf("the list ends early: %v", r.Err())
				}
			}
		}
		read(many)
		if perCall := testing.AllocsPerRun(15, func() { read(8192) }); perCall >= 1 {
			t.Errorf("decoding 8192 extents takes %v allocations", perCall)
		}
	})
}

// TestBytesPerExtent keeps the promise of the Binary format for the usual list: 4 KiB extents with modest gaps.
func TestBytesPerExtent(t *testing.T) {
	extents := benchExtents(1 << 20)
	_, trailer := encode(t, Binary, formatLayout, benchHeader(), extents)
	if per := float64(trailer.ListBytes) / float64(len(extents)); per > 2.5 {
		t.Errorf("%.2f bytes per extent, want at most 2.5", per)
	}
}

// TestDigits compares the conversions of eight digits with the standard library's.
func TestDigits(t *testing.T) {
	rng := seeded.Rand(t)
	check := func(v uint64) {
		text := fmt.Sprintf("%08d", v)
		var b [8]byte
		for i, word := 0, eightDigits(v); i < 8; i++ {
			b[i] = byte(word >> (8 * i))
		}
		if string(b[:]) != text {
			t.Fatalf("eightDigits(%d) is %q", v, b)
		}
		if back, ok := parseEightDigits(eightDigits(v)); !ok || back != v {
			t.Fatalf("parseEightDigits(%q) is %d, %t", b, back, ok)
		}
	}
	for v := range uint64(20_000) {
		check(v)
		check(lowDigits - 1 - v)
		check(v * 5_000)
		check(rng.Uint64N(lowDigits))
	}
	for i := range 8 {
		for c := range 256 {
			text := eightDigits(12_345_678)&^(0xff<<(8*i)) | uint64(c)<<(8*i)
			if _, ok := parseEightDigits(text); ok != (c >= '0' && c <= '9') {
				t.Fatalf("byte %d at place %d counts as a digit: %t", c, i, ok)
			}
		}
	}
}

// TestJSONLines compares the lines with what fmt prints, around every place where the encoder changes its ways.
func TestJSONLines(t *testing.T) {
	var extents []Extent
	h := sampleHeader()
	h.VolumeCapacityBytes = math.MaxInt64
	var want strings.Builder
	end := int64(0)
	add := func(offset, length int64) {
		if offset < end || offset > math.MaxInt64-length {
			return
		}
		separator := ",\n"
		if len(extents) == 0 {
			separator = ""
		}
		fmt.Fprintf(&want, `%s{"byte_offset":%d,"size_bytes":%d}`, separator, offset, length)
		extents = append(extents, Extent{offset, length})
		end = offset + length
	}
	add(0, 1)
	for power := int64(10); power > 0 && power <= math.MaxInt64/10; power *= 10 {
		for _, factor := range []int64{1, 2, 9} {
			for _, d := range []int64{-2, -1, 0, 1} {
				add(factor*power+d, 1)
			}
			add(factor*power+4096, power/10+3)
		}
	}
	add(math.MaxInt64-1, 1)
	raw, _ := encode(t, JSON, formatLayout, h, extents)
	_, rest, _ := strings.Cut(string(raw), "[\n")
	lines, _, _ := strings.Cut(rest, "\n],\n")
	if lines != want.String() {
		t.Errorf("lines\n%s\nwant\n%s", lines, want.String())
	}
}
