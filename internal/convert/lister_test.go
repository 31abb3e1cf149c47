package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// imported reads the lister's JSON and returns the list that became of it.
func imported(t *testing.T, text string, h blocklist.Header) (blocklist.Header, []blocklist.Extent, error) {
	t.Helper()
	var raw bytes.Buffer
	if err := ImportLister(t.Context(), &raw, strings.NewReader(text), h); err != nil {
		return blocklist.Header{}, nil, err
	}
	r, err := blocklist.NewReader(&raw)
	if err != nil {
		t.Fatal(err)
	}
	var all []blocklist.Extent
	for e, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return r.Header(), all, nil
}

// TestImport reads what the upstream lister prints, and what other programs make of it.
func TestImport(t *testing.T) {
	two := []blocklist.Extent{{Offset: 0, Length: 1000}, {Offset: 5000, Length: 1000}}
	for name, c := range map[string]struct {
		text string
		kind blocklist.BlockMetadataType
		want []blocklist.Extent
	}{
		"one record, offset 0 left out": {`[{"block_metadata_type":1,"volume_capacity_bytes":100000,"block_metadata":[{"size_bytes":1000},{"byte_offset":5000,"size_bytes":1000}]}]`, blocklist.FixedLength, two},
		"two records":                   {`[{"block_metadata_type":2,"volume_capacity_bytes":100000,"block_metadata":[{"size_bytes":1000}]},{"block_metadata_type":2,"volume_capacity_bytes":100000,"block_metadata":[{"byte_offset":5000,"size_bytes":1000}]}]`, blocklist.VariableLength, two},
		"keys in alphabetical order":    {` [ {"block_metadata" : [{"byte_offset":0,"size_bytes":1000},{"byte_offset":5000,"size_bytes":1000}],"block_metadata_type":1,"volume_capacity_bytes":100000}]` + "\n\n", blocklist.FixedLength, two},
		"type by name":                  {`[{"block_metadata_type":"FIXED_LENGTH","volume_capacity_bytes":100000,"block_metadata":[]}]`, blocklist.FixedLength, nil},
		"no extents in a record":        {`[{"block_metadata_type":1,"volume_capacity_bytes":100000,"block_metadata":null},{"block_metadata_type":1,"volume_capacity_bytes":100000}]`, blocklist.FixedLength, nil},
	} {
		h, got, err := imported(t, c.text, blocklist.Header{Mode: blocklist.Delta})
		if err != nil || h.VolumeCapacityBytes != 100000 || h.BlockMetadataType != c.kind || !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, %v, %v", name, h, got, err)
		}
	}
	h, got, err := imported(t, "[]", blocklist.Header{Mode: blocklist.Allocated, VolumeCapacityBytes: 7})
	if err != nil || h.VolumeCapacityBytes != 7 || h.Mode != blocklist.Allocated || len(got) != 0 {
		t.Errorf("empty: %+v, %v, %v", h, got, err)
	}
}

const whole = `[{"block_metadata_type":1,"volume_capacity_bytes":100000,"block_metadata":[{"byte_offset":5000,"size_bytes":1000}]}]`

func TestImportRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		is   error
		says string
	}{
		"an empty list":            {`[]`, ErrNotLister, "size of the volume"},
		"something behind":         {whole + "[]", ErrNotLister, "follows"},
		"an object":                {`{}`, ErrNotLister, "in place of ["},
		"a number":                 {`[7]`, ErrNotLister, "in place of {"},
		"another capacity":         {strings.Replace(whole, "[{", `[{"block_metadata_type":1,"volume_capacity_bytes":99},{`, 1), ErrNotLister, "was 99"},
		"another type":             {strings.Replace(whole, "[{", `[{"block_metadata_type":2,"volume_capacity_bytes":100000},{`, 1), ErrNotLister, "was VARIABLE"},
		"an unknown type":          {strings.Replace(whole, `:1,`, `:0,`, 1), ErrNotLister, "of 0"},
		"no type":                  {`[{"volume_capacity_bytes":100000}]`, ErrNotLister, "without"},
		"no capacity":              {`[{"block_metadata_type":1}]`, ErrNotLister, "without"},
		"a capacity of 0":          {strings.Replace(whole, "100000", "0", 1), ErrNotLister, "capacity is 0"},
		"a fraction":               {strings.Replace(whole, "5000", "5000.5", 1), ErrNotLister, ""},
		"too large a number":       {strings.Replace(whole, "5000", "9223372036854775808", 1), ErrNotLister, ""},
		"a text":                   {strings.Replace(whole, "5000", `"5000"`, 1), ErrNotLister, ""},
		"other names":              {strings.Replace(whole, "byte_offset", "byteOffset", 1), ErrNotLister, "byteOffset"},
		"another field":            {strings.Replace(whole, "[{", `[{"base":"x",`, 1), ErrNotLister, "base"},
		"a field twice":            {strings.Replace(whole, "[{", `[{"block_metadata_type":1,`, 1), ErrNotLister, "twice"},
		"an extent without length": {strings.Replace(whole, `,"size_bytes":1000`, "", 1), blocklist.ErrExtent, "byte"},
		"past the end":             {strings.Replace(whole, "5000", "99001", 1), blocklist.ErrExtent, "capacity"},
		"a negative offset":        {strings.Replace(whole, "5000", "-1", 1), blocklist.ErrExtent, ""},
		"not ascending":            {strings.Replace(whole, "}]}", `},{"byte_offset":5999,"size_bytes":1}]}`, 1), blocklist.ErrExtent, ""},
	} {
		_, _, err := imported(t, c.text, blocklist.Header{Mode: blocklist.Delta})
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v and %q", name, err, c.is, c.says)
		}
	}
	for n := range len(whole) {
		if _, _, err := imported(t, whole[:n], blocklist.Header{Mode: blocklist.Delta}); !errors.Is(err, ErrNotLister) {
			t.Errorf("cut to %q: %v", whole[:n], err)
		}
	}
	if _, _, err := imported(t, whole, blocklist.Header{Mode: blocklist.Delta, VolumeCapacityBytes: 5}); !errors.Is(err, ErrNotLister) {
		t.Errorf("a capacity that contradicts the flag: %v", err)
	}
}

