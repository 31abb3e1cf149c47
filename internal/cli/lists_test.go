package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/convert"
)

// result is how a command ended.
type result struct {
	code     int
	out, err string
}

// cbr runs the program with stdin.
func cbr(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := Execute(t.Context(), Streams{In: strings.NewReader(stdin), Out: &out, Err: &errs}, "test", args)
	return result{code, out.String(), errs.String()}
}

// ok runs the program and demands success.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	r := cbr(t, "", args...)
	if r.code != 0 {
		t.Fatalf("%q: exit code %d, %s", args, r.code, r.err)
	}
	return r.out
}

// increment returns the header of a list from one snapshot to another of a volume of 1 MiB.
func increment(from, to string) blocklist.Header {
	return blocklist.Header{
		Mode: blocklist.Delta, Driver: "d.csi", Namespace: "shop", BaseSnapshot: from, BaseSnapshotHandle: "h-" + from,
		TargetSnapshot: to, TargetSnapshotHandle: "h-" + to, VolumeCapacityBytes: 1 << 20, BlockMetadataType: blocklist.FixedLength, GranularityBytes: 4096,
	}
}

func encode(t *testing.T, f blocklist.Format, h blocklist.Header, extents []blocklist.Extent) []byte {
	t.Helper()
	var b bytes.Buffer
	e, err := blocklist.NewEncoder(&b, f, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Encode(extents); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Finish(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file writes content into a file of a folder of its own and returns its path.
func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// blocks returns an extent of 4 KiB for each block number.
func blocks(numbers ...int64) []blocklist.Extent {
	var all []blocklist.Extent
	for _, n := range numbers {
		all = append(all, blocklist.Extent{Offset: n * 4096, Length: 4096})
	}
	return all
}

func listFile(t *testing.T, h blocklist.Header, numbers ...int64) string {
	t.Helper()
	return file(t, h.TargetSnapshot+".cbl", encode(t, blocklist.Binary, h, blocks(numbers...)))
}

// header returns the header of a list that a command printed, which must be whole.
func header(t *testing.T, printed string) blocklist.Header {
	t.Helper()
	h, _, err := blocklist.Verify(strings.NewReader(printed))
	if err != nil {
		t.Fatalf("%v:\n%s", err, printed)
	}
	return h
}

// TestInputs reads the same list from everything that may hold one.
func TestInputs(t *testing.T) {
	temporary(t)
	h, extents := increment("mon", "tue"), blocks(0, 4, 5, 9)
	raw := encode(t, blocklist.Binary, h, extents)
	_, trailer, err := blocklist.Verify(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	lister := `[{"block_metadata_type":1,"volume_capacity_bytes":1048576,"block_metadata":[{"size_bytes":4096},{"byte_offset":16384,"size_bytes":4096},` +
		`{"byte_offset":20480,"size_bytes":4096},{"byte_offset":36864,"size_bytes":4096}]}]`
	const want = "0\t4096\n16384\t4096\n20480\t4096\n36864\t4096\n"
	for name, content := range map[string][]byte{
		"list.json": encode(t, blocklist.JSON, h, extents), "list.cbl": raw, "lister.json": []byte(lister), "spaced.json": []byte(" \n" + lister),
		"device": append(blocklist.DeviceRecord(trailer.ListBytes, trailer.ListSHA256), raw...),
	} {
		if got := ok(t, "cat", file(t, name, content), "-o", "tsv"); got != want {
			t.Errorf("%s: %s", name, got)
		}
		if r := cbr(t, string(content), "cat", "-", "-o", "tsv"); r.out != want {
			t.Errorf("%s on standard input: %+v", name, r)
		}
	}
	listerFile := file(t, "lister.json", []byte(lister))
	if r := cbr(t, "", "cat", listerFile, "-o", "cbl"); r.code != exitUsage || !strings.Contains(r.err, "--mode") {
		t.Errorf("the lister's JSON without a mode: %+v", r)
	}
	got := header(t, ok(t, "cat", listerFile, "-o", "json", "--mode", "Allocated"))
	if got.Mode != blocklist.Allocated || got.VolumeCapacityBytes != 1<<20 || got.BlockMetadataType != blocklist.FixedLength {
		t.Errorf("%+v", got)
	}
	if r := cbr(t, "", "verify", listerFile); r.code != exitFailed || !strings.Contains(r.err, "no checksum") {
		t.Errorf("verify: %+v", r)
	}
	if out := ok(t, "info", listerFile, "-o", "json"); !strings.Contains(out, `"mode": "unknown"`) || !strings.Contains(out, `"format": "Lister"`) {
		t.Error(out)
	}
}

// temporary is a folder for temporary files that must be empty at the test's end.
func temporary(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}
	})
}

func TestUnionAndDiff(t *testing.T) {
	mon, tue, wed := listFile(t, increment("sun", "mon"), 1, 2, 9), listFile(t, increment("mon", "tue"), 2, 3), listFile(t, increment("tue", "wed"), 255)
	if got, want := ok(t, "union", mon, tue, wed, "-o", "tsv"), "4096\t12288\n36864\t4096\n1044480\t4096\n"; got != want {
		t.Errorf("union: %q", got)
	}
	h := header(t, ok(t, "union", mon, tue, wed))
	if h.BaseSnapshotHandle != "h-sun" || h.TargetSnapshotHandle != "h-wed" || h.TargetSnapshot != "wed" || !h.Merged {
		t.Errorf("%+v", h)
	}
	if got, want := ok(t, "diff", mon, tue, "-o", "tsv"), "4096\t4096\n36864\t4096\n"; got != want {
		t.Errorf("diff: %q", got)
	}
	if h := header(t, ok(t, "diff", mon, tue)); h.TargetSnapshotHandle != "" || !strings.Contains(h.TargetSnapshot, "without what tue has") {
		t.Errorf("%+v", h)
	}
	other := increment("mon", "tue")
	other.Driver = "e.csi"
	larger := increment("mon", "tue")
	larger.VolumeCapacityBytes = 2 << 20
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"a gap":               {[]string{"union", mon, wed}, "do not follow"},
		"the wrong order":     {[]string{"union", tue, mon}, "do not follow"},
		"union, other driver": {[]string{"union", mon, listFile(t, other, 1)}, "e.csi"},
		"diff, other driver":  {[]string{"diff", mon, listFile(t, other, 1)}, "e.csi"},
		"union, resized":      {[]string{"union", mon, listFile(t, larger, 1)}, "2097152"},
		"diff, resized":       {[]string{"diff", mon, listFile(t, larger, 1)}, "2097152"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		r := cbr(t, "", append(c.args, "--out", out)...)
		if _, err := os.Stat(out); r.code != exitFailed || r.out != "" || !strings.Contains(r.err, c.says) || !strings.Contains(r.err, "--force") || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if h := header(t, ok(t, append(c.args, "--force")...)); h.TargetSnapshotHandle != "" || !strings.Contains(h.TargetSnapshot, "(") {
			t.Errorf("%s, forced: %+v", name, h)
		}
	}
}

func TestVerifyAndInfo(t *testing.T) {
	path := listFile(t, increment("mon", "tue"), 0, 1, 4, 9)
	if out := ok(t, "verify", path); !strings.HasPrefix(out, path+" is whole\n") || !strings.Contains(out, "shop/tue") {
		t.Error(out)
	}
	var got information
	if err := json.Unmarshal([]byte(ok(t, "info", path, "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	want := information{
		Format: "Binary", ChangedShare: 4.0 / 256, RunCount: 3, ShortestBytes: 4096, MeanBytes: 4096, LongestBytes: 4096,
		Histogram: []sizeClass{{FromBytes: 4096, EntryCount: 4, ChangedBytes: 16384}}, Summary: got.Summary,
	}
	if diff := cmp.Diff(want, got); diff != "" || got.EntryCount != 4 || got.ChangedBytes != 16384 || got.Driver != "d.csi" {
		t.Errorf("%s %+v", diff, got.Summary)
	}
	for _, output := range []string{"table", "yaml"} {
		if out := ok(t, "info", path, "-o", output); !strings.Contains(out, "shop") {
			t.Error(out)
		}
	}
	if out := ok(t, "info", listFile(t, increment("mon", "tue"))); !strings.Contains(out, "entries      0") {
		t.Error(out)
	}
}

func TestMap(t *testing.T) {
	path := listFile(t, increment("mon", "tue"), 0, 1, 4, 9)
	t.Setenv("COLUMNS", "40")
	out := ok(t, "map", path)
	if !strings.Contains(out, "Blocks changed from mon to shop/tue") || !strings.Contains(out, "16 KiB in 4 extents: 1.56 % of a volume of 1 MiB") || strings.Contains(out, "\x1b") {
		t.Error(out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "·····") && len([]rune(line)) > 41 {
			t.Errorf("%q is too wide", line)
		}
	}
	if out := ok(t, "map", path, "--color", "always"); !strings.Contains(out, "\x1b[38;5;") {
		t.Error(out)
	}
	for extension, start := range map[string]string{".png": "\x89PNG", ".svg": "<svg"} {
		picture := filepath.Join(t.TempDir(), "map"+extension)
		ok(t, "map", path, "-o", picture)
		if data, err := os.ReadFile(picture); err != nil || !strings.HasPrefix(string(data), start) {
			t.Errorf("%s: %v", extension, err)
		}
	}
}

// TestDamaged: of a list that is not whole no command prints anything, and a file that was there stays as it was.
func TestDamaged(t *testing.T) {
	good := listFile(t, increment("mon", "tue"), 0, 1, 4, 9)
	for _, f := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
		raw := encode(t, f, increment("sun", "mon"), blocks(0, 1, 4, 9))
		flipped, halved := bytes.Clone(raw), raw[:len(raw)/2]
		flipped[len(flipped)*2/3] ^= 1
		for damage, content := range map[string][]byte{"cut": raw[:len(raw)-1], "halved": halved, "flipped": flipped, "empty": nil, "longer": append(bytes.Clone(raw), ' ')} {
			path, out := file(t, "damaged", content), file(t, "out.png", []byte("before"))
			for _, args := range [][]string{
				{"cat", path, "-o", "tsv"}, {"cat", "-", "-o", "ndjson"}, {"cat", path, "--limit", "1", "--out", out}, {"verify", path}, {"verify", "-"}, {"info", path},
				{"union", path, good}, {"diff", good, path}, {"slice", path, "--workers", "2", "--worker", "0"},
				{"slice", path, "--workers", "2", "--dir", filepath.Join(filepath.Dir(path), "slices")}, {"map", path}, {"map", path, "-o", out},
			} {
				if r := cbr(t, string(content), args...); r.code != exitFailed || r.out != "" || r.err == "" {
					t.Errorf("%s, %s, %v: %+v", f, damage, args, r)
				}
			}
			if data, err := os.ReadFile(out); err != nil || string(data) != "before" {
				t.Errorf("%s, %s: the file that was there: %q, %v", f, damage, data, err)
			}
			for _, dir := range []string{filepath.Dir(path), filepath.Dir(out)} {
				if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
					t.Errorf("%s, %s: left in the folder: %v, %v", f, damage, entries, err)
				}
			}
		}
	}
}

// TestOut: an output file replaces an older one, and nothing else is replaced.
func TestOut(t *testing.T) {
	path := listFile(t, increment("mon", "tue"), 0, 1)
	out := file(t, "out", []byte("before"))
	if got := ok(t, "cat", path, "-o", "tsv", "--out", out); got != "" {
		t.Errorf("printed as well: %q", got)
	}
	if data, err := os.ReadFile(out); err != nil || string(data) != "0\t4096\n4096\t4096\n" {
		t.Errorf("%q, %v", data, err)
	}
	for _, other := range []string{"/dev/null", t.TempDir(), "/nowhere/out"} {
		if r := cbr(t, "", "cat", path, "--out", other); r.code != exitFailed || !strings.Contains(r.err, other) {
			t.Errorf("%s: %+v", other, r)
		}
	}
}

// TestInterrupted: a command that waits for its input ends when it is asked to.
func TestInterrupted(t *testing.T) {
	temporary(t)
	ctx, cancel := context.WithCancel(t.Context())
	stdin, writer := io.Pipe()
	defer func() { _ = writer.Close() }() // a pipe in memory
	reading := &signalling{r: stdin, first: cancel}
	var out, errs bytes.Buffer
	if code := Execute(ctx, Streams{In: reading, Out: &out, Err: &errs}, "test", []string{"cat", "-"}); code != exitInterrupted || out.Len() > 0 {
		t.Errorf("exit code %d, %s%s", code, out.String(), errs.String())
	}
}

// signalling calls first when it is read from, and then reads from r.
type signalling struct {
	r     io.Reader
	first func()
}

func (s *signalling) Read(p []byte) (int, error) {
	s.first()
	return s.r.Read(p)
}

// TestNames: help follows the name under which the program was called.
func TestNames(t *testing.T) {
	for arg0, want := range map[string]string{
		"/usr/local/bin/kubectl-cbr": "kubectl cbr", "cbr": "cbr", "./kubectl-cbr": "kubectl cbr", "kubectl-changed_blocks": "kubectl changed-blocks",
	} {
		if got := calledAs(arg0); got != want {
			t.Errorf("%s: %s, want %s", arg0, got, want)
		}
	}
	if out := ok(t, "cat", "--help"); strings.Contains(out, "kubectl cbr cat") || !strings.Contains(out, calledAs(os.Args[0])+" cat") {
		t.Error(out)
	}
}

// TestCompletion completes formats.
func TestCompletion(t *testing.T) {
	got := strings.Fields(ok(t, "__complete", "cat", "-o", ""))
	for _, name := range convert.Formats() {
		if !slices.Contains(got, name) {
			t.Errorf("%s is not in %v", name, got)
		}
	}
}
