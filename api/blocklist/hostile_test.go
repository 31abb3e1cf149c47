package blocklist

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"math"
	"testing"
)

// reseal gives a damaged list the checksums and the digest that its bytes should have, so that what it says is judged
// and not only its checksums. It returns nil for bytes that it cannot follow.
func reseal(raw []byte) []byte {
	b := bytes.Clone(raw)
	if key := []byte("\n\"sha256\": \""); bytes.HasPrefix(b, []byte("{")) {
		i := bytes.LastIndex(b, key)
		if i < 0 || len(b) < i+len(key)+64 {
			return nil
		}
		sum := sha256.Sum256(b[:i+1])
		hex.Encode(b[i+len(key):], sum[:])
		return b
	}
	at := len(magic)
	for at < len(b)-footerBytes {
		length, n := binary.Uvarint(b[at:])
		if n <= 0 || length < 7 || length > uint64(len(b)-at-n) {
			return nil
		}
		record := b[at+n:][:length]
		if record[0] == tag(trailerField, wireBytes) {
			sum := sha256.Sum256(b[:at])
			if i := bytes.Index(record, []byte{tag(trailerSHA256, wireBytes), 32}); i >= 0 && i+34 <= len(record) {
				copy(record[i+2:], sum[:])
			}
		}
		binary.LittleEndian.PutUint32(record[length-4:], crc32.Checksum(record[:length-crcBytes], castagnoli))
		at += n + int(length)
		if record[0] == tag(trailerField, wireBytes) && len(b)-at == footerBytes {
			binary.LittleEndian.PutUint64(b[at:], uint64(len(b)))
			binary.LittleEndian.PutUint32(b[at+8:], uint32(n)+uint32(length))
			binary.LittleEndian.PutUint32(b[at+12:], crc32.Checksum(b[at:at+12], castagnoli))
		}
	}
	return b
}

// TestResealIsHarmless keeps the tests that use reseal honest.
func TestResealIsHarmless(t *testing.T) {
	forSamples(t, func(t *testing.T, _ layout, raw []byte) {
		if !bytes.Equal(reseal(raw), raw) {
			t.Error("resealing changes a whole list")
		}
		damaged := bytes.Clone(raw)
		damaged[len(magic)+12] ^= 1
		if bytes.Equal(reseal(damaged), damaged) {
			t.Error("resealing does not follow a change")
		}
	})
}

// TestResealedFlips flips every bit and then repairs all checksums: what is accepted then must be a list in its one form.
func TestResealedFlips(t *testing.T) {
	forSamples(t, func(t *testing.T, l layout, raw []byte) {
		for i := range raw {
			for bit := range 8 {
				raw[i] ^= 1 << bit
				if sealed := reseal(raw); sealed != nil {
					checkCanonical(t, sealed, l)
				}
				raw[i] ^= 1 << bit
			}
		}
	})
}

// checkCanonical demands that a list which is read is the one that the encoder writes for what it says, and that any
// other is refused with one of the sentinels.
func checkCanonical(t *testing.T, raw []byte, l layout) {
	t.Helper()
	got, err := decode(bytes.NewReader(raw), l)
	if err != nil {
		if !isRefusal(err) {
			t.Fatalf("error %v is no refusal", err)
		}
		return
	}
	f := Binary
	if raw[0] == '{' {
		f = JSON
		if !json.Valid(raw) {
			t.Fatalf("what is read is no JSON:\n%s", raw)
		}
	}
	again, trailer := encode(t, f, l, got.Header, got.Extents)
	if !bytes.Equal(again, raw) || trailer != got.Trailer {
		t.Fatalf("accepted\n%q\nwhich encodes as\n%q", raw, again)
	}
}

// binaryList seals a Binary list of the given records' bodies, with a trailer for s.
func binaryList(s sequence, points *index, records ...[]byte) []byte {
	b := []byte(magic)
	for i, body := range records {
		field := chunkField
		if i == 0 {
			field = headerField
		}
		b = appendRecord(b, field, body)
	}
	return appendEnd(b, int64(len(b)), &s, points, sha256.Sum256(b))
}