// TestImportBroken: an error of the file is not taken for one of the list.
func TestImportBroken(t *testing.T) {
	broken := errors.New("input/output error")
	for _, n := range []int{0, 10, 60, len(whole) - 1, len(whole)} {
		r := struct {
			io.Reader
			io.Seeker
		}{io.MultiReader(strings.NewReader(whole[:n]), iotest.ErrReader(broken)), nil}
		if err := ImportLister(t.Context(), io.Discard, r, blocklist.Header{Mode: blocklist.Delta}); !errors.Is(err, broken) || errors.Is(err, ErrNotLister) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ImportLister(cancelled, io.Discard, strings.NewReader(whole), blocklist.Header{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := ImportLister(t.Context(), brokenWriter{broken}, strings.NewReader(whole), blocklist.Header{Mode: blocklist.Delta}); !errors.Is(err, broken) {
		t.Errorf("broken writer: %v", err)
	}
}

// TestListerRoundTrip writes random lists as the lister does and reads them back.
func TestListerRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		h := header()
		h.VolumeCapacityBytes = 1 << 40
		var all []blocklist.Extent
		at := int64(0)
		for range rng.IntN(3 * recordExtents) {
			at += rng.Int64N(3) * 512
			e := blocklist.Extent{Offset: at, Length: 1 + rng.Int64N(1<<20)}
			all = append(all, e)
			at = e.End()
		}
		var text bytes.Buffer
		if err := Write(t.Context(), &text, Lister, listOf(h, all)); err != nil {
			t.Fatal(err)
		}
		got, extents, err := imported(t, text.String(), blocklist.Header{Mode: blocklist.Delta, VolumeCapacityBytes: 1 << 40})
		if err != nil || !slices.Equal(extents, all) || len(all) > 0 && got.BlockMetadataType != h.BlockMetadataType {
			t.Fatalf("%v: %+v, %v, %v", all, got, extents, err)
		}
	}
}

// TestTypes: the lister's FIXED_LENGTH promises one length, which a list of ours that was rounded or merged no longer has. Our own
// formats repeat what the driver said.
func TestTypes(t *testing.T) {
	for name, c := range map[string]struct {
		driver, want blocklist.BlockMetadataType
		change       func(*blocklist.Header)
	}{
		"as the driver sent it":  {blocklist.FixedLength, blocklist.FixedLength, func(*blocklist.Header) {}},
		"merged":                 {blocklist.FixedLength, blocklist.VariableLength, func(h *blocklist.Header) { h.Merged = true }},
		"rounded":                {blocklist.FixedLength, blocklist.VariableLength, func(h *blocklist.Header) { h.GranularityBytes = 65536 }},
		"of variable length":     {blocklist.VariableLength, blocklist.VariableLength, func(*blocklist.Header) {}},
		"of variable and merged": {blocklist.VariableLength, blocklist.VariableLength, func(h *blocklist.Header) { h.Merged = true }},
	} {
		h := header()
		h.BlockMetadataType = c.driver
		c.change(&h)
		printed := func(f Format) string {
			var text bytes.Buffer
			if err := Write(t.Context(), &text, f, listOf(h, sample())); err != nil {
				t.Fatal(err)
			}
			return text.String()
		}
		got, _, err := imported(t, printed(Lister), blocklist.Header{Mode: blocklist.Delta})
		if err != nil || got.BlockMetadataType != c.want {
			t.Errorf("%s, as lister: %s, %v, want %s", name, got.BlockMetadataType, err, c.want)
		}
		if table := printed(Table); strings.Count(table, string(c.want)) != len(sample()) {
			t.Errorf("%s, as table, want %s:\n%s", name, c.want, table)
		}
		if list, _, err := blocklist.Verify(strings.NewReader(printed(JSON))); err != nil || list.BlockMetadataType != c.driver {
			t.Errorf("%s, as json: %s, %v, want %s", name, list.BlockMetadataType, err, c.driver)
		}
	}
}
