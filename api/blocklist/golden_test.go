package blocklist

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files in testdata; after a change of them the formats' pages in docs must follow")

// guideHeader is that of the list which the formats' pages show: the increment of the upstream hostpath driver's guide.
func guideHeader() Header {
	return Header{
		Mode:                   Delta,
		Driver:                 "hostpath.csi.k8s.io",
		Namespace:              "default",
		BaseSnapshot:           "snap-1",
		BaseSnapshotHandle:     "a1",
		TargetSnapshot:         "snap-2",
		TargetSnapshotHandle:   "b2",
		VolumeCapacityBytes:    10 << 20,
		BaseRestoreSizeBytes:   10 << 20,
		TargetRestoreSizeBytes: 10 << 20,
		BlockMetadataType:      FixedLength,
	}
}

// TestGolden demands that the bytes of both formats never change, and that the golden files are read as what they are.
func TestGolden(t *testing.T) {
	empty := guideHeader()
	empty.BlockMetadataType = UnknownLength
	awkward := Header{
		Mode: Allocated, Driver: "d", TargetSnapshot: "\"t\" \\ \n\u2028 \U0001f4be", VolumeCapacityBytes: 1 << 62,
		BlockMetadataType: VariableLength, GranularityBytes: 512, Merged: true,
	}
	for _, c := range []struct {
		name    string
		header  Header
		extents []Extent
	}{
		{"guide", guideHeader(), blocks(2, 4, 9)},
		{"empty", empty, nil},
		{"awkward", awkward, []Extent{{0, 1}, {3, 7}, {10, 4096}, {1 << 20, 1 << 30}, {5 << 30, 1 << 30}, {1<<62 - 1, 1}}},
	} {
		for f, extension := range map[Format]string{JSON: ".json", Binary: ".cbl"} {
			t.Run(c.name+extension, func(t *testing.T) {
				raw, trailer := encode(t, f, formatLayout, c.header, c.extents)
				golden(t, c.name+extension, raw)
				if err := survives(raw, formatLayout, c.header, c.extents, trailer); err != nil {
					t.Error(err)
				}
			})
		}
	}
	raw, trailer := encode(t, Binary, formatLayout, guideHeader(), blocks(2, 4, 9))
	golden(t, "guide.device", image(raw, trailer, 0))
}

// TestGoldenDigests does the same for lists that are too long to keep: of several chunks, and with an index that was
// thinned out.
func TestGoldenDigests(t *testing.T) {
	var lines strings.Builder
	for _, n := range []int{8192, 8193, 50_000} {
		for _, f := range []Format{JSON, Binary} {
			_, trailer := encode(t, f, formatLayout, benchHeader(), benchExtents(n))
			fmt.Fprintf(&lines, "%x  %s-%d\n", trailer.ListSHA256, f, n)
		}
	}
	_, trailer := encode(t, Binary, small, benchHeader(), benchExtents(1_000))
	fmt.Fprintf(&lines, "%x  small-chunks\n", trailer.ListSHA256)
	golden(t, "SHA256SUMS", []byte(lines.String()))
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s changed; it is\n%s", path, hex.Dump(got[:min(len(got), 1024)]))
	}
}

// longestLine returns the length of the line of an extent whose numbers have as many digits as there can be.
func longestLine(t *testing.T) int {
	h := guideHeader()
	h.VolumeCapacityBytes = math.MaxInt64
	raw, _ := encode(t, JSON, formatLayout, h, []Extent{{Offset: 1e18, Length: 1e18}, {Offset: 8e18, Length: 1e18}})
	longest := 0
	for line := range bytes.Lines(raw) {
		if bytes.HasPrefix(line, []byte("{\"byte_offset")) {
			longest = max(longest, len(line))
		}
	}
	return longest
}

// TestPages demands that the pages in docs show the golden files, and the numbers, as they are.
func TestPages(t *testing.T) {
	file := func(path string) string {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	list, device := file("testdata/guide.cbl"), file("testdata/guide.device")
	for page, shows := range map[string][]string{
		"format-json.md": {
			file("testdata/guide.json"),
			fmt.Sprintf("%x  changed-blocks.json", sha256.Sum256([]byte(file("testdata/guide.json")))),
			fmt.Sprintf("%d bytes", MaxStringBytes),
			fmt.Sprintf("at most %d bytes long, its comma and line feed included", longestLine(t)),
		},
		"format-binary.md": {
			hex.Dump([]byte(list)),
			hex.Dump([]byte(device[:64])),
			fmt.Sprintf("%x  changed-blocks.cbl", sha256.Sum256([]byte(list))),
			fmt.Sprintf("%d extents", formatLayout.chunkEntries),
			fmt.Sprintf("%d points", formatLayout.indexPoints),
			fmt.Sprintf("%d bytes", maxRecord),
			fmt.Sprintf("%d bytes", DeviceHeaderBytes),
		},
	} {
		text := file(filepath.Join("..", "..", "docs", page))
		for _, part := range shows {
			if !strings.Contains(text, part) {
				t.Errorf("docs/%s does not show\n%s", page, part)
			}
		}
	}
}
