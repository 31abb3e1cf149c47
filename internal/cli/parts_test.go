package cli

import (
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