// TestHostileChunks feeds chunks with right checksums and wrong content.
func TestHostileChunks(t *testing.T) {
	header := appendHeader(nil, benchHeader())
	values := func(v ...uint64) (b []byte) {
		for _, n := range v {
			b = binary.AppendUvarint(b, n)
		}
		return b
	}
	body := func(first, shift uint64, packed []byte) []byte {
		b := appendUint(nil, chunkFirstOffset, first)
		b = appendUint(b, chunkUnitShift, shift)
		return appendBytes(b, chunkExtents, packed)
	}
	for _, c := range []struct {
		name string
		body []byte
		ok   bool
	}{
		{"right", body(4096, 12, values(1, 1, 2<<1)), true},
		{"right, unaligned start", body(4097, 12, values(1, 1, 2<<1)), true},
		{"nothing", nil, false},
		{"no extents", body(4096, 12, nil), false},
		{"first gap is not 0", body(4096, 12, values(1<<1|1, 1)), false},
		{"first extent without a length", body(4096, 12, values(0)), false},
		{"length is missing", body(4096, 12, values(1)), false},
		{"length 0", body(4096, 12, values(1, 0)), false},
		{"the same length again", body(4096, 12, values(1, 1, 1, 1)), false},
		{"unit too small", body(4096, 11, values(1, 2, 4<<1)), false},
		{"unit of 2^63", body(0, 63, values(1, 1)), false},
		{"unit of 2^64+12", body(0, 76, values(1, 1)), false},
		{"long varint", body(4096, 12, []byte{0x81, 0x00, 1}), false},
		{"varint cut", body(4096, 12, []byte{1, 1, 0x80}), false},
		{"varint of eleven bytes", body(4096, 12, append(bytes.Repeat([]byte{0xff}, 10), 1)), false},
		{"gap overflows", body(4096, 12, values(1, 1, math.MaxUint64-1)), false},
		{"length overflows", body(4096, 12, values(1, math.MaxUint64)), false},
		{"past the capacity", body(1<<50, 0, values(1, 1)), false},
		{"first offset past int64", body(math.MaxUint64, 0, values(1, 1)), false},
		{"fields out of order", append(appendBytes(nil, chunkExtents, values(1, 1)), appendUint(nil, chunkFirstOffset, 4096)...), false},
		{"unknown field", append(body(4096, 12, values(1, 1)), tag(9, wireVarint), 1), false},
		{"unpacked values", []byte{tag(chunkExtents, wireVarint), 1, tag(chunkExtents, wireVarint), 1}, false},
		{"zero written out", append([]byte{tag(chunkFirstOffset, wireVarint), 0}, appendBytes(nil, chunkExtents, values(1, 1))...), false},
		{"more than 8192 extents", body(0, 0, append(values(1, 1), make([]byte, 8192)...)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The trailer is right if the chunk is read as its writer may have meant it.
			s, points := sequence{count: 1, changed: 4096}, newIndex(formatLayout)
			if c.ok {
				first, _, _ := cutUint(c.body, chunkFirstOffset)
				s = sequence{count: 2, changed: 8192}
				points.next(point{position: int64(len(appendRecord([]byte(magic), headerField, header))), offset: int64(first)})
			}
			raw := binaryList(s, &points, header, c.body)
			_, err := decode(bytes.NewReader(raw), formatLayout)
			if c.ok && err != nil || !c.ok && !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			checkCanonical(t, raw, formatLayout)
		})
	}
}

