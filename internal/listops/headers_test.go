package listops

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// increment returns the header of the list from one snapshot to another.
func increment(from, to string) Named {
	h := blocklist.Header{
		Mode: blocklist.Delta, Driver: "d.csi", Namespace: "shop", TargetSnapshot: to, TargetSnapshotHandle: "h-" + to,
		VolumeCapacityBytes: 1 << 30, BlockMetadataType: blocklist.FixedLength, GranularityBytes: 65536, TargetRestoreSizeBytes: 7,
	}
	if from == "" {
		h.Mode = blocklist.Allocated
	} else {
		h.BaseSnapshot, h.BaseSnapshotHandle, h.BaseRestoreSizeBytes = from, "h-"+from, 6
	}
	return Named{Name: from + "-" + to, Header: h}
}

func TestSameVolume(t *testing.T) {
	a, b := increment("mon", "tue"), increment("tue", "wed")
	if err := SameVolume([]Named{a, b}); err != nil {
		t.Error(err)
	}
	driver, larger := b, b
	driver.Driver, larger.VolumeCapacityBytes = "e.csi", 2<<30
	for _, other := range []Named{driver, larger} {
		err := SameVolume([]Named{a, b, other})
		if !errors.Is(err, ErrOtherVolume) || !strings.Contains(err.Error(), "mon-tue") || !strings.Contains(err.Error(), "tue-wed") {
			t.Errorf("%+v: %v", other, err)
		}
	}
}

func TestChained(t *testing.T) {
	part := increment("tue", "wed")
	part.Header = Part(part.Header, "part: a half")
	fallback := increment("mon", "tue")
	fallback.Mode = blocklist.Allocated
	for _, c := range []struct {
		name  string
		lists []Named
		ok    bool
	}{
		{"a week", []Named{increment("sun", "mon"), increment("mon", "tue"), increment("tue", "wed")}, true},
		{"a full one first", []Named{increment("", "mon"), increment("mon", "tue")}, true},
		{"a gap", []Named{increment("sun", "mon"), increment("tue", "wed")}, false},
		{"in the wrong order", []Named{increment("mon", "tue"), increment("sun", "mon")}, false},
		{"a full one behind", []Named{increment("sun", "mon"), increment("", "mon")}, false},
		{"twice the same", []Named{increment("sun", "mon"), increment("sun", "mon")}, false},
		{"without handles", []Named{{"a", blocklist.Header{TargetSnapshot: "x"}}, {"b", blocklist.Header{BaseSnapshot: "x"}}}, false},
		{"a fallback behind", []Named{increment("", "mon"), fallback, increment("tue", "wed")}, false},
		{"a fallback first", []Named{fallback, increment("tue", "wed")}, true},
		{"behind a part", []Named{part, increment("wed", "thu")}, false},
	} {
		if err := Chained(c.lists); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrNoChain) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestUnionHeader(t *testing.T) {
	a, b, c := increment("sun", "mon"), increment("mon", "tue"), increment("tue", "wed")
	c.GranularityBytes, c.TargetRestoreSizeBytes = 4096, 9
	want := blocklist.Header{
		Mode: blocklist.Delta, Driver: "d.csi", Namespace: "shop", BaseSnapshot: "sun", BaseSnapshotHandle: "h-sun",
		TargetSnapshot: "wed", TargetSnapshotHandle: "h-wed", VolumeCapacityBytes: 1 << 30, BaseRestoreSizeBytes: 6,
		TargetRestoreSizeBytes: 9, BlockMetadataType: blocklist.VariableLength, GranularityBytes: 4096, Merged: true,
	}
	if diff := cmp.Diff(want, UnionHeader([]Named{a, b, c})); diff != "" {
		t.Error(diff)
	}
	b.Mode = blocklist.Allocated // the fallback of a delta
	if got := UnionHeader([]Named{a, b, c}); got.Mode != blocklist.Allocated {
		t.Errorf("mode %s", got.Mode)
	}
	if got := UnionHeader([]Named{increment("", "mon"), increment("mon", "tue")}); got.Mode != blocklist.Allocated || got.BaseSnapshotHandle != "" {
		t.Errorf("%+v", got)
	}
}

// TestPrintable: a list cannot move the terminal's cursor.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"snap-1": "snap-1", "é 💾": "é 💾", "a\x1b[2Jb": `"a\x1b[2Jb"`, "a\nb": `"a\nb"`} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	var b strings.Builder
	h := increment("mon", "tue").Header
	h.Driver, h.Namespace, h.BaseSnapshot, h.TargetSnapshot = "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[4m"
	h.BaseSnapshotHandle, h.TargetSnapshotHandle = "\x1b[5m", "\x1b[6m"
	if err := Summarize(h, blocklist.Trailer{}).Print(&b); err != nil || strings.Contains(b.String(), "\x1b") {
		t.Errorf("%q, %v", b.String(), err)
	}
}
