//go:build e2e

package tools

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/seeded"
)

// pageExample returns the list that the formats' pages show: api/blocklist tests that they show its bytes.
func pageExample() (blocklist.Header, []blocklist.Extent) {
	return blocklist.Header{
		Mode: blocklist.Delta, Driver: "hostpath.csi.k8s.io", Namespace: "default", BaseSnapshot: "snap-1", BaseSnapshotHandle: "a1",
		TargetSnapshot: "snap-2", TargetSnapshotHandle: "b2", BaseRestoreSizeBytes: 10 << 20, TargetRestoreSizeBytes: 10 << 20,
		VolumeCapacityBytes: 10 << 20, BlockMetadataType: blocklist.FixedLength,
	}, []blocklist.Extent{{Offset: 8192, Length: 4096}, {Offset: 16384, Length: 4096}, {Offset: 36864, Length: 4096}}
}

// exampleFile writes the pages' list into a new folder and returns its path.
func exampleFile(t *testing.T, f blocklist.Format) string {
	t.Helper()
	header, extents := pageExample()
	return listIn(t, t.TempDir(), blocklist.FileName(f), f, header, extents)
}

// readBack returns a list that was verified.
func readBack(t *testing.T, path string) (blocklist.Header, []blocklist.Extent) {
	t.Helper()
	list, err := blocklist.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var extents []blocklist.Extent
	for list.Next() {
		extents = append(extents, list.Extent())
	}
	if err := errors.Join(list.Err(), list.Close()); err != nil {
		t.Fatal(err)
	}
	return list.Header(), extents
}

