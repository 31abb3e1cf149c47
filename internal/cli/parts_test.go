package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestCutLengths: of a list whose extents had one length, a part that may have cut some does not say so any more, in any format. A
// part of whole extents still does.
func TestCutLengths(t *testing.T) {
	h := increment("mon", "tue")
	h.GranularityBytes = 0
	path := listFile(t, h, 0, 1, 4, 9)
	for _, c := range []struct {
		args string
		want blocklist.BlockMetadataType
	}{
		{"cat", blocklist.FixedLength}, {"cat --offset 1 --limit 2", blocklist.FixedLength},
		{"cat --range 0-5000", blocklist.VariableLength}, {"cat --range 5000- --limit 1", blocklist.VariableLength},
		{"slice --workers 2 --worker 0 --align 512", blocklist.VariableLength},
	} {
		args := append(strings.Fields(c.args), path)
		if got := header(t, ok(t, args...)).BlockMetadataType; got != c.want {
			t.Errorf("%s: json is %s, want %s", c.args, got, c.want)
		}
		lister := file(t, "lister.json", []byte(ok(t, append(args, "-o", "lister")...)))
		if got := header(t, ok(t, "cat", lister, "--mode", "Delta")).BlockMetadataType; got != c.want {
			t.Errorf("%s: lister is %s, want %s", c.args, got, c.want)
		}
		if table := ok(t, append(args, "-o", "table")...); !strings.Contains(table, string(c.want)) {
			t.Errorf("%s, want %s:\n%s", c.args, c.want, table)
		}
	}
	empty := increment("mon", "tue")
	empty.BlockMetadataType = blocklist.UnknownLength
	if got := header(t, ok(t, "cat", listFile(t, empty), "--range", "0-1")); got.BlockMetadataType != blocklist.UnknownLength {
		t.Errorf("a part of an empty list is %s", got.BlockMetadataType)
	}
}

// TestParts: a part is what was asked for, whole by itself, and says that it is a part.
func TestParts(t *testing.T) {
	path := listFile(t, increment("mon", "tue"), 0, 1, 4, 9)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "0\t4096\n4096\t4096\n16384\t4096\n36864\t4096\n"},
		{[]string{"--offset", "1", "--limit", "2"}, "4096\t4096\n16384\t4096\n"},
		{[]string{"--offset", "3"}, "36864\t4096\n"},
		{[]string{"--offset", "9"}, ""},
		{[]string{"--limit", "0"}, ""},
		{[]string{"--range", "5000-16385"}, "5000\t3192\n16384\t1\n"},
		{[]string{"--range", "16Ki:8Ki"}, "16384\t4096\n"},
		{[]string{"--range", "16Ki-"}, "16384\t4096\n36864\t4096\n"},
		{[]string{"--range", "-4Ki"}, "0\t4096\n"},
		{[]string{"--range", "8Ki-16Ki"}, ""},
		{[]string{"--range", "1Ei-"}, ""},
		{[]string{"--range", "1Ki:7Ei"}, "1024\t3072\n4096\t4096\n16384\t4096\n36864\t4096\n"},
		{[]string{"--range", "4Ki-", "--offset", "1", "--limit", "1"}, "16384\t4096\n"},
	} {
		args := append([]string{"cat", path}, c.args...)
		if got := ok(t, append(args, "-o", "tsv")...); got != c.want {
			t.Errorf("%v: %q, want %q", c.args, got, c.want)
		}
		for _, format := range []string{"json", "cbl"} {
			h := header(t, ok(t, append(args, "-o", format)...))
			if part := len(c.args) > 0; strings.Contains(h.TargetSnapshot, "tue (part") != part || (h.TargetSnapshotHandle == "") != part {
				t.Errorf("%v: %+v", c.args, h)
			}
		}
	}
	if h := header(t, ok(t, "cat", path, "--range", "4Ki-8Ki")); h.GranularityBytes != 4096 {
		t.Errorf("a part of whole blocks has granularity %d", h.GranularityBytes)
	}
	if h := header(t, ok(t, "cat", path, "--range", "4Ki-5000")); h.GranularityBytes != 0 {
		t.Errorf("a part of a block has granularity %d", h.GranularityBytes)
	}
}

func TestSlice(t *testing.T) {
	h := increment("mon", "tue")
	path := file(t, "list", encode(t, blocklist.Binary, h, []blocklist.Extent{{Offset: 4096, Length: 40 * 4096}, {Offset: 900 << 10, Length: 4096}}))
	dir := filepath.Join(t.TempDir(), "slices")
	ok(t, "slice", path, "--workers", "3", "--dir", dir, "-o", "cbl")
	var together strings.Builder
	for i, name := range []string{"0.cbl", "1.cbl", "2.cbl"} {
		got := ok(t, "cat", filepath.Join(dir, name), "-o", "tsv")
		if alone := ok(t, "slice", path, "--workers", "3", "--worker", string(rune('0'+i)), "-o", "tsv"); alone != got {
			t.Errorf("slice %d: %q alone, %q in the folder", i, alone, got)
		}
		together.WriteString(got)
	}
	if want := "4096\t57344\n61440\t57344\n118784\t49152\n921600\t4096\n"; together.String() != want {
		t.Errorf("slices: %q", together.String())
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the folder: %v, %v", entries, err)
	}
	if r := cbr(t, "", "slice", path, "--workers", "3", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "there already") {
		t.Errorf("into a folder that is there: %+v", r)
	}
}
