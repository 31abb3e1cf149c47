package blocklist

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

// To look for inputs that break a decoder:
//
//	go test ./api/blocklist -run - -fuzz FuzzBinaryDecoder -fuzztime 1m -fuzzminimizetime 1x
//
// (The last flag keeps the fuzzer from spending the whole time on making its finds shorter.)

// fuzzDecoder feeds bytes as they are, and with all checksums repaired, to the reader of a list. The reader must not
// panic, and must refuse whatever is not the one form of the list that it says.
func fuzzDecoder(f *testing.F, format Format) {
	for _, extents := range [][]Extent{nil, blocks(2, 4, 9), append(blocks(1, 2, 3, 5, 8, 13, 21, 34, 55), Extent{8 << 20, 3}, Extent{9 << 20, 1 << 20})} {
		for _, l := range []layout{small, formatLayout} {
			raw, _ := encode(f, format, l, sampleHeader(), extents)
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, l := range []layout{small, formatLayout} {
			checkCanonical(t, raw, l)
			if sealed := reseal(raw); sealed != nil {
				checkCanonical(t, sealed, l)
			}
			if format == Binary {
				checkEnds(t, raw, l)
			}
		}
	})
}

func FuzzJSONDecoder(f *testing.F) { fuzzDecoder(f, JSON) }

func FuzzBinaryDecoder(f *testing.F) { fuzzDecoder(f, Binary) }

// checkEnds demands that what is found without reading the extents never disagrees with reading them.
func checkEnds(t *testing.T, raw []byte, l layout) {
	list, err := load(raw, l, readEnds)
	if err != nil {
		if !isRefusal(err) {
			t.Fatalf("error %v is no refusal", err)
		}
		return
	}
	var count, changed int64
	for e, err := range list.All() {
		if err != nil {
			return
		}
		count++
		changed += e.Length
	}
	if trailer := list.Trailer(); trailer.EntryCount != count || trailer.ChangedBytes != changed {
		t.Fatalf("%d extents of %d bytes were read without a complaint, the trailer says %+v", count, changed, trailer)
	}
}

// FuzzJSONLine compares the two parsers of an extent's line with each other and with the encoder.
func FuzzJSONLine(f *testing.F) {
	f.Add([]byte("{\"byte_offset\":8192,\"size_bytes\":4096},\n"), int64(4096))
	f.Add([]byte("{\"byte_offset\":123456789012,\"size_bytes\":4096}\n"), int64(4096))
	f.Add([]byte("{\"byte_offset\":9223372036854775807,\"size_bytes\":1},\n"), int64(1))
	f.Fuzz(func(t *testing.T, line []byte, length int64) {
		e, n := parseJSONLine(line)
		d := jsonDecoder{}
		d.setTail(length)
		// The short way needs some bytes behind the line, as the buffer of a longer list has.
		if usual, m := d.parseUsualLine(append(bytes.Clone(line), make([]byte, maxJSONLine)...)); m > 0 && m <= len(line) && (m != n || usual != e) {
			t.Fatalf("%q is %v of %d bytes, the short way says %v of %d", line, e, n, usual, m)
		}
		if n <= 0 || e.Length <= 0 {
			return
		}
		enc := jsonEncoder{sequence: sequence{limit: e.Offset}}
		enc.appendLines([]Extent{e}, true)
		again := append(enc.buf[1:], line[len(enc.buf)-1:n]...)
		if !bytes.Equal(again, line[:n]) {
			t.Fatalf("%q is read as %v, which is written as %q", line[:n], e, again)
		}
	})
}

// FuzzChunk feeds the content of a chunk, whose checksums hide nothing here: what is accepted must be what is written.
func FuzzChunk(f *testing.F) {
	for _, extents := range [][]Extent{blocks(2, 4, 9), {{1, 1}, {3, 7}, {10, 4096}, {8192, 512}}, benchExtents(100)} {
		f.Add(chunkBody(f, extents))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseChunk(body)
		if err != nil || c.firstOffset > benchHeader().VolumeCapacityBytes {
			return
		}
		out := make([]Extent, min(len(c.values), formatLayout.chunkEntries))
		n, err := c.decode(out, benchHeader().VolumeCapacityBytes)
		if err != nil {
			return
		}
		if again := chunkBody(t, out[:n]); !bytes.Equal(again, body) {
			t.Fatalf("%x is read as %v, which is written as %x", body, out[:n], again)
		}
	})
}

// chunkBody returns the Chunk message of extents, which fit into one.
func chunkBody(tb testing.TB, extents []Extent) []byte {
	tb.Helper()
	e := newBinaryEncoder(io.Discard, benchHeader(), formatLayout)
	start := len(e.buf)
	if err := e.Encode(extents); err != nil {
		tb.Fatalf("%v cannot be written: %v", extents, err)
	}
	if len(e.pending) > 0 {
		e.appendChunk()
	}
	record := e.buf[start:]
	_, n := binary.Uvarint(record)
	_, body, err := openRecord(record[n:])
	if err != nil {
		tb.Fatal(err)
	}
	return bytes.Clone(body)
}

// FuzzRoundTrip makes a list of the fuzzer's numbers and takes it through both formats.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte{0, 8, 1, 1, 1, 1}, uint8(12), "handle", int64(0))
	f.Add([]byte{255, 255, 3, 7, 0, 1}, uint8(0), "\"\\\u2028\x00", int64(1)<<62)
	f.Fuzz(func(t *testing.T, numbers []byte, shift uint8, text string, end int64) {
		h := sampleHeader()
		h.TargetSnapshotHandle, h.VolumeCapacityBytes = text, 1<<63-1
		if h.Check() != nil || end < 0 {
			return
		}
		var extents []Extent
		for ; len(numbers) >= 2; numbers = numbers[2:] {
			e := Extent{Offset: end + int64(numbers[0])<<(shift%40), Length: int64(numbers[1]) << (shift % 40)}
			if e.Check(end, 0) != nil {
				break
			}
			extents = append(extents, e)
			end = e.End()
		}
		for _, format := range []Format{JSON, Binary} {
			raw, trailer := encode(t, format, small, h, extents)
			if err := survives(raw, small, h, extents, trailer); err != nil {
				t.Fatalf("%s: %v", format, err)
			}
		}
	})
}
