package blocklist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// TestReaders gives lists through readers of every manner.
func TestReaders(t *testing.T) {
	extents := benchExtents(9_000)
	broken := errors.New("input/output error")
	eachFormat(t, func(t *testing.T, f Format) {
		raw, trailer := encode(t, f, formatLayout, benchHeader(), extents)
		want := list{Header: benchHeader(), Extents: extents, Trailer: trailer}
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "data with EOF": iotest.DataErrReader, "often nothing": func(r io.Reader) io.Reader { return &hesitant{r: r} },
		} {
			got, err := decode(wrap(bytes.NewReader(raw)), formatLayout)
			if err != nil || got.Trailer != want.Trailer || got.Header != want.Header || !slices.Equal(got.Extents, want.Extents) {
				t.Errorf("%s: error %v, trailer %+v", name, err, got.Trailer)
			}
		}
		for _, n := range []int{0, 1, 10, 300, len(raw) / 2, len(raw) - 1, len(raw)} {
			for _, failure := range []error{broken, fmt.Errorf("%w: %w", broken, io.EOF)} {
				r := io.MultiReader(bytes.NewReader(raw[:n]), iotest.ErrReader(failure))
				if _, _, err := Verify(r); !errors.Is(err, broken) || isRefusal(err) {
					t.Errorf("%v after %d of %d bytes: error %v", failure, n, len(raw), err)
				}
			}
		}
		if _, _, err := Verify(io.MultiReader(bytes.NewReader(raw[:100]), stuck{})); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("a reader that never returns anything: error %v", err)
		}
	})
}

// hesitant returns nothing at every other call.
type hesitant struct {
	r     io.Reader
	calls int
}

func (h *hesitant) Read(p []byte) (int, error) {
	if h.calls++; h.calls%2 == 1 {
		return 0, nil
	}
	return h.r.Read(p)
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestFalseLengths demands that a length costs no more memory than the bytes that are there.
func TestFalseLengths(t *testing.T) {
	header := appendRecord([]byte(magic), headerField, appendHeader(nil, sampleHeader()))
	for _, raw := range [][]byte{
		binary.AppendUvarint([]byte(magic), 4<<30),
		binary.AppendUvarint([]byte(magic), maxRecord),
		binary.AppendUvarint(bytes.Clone(header), 4<<30),
		binary.AppendUvarint(bytes.Clone(header), maxRecord),
		binary.AppendUvarint(bytes.Clone(header), math.MaxUint64),
		[]byte(jsonStart + "1,\n\"mode\": \"" + strings.Repeat("x", 30_000)),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := Verify(bytes.NewReader(raw))
		runtime.ReadMemStats(&after)
		if !isRefusal(err) {
			t.Errorf("error %v", err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 256<<10 {
			t.Errorf("a list of %d bytes takes %d bytes of memory: %v", len(raw), got, err)
		}
	}
}

// TestMemoryIsConstant reads three times as many extents with the same memory.
func TestMemoryIsConstant(t *testing.T) {
	eachFormat(t, func(t *testing.T, f Format) {
		memory := func(n int) uint64 {
			raw, _ := encode(t, f, formatLayout, benchHeader(), benchExtents(n))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, _, err := Verify(bytes.NewReader(raw)); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		few, many := memory(300_000), memory(900_000)
		if many > few+64<<10 {
			t.Errorf("900,000 extents take %d bytes of memory, 300,000 take %d", many, few)
		}
	})
}

// TestStopEarly leaves the loop of All and goes on with the same reader.
func TestStopEarly(t *testing.T) {
	eachFormat(t, func(t *testing.T, f Format) {
		raw, _ := encode(t, f, small, sampleHeader(), blocks(1, 2, 3, 5, 8))
		r, err := newReader(bytes.NewReader(raw), small)
		if err != nil {
			t.Fatal(err)
		}
		var got []Extent
		for e, err := range r.All() {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, e); len(got) == 2 {
				break
			}
		}
		if r.Trailer() != (Trailer{}) {
			t.Error("there is a trailer before the end")
		}
		for e, err := range r.All() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if !slices.Equal(got, blocks(1, 2, 3, 5, 8)) || r.Trailer().EntryCount != 5 || r.Next() || r.NextBatch() != nil || r.Err() != nil {
			t.Errorf("extents %v, trailer %+v, error %v", got, r.Trailer(), r.Err())
		}
	})
}

// TestFailureIsFinal demands that a reader that refused a list hands out no more of it.
func TestFailureIsFinal(t *testing.T) {
	eachFormat(t, func(t *testing.T, f Format) {
		raw, _ := encode(t, f, formatLayout, sampleHeader(), blocks(1, 2, 3))
		raw[len(raw)-40] ^= 1
		r, err := NewReader(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		last := error(nil)
		for _, err := range r.All() {
			last = err
		}
		if !isRefusal(last) || r.Next() || r.NextBatch() != nil || !errors.Is(r.Err(), last) || r.Trailer() != (Trailer{}) {
			t.Errorf("error %v, then %v", last, r.Err())
		}
	})
}