// TestChunkOrder feeds whole chunks in a wrong order or of a wrong size.
func TestChunkOrder(t *testing.T) {
	header := appendHeader(nil, benchHeader())
	body := func(first uint64) []byte {
		return appendBytes(appendUint(nil, chunkFirstOffset, first), chunkExtents, []byte{1, 1})
	}
	points := newIndex(formatLayout)
	for name, bodies := range map[string][][]byte{
		"a short chunk before another": {header, body(1), body(5)},
		"descending":                   {header, body(5), body(1)},
		"overlapping":                  {header, body(5), body(5)},
	} {
		raw := binaryList(sequence{count: 2, changed: 2}, &points, bodies...)
		if _, err := decode(bytes.NewReader(raw), formatLayout); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestVersions demands ErrVersion for a newer list, whatever else it holds.
func TestVersions(t *testing.T) {
	newer := appendUint(nil, headerVersion, 2)
	newer = appendBytes(newer, 100%16, "a field that version 1 does not have")
	for name, raw := range map[string][]byte{
		"Binary": append(appendRecord([]byte(magic), headerField, newer), "and a body of another kind"...),
		"JSON":   []byte("{\n\"format_version\": 2,\n\"extents\": []}\n"),
		"far":    []byte("{\n\"format_version\": 4294967295,\n"),
	} {
		if _, _, err := Verify(bytes.NewReader(raw)); !errors.Is(err, ErrVersion) {
			t.Errorf("%s: error %v, want %v", name, err, ErrVersion)
		}
	}
	for _, version := range []string{"0", "-1", "01", "1.0", "x", "", "99999999999999999999"} {
		raw := []byte("{\n\"format_version\": " + version + ",\n\"mode\": \"Delta\",\n")
		if _, _, err := Verify(bytes.NewReader(raw)); !isRefusal(err) || errors.Is(err, ErrVersion) {
			t.Errorf("version %q: error %v", version, err)
		}
	}
}

// TestForeignJSON refuses what other writers, or an editor, make of the same content.
func TestForeignJSON(t *testing.T) {
	whole, _ := encode(t, JSON, formatLayout, sampleHeader(), blocks(0, 2, 4))
	for name, c := range map[string]struct{ old, new string }{
		"CRLF":            {"\n", "\r\n"},
		"spaces":          {`,"size_bytes"`, `, "size_bytes"`},
		"keys swapped":    {`{"byte_offset":8192,"size_bytes":4096}`, `{"size_bytes":4096,"byte_offset":8192}`},
		"offset absent":   {`{"byte_offset":0,`, `{`},
		"exponent":        {`"size_bytes":4096`, `"size_bytes":4.096e3`},
		"leading zero":    {`:8192`, `:08192`},
		"plus":            {`:8192`, `:+8192`},
		"minus":           {`"byte_offset":0`, `"byte_offset":-0`},
		"too large":       {`:8192`, `:9223372036854775808`},
		"twenty digits":   {`:8192`, `:81929999999999999999`},
		"no number":       {`:8192`, `:`},
		"string":          {`:8192`, `:"8192"`},
		"escaped slash":   {`"shop"`, `"\u0073hop"`},
		"null":            {`"merged": true`, `"merged": null`},
		"incomplete":      {`"complete": true`, `"complete": false`},
		"upper-case hash": {`"sha256": "`, `"sha256": "A`},
		"other count":     {`"entry_count": 3`, `"entry_count": 4`},
		"other sum":       {`"changed_bytes": 12288`, `"changed_bytes": 12289`},
		"line lost":       {"{\"byte_offset\":8192,\"size_bytes\":4096},\n", ""},
		"last comma":      {"}\n],", "},\n],"},
		"no comma":        {"},\n{\"byte_offset\":8192", "}\n{\"byte_offset\":8192"},
		"negative size":   {`"base_restore_size_bytes": 8388608`, `"base_restore_size_bytes": -8388608`},
		"unknown mode":    {`"mode": "Delta"`, `"mode": "Full"`},
		"field lost":      {"\"merged\": true,\n", ""},
		"past capacity":   {`"volume_capacity_bytes": 10485760`, `"volume_capacity_bytes": 20479`},
	} {
		raw := bytes.ReplaceAll(whole, []byte(c.old), []byte(c.new))
		if bytes.Equal(raw, whole) {
			t.Fatalf("%s: nothing was replaced", name)
		}
		for _, raw := range [][]byte{raw, reseal(raw)} {
			if _, _, err := Verify(bytes.NewReader(raw)); raw != nil && !isRefusal(err) {
				t.Errorf("%s: error %v", name, err)
			}
		}
	}
}