func fileBytes(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func wantText(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// runs returns the runs of 512-byte sectors that the extents cover, whatever their order.
func runs(extents []blocklist.Extent) []blocklist.Extent {
	const sector = 512
	covered := make([]bool, volumeBytes/sector)
	for _, e := range extents {
		for at := e.Offset; at < e.End(); at += sector {
			covered[at/sector] = true
		}
	}
	var all []blocklist.Extent
	for i, c := range covered {
		switch {
		case c && i > 0 && covered[i-1]:
			all[len(all)-1].Length += sector
		case c:
			all = append(all, blocklist.Extent{Offset: int64(i) * sector, Length: sector})
		}
	}
	return all
}

func pageReadJSON(t *testing.T, text string) {
	need(t, "jq", "jq", "--version")
	_, example := pageExample()
	random := randomList(seeded.Rand(t), 4096)
	for path, extents := range map[string][]blocklist.Extent{
		exampleFile(t, blocklist.JSON): example, listFile(t, blocklist.JSON, random): random,
	} {
		first := strings.Join(strings.SplitAfter(string(fileBytes(t, path)), "\n")[:20], "")
		offsets := strings.ReplaceAll(tsv(extents), "\t", " ")
		want := fmt.Sprintf("changed-blocks.json: OK\n%s%s%d\ntrue\n", first, offsets, len(extents))
		wantText(t, want, shell(t, t.TempDir(), replaced(t, text, "/mnt/list", filepath.Dir(path))))
	}
}

func pageJSONDigests(t *testing.T, text string) {
	path := exampleFile(t, blocklist.JSON)
	before, _, _ := bytes.Cut(fileBytes(t, path), []byte(`"sha256": `))
	digest := fmt.Sprintf("%x", sha256.Sum256(before))
	wantText(t, digest+"  -\n"+digest+"\n", shell(t, filepath.Dir(path), text))
}

func pageBinarySum(t *testing.T, text string) {
	dir := filepath.Dir(exampleFile(t, blocklist.Binary))
	wantText(t, "changed-blocks.cbl: OK\n", shell(t, t.TempDir(), replaced(t, text, "/mnt/list", dir)))
}

func pageBlockVolume(t *testing.T, text string) {
	digest := fmt.Sprintf("%x", sha256.Sum256(fileBytes(t, exampleFile(t, blocklist.Binary))))
	header, extents := pageExample()
	text = replaced(t, text, "/dev/xvda", listDevice(t, header, extents))
	wantText(t, digest+"  -\n"+digest, shell(t, t.TempDir(), text))
}

// pagePython has the page's function read whole and damaged lists.
func pagePython(t *testing.T, text string) {
	dir := generated(t)
	program := text + "\n\nimport sys\nfor offset, length in read(sys.argv[1])[1]:\n    print(offset, length, sep=\"\\t\")\n"
	if err := os.WriteFile(filepath.Join(dir, "page.py"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	rng := seeded.Rand(t)
	extents := randomList(rng, 512)
	path := listFile(t, blocklist.Binary, extents)
	wantText(t, tsv(extents), run(t, "/usr/bin/python3", filepath.Join(dir, "page.py"), path))
	whole := fileBytes(t, path)
	others := [][]byte{{}, whole[:8], whole[:len(whole)-1], whole[:len(whole)-24], append(bytes.Clone(whole), 0)}
	for i := range whole {
		// The digest covers all but the end, whose every byte counts.
		if i >= len(whole)-160 || rng.IntN(len(whole)) < 40 {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1 << rng.IntN(8)
			others = append(others, damaged)
		}
	}
	program = text + `
import os, sys
for name in os.listdir(sys.argv[1]):
    try:
        read(os.path.join(sys.argv[1], name))
    except Exception:
        continue
    print(name)
`
	if err := os.WriteFile(filepath.Join(dir, "damaged.py"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	lists := t.TempDir()
	for _, damaged := range others {
		at := 0
		for at < min(len(whole), len(damaged)) && whole[at] == damaged[at] {
			at++
		}
		name := fmt.Sprintf("%d bytes, changed at %d of %d", len(damaged), at, len(whole))
		if err := os.WriteFile(filepath.Join(lists, name), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantText(t, "", run(t, "/usr/bin/python3", filepath.Join(dir, "damaged.py"), lists))
}

// pagePythonExample runs the commands of the example on a copy of it, so that what protoc writes is not left in the checkout.
func pagePythonExample(t *testing.T, text string) {
	generated(t) // installs what the first command would have to download
	extents := randomList(seeded.Rand(t), 512)
	dir := t.TempDir()
	reader := fileBytes(t, root+"/examples/python-reader/read.py")
	if err := os.WriteFile(filepath.Join(dir, "read.py"), reader, 0o600); err != nil {
		t.Fatal(err)
	}
	text = replaced(t, text, "examples/python-reader", dir, "changed-blocks.cbl", listFile(t, blocklist.Binary, extents),
		"python3 ", "/usr/bin/python3 ") // Debian's, for which its package is
	if out := shell(t, root, text); !strings.HasSuffix(out, "\n"+tsv(extents)) {
		t.Errorf("the commands print\n%s\nwant, after what apt-get says,\n%s", out, tsv(extents))
	}
}

// pageInstall takes this checkout for the release that @latest names.
func pageInstall(t *testing.T, text string) {
	bin := t.TempDir()
	shell(t, root, replaced(t, text, "@latest", "", "/usr/local/bin", bin), "GOBIN="+bin)
	out := shell(t, t.TempDir(), "PATH="+bin+":$PATH; kubectl cbr --version; kubectl_complete-cbr ver")
	if !strings.Contains(out, "verify\t") {
		t.Errorf("the completion does not know verify:\n%s", out)
	}
}

// pageCatRange prints what a list has in the volume's second GiB.
func pageCatRange(t *testing.T, text string) {
	dir := t.TempDir()
	header := listHeader
	header.VolumeCapacityBytes = 3 << 30
	listIn(t, dir, "changed-blocks.cbl", blocklist.Binary, header, []blocklist.Extent{
		{Offset: 0, Length: 4096}, {Offset: 1<<30 - 8192, Length: 16384}, {Offset: 1<<30 + 1<<20, Length: 4096},
		{Offset: 2<<30 - 4096, Length: 8192}, {Offset: 2<<30 + 1<<20, Length: 4096},
	})
	want := `{"byte_offset":1073741824,"size_bytes":8192}
{"byte_offset":1074790400,"size_bytes":4096}
{"byte_offset":2147479552,"size_bytes":4096}
`
	wantText(t, want, shell(t, dir, text))
}

// printed splits a block of one command into the command and what the page says that it prints.
func printed(t *testing.T, text string) (command, output string) {
	t.Helper()
	command, output, _ = strings.Cut(text, "\n")
	command, found := strings.CutPrefix(command, "$ ")
	if !found || strings.Contains(output, "\n$ ") {
		t.Fatalf("not one command and its output:\n%s", text)
	}
	return command, output
}

func pageVerify(t *testing.T, text string) {
	command, output := printed(t, text)
	wantText(t, output, shell(t, filepath.Dir(exampleFile(t, blocklist.JSON)), command))
}

var picture = flag.Bool("picture", false, "draw docs/images/map.png afresh")

// pageMap compares the beginning of a map with the page, which leaves out the rest. The page's picture is of the same list.
func pageMap(t *testing.T, text string) {
	command, output := printed(t, text)
	begin, _, left := strings.Cut(output, "...\n")
	if !left {
		t.Fatalf("the page leaves nothing out:\n%s", output)
	}
	dir := t.TempDir()
	header := listHeader
	header.Namespace, header.VolumeCapacityBytes = "shop", 1<<40
	listIn(t, dir, "changed-blocks.cbl", blocklist.Binary, header, busyVolume())
	got := shell(t, dir, command)
	wantText(t, begin, got[:min(len(begin), len(got))])
	if *picture {
		shell(t, dir, command+" -o "+absolute(t, root+"/docs/images/map.png"))
	}
}

// busyVolume returns the changes of a volume of 1 TiB, always the same ones: regions of 1 to 32 GiB of which nothing has
// changed, or a part, or all.
func busyVolume() []blocklist.Extent {
	const (
		end   = 1 << 40
		piece = 8 << 20
	)
	rng := rand.New(rand.NewPCG(8, 34))
	var all []blocklist.Extent
	for at := int64(0); at < end; {
		border := min(at+(1+rng.Int64N(32))<<30, end)
		share := []int64{0, 0, 0, 0, 0, 5, 20, 50, 200}[rng.IntN(9)]
		for ; at < border; at += piece {
			// Between a half and one and a half times the share, in blocks of 4 KiB.
			length := min(piece*share*(50+rng.Int64N(100))/10000, piece) &^ 4095
			if length > 0 {
				all = append(all, blocklist.Extent{Offset: at, Length: length})
			}
		}
	}
	return all
}

// week returns random extents of days, and writes the list of each day into dir.
func week(t *testing.T, rng *rand.Rand, dir string, days ...string) (extents []blocklist.Extent) {
	t.Helper()
	for i, day := range days[1:] {
		header := listHeader
		header.BaseSnapshot, header.BaseSnapshotHandle = days[i], "handle of "+days[i]
		header.TargetSnapshot, header.TargetSnapshotHandle = day, "handle of "+day
		changed := randomList(rng, 4096)
		listIn(t, dir, days[i]+"-"+day+".cbl", blocklist.Binary, header, changed)
		extents = append(extents, changed...)
	}
	return extents
}

// wantUnion demands a list with what changed on all days.
func wantUnion(t *testing.T, path string, extents []blocklist.Extent, from, to string) {
	t.Helper()
	header, got := readBack(t, path)
	if diff := cmp.Diff(runs(extents), got); diff != "" {
		t.Error(diff)
	}
	ends := []string{header.BaseSnapshot, header.BaseSnapshotHandle, header.TargetSnapshot, header.TargetSnapshotHandle}
	if diff := cmp.Diff([]string{from, "handle of " + from, to, "handle of " + to}, ends); diff != "" {
		t.Error(diff)
	}
}

func pageUnion(t *testing.T, text string) {
	dir := t.TempDir()
	extents := week(t, seeded.Rand(t), dir, "mon", "tue", "wed", "thu")
	shell(t, dir, text)
	wantUnion(t, filepath.Join(dir, "mon-thu.cbl"), extents, "mon", "thu")
}

// pageToolsYouHave installs the program from the checkout, as its reader does, and works in a folder with the lists.
func pageToolsYouHave(t *testing.T, text string) {
	dir, checkout, rng := t.TempDir(), absolute(t, root), seeded.Rand(t)
	union, single := week(t, rng, dir, "mon", "tue", "wed"), randomList(rng, 512)
	changes := filepath.Dir(listFile(t, blocklist.JSON, single))
	bin := programs(t)
	if err := os.Remove(filepath.Join(bin, "kubectl-cbr")); err != nil {
		t.Fatal(err)
	}
	text = "PATH=" + bin + ":$PATH\n" + replaced(t, text, "go install ", "go -C "+checkout+" install ", "/mnt/changes", changes)
	shell(t, dir, text, "GOBIN="+bin)

	if _, err := os.Stat(filepath.Join(bin, "kubectl-cbr")); err != nil {
		t.Error(err)
	}
	var finished []blocklist.Extent
	for line := range strings.Lines(string(fileBytes(t, filepath.Join(dir, "changes.map")))) {
		var e blocklist.Extent
		if n, err := fmt.Sscanf(line, "%v %v +\n", &e.Offset, &e.Length); err == nil && n == 2 {
			finished = append(finished, e)
		}
	}
	if diff := cmp.Diff(runs(single), finished); diff != "" {
		t.Error("changes.map: ", diff)
	}
	wantUnion(t, filepath.Join(dir, "mon-wed.cbl"), union, "mon", "wed")
	if _, err := png.Decode(bytes.NewReader(fileBytes(t, filepath.Join(dir, "changes.png")))); err != nil {
		t.Error(err)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// pageSlice runs the commands as each of the four workers: the slice that one prints is the slice of that number in the folder,
// and together they are the list.
func pageSlice(t *testing.T, text string) {
	extents := randomList(seeded.Rand(t), 4096)
	var total int64
	for _, e := range extents {
		total += e.Length
	}
	var together []blocklist.Extent
	for worker := range 4 {
		dir := t.TempDir()
		listIn(t, dir, "changed-blocks.cbl", blocklist.Binary, listHeader, extents)
		out := shell(t, dir, text, fmt.Sprint("JOB_COMPLETION_INDEX=", worker))
		_, slice := readBack(t, filepath.Join(dir, "slices", fmt.Sprint(worker, ".cbl")))
		wantText(t, tsv(slice), out)
		share := -total / 4
		for _, e := range slice {
			share += e.Length
		}
		if share < -4096 || share > 4096 {
			t.Errorf("worker %d has %d bytes more than a quarter of %d", worker, share, total)
		}
		together = append(together, slice...)
	}
	if diff := cmp.Diff(runs(extents), runs(together)); diff != "" {
		t.Error(diff)
	}
}

// backedUp runs a block that backs up to an image and restores from it. The list is stored beside the image, as the page says.
func backedUp(t *testing.T, text, list, name string) {
	t.Helper()
	rng := seeded.Rand(t)
	v, extents := newVolumes(t, rng), randomList(rng, 4096)
	dir := t.TempDir()
	for _, file := range []string{list, name + ".cbl"} {
		listIn(t, dir, file, blocklist.Binary, listHeader, extents)
	}
	shell(t, dir, replaced(t, text, "/dev/snapshot", v.from, "/dev/volume", v.to))
	v.wantCopied(t, extents)
	image := make([]byte, volumeBytes)
	for _, e := range extents {
		copy(image[e.Offset:e.End()], v.source[e.Offset:e.End()])
	}
	compare(t, image, fileBytes(t, filepath.Join(dir, name+".img")))
}

func pageBackup(t *testing.T, text string) { backedUp(t, text, "LIST", "DAY") }

func pageApply(t *testing.T, text string) { backedUp(t, text, "changed-blocks.cbl", "tuesday") }
