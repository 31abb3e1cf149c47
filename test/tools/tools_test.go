//go:build e2e

// Package tools gives our lists to existing tools as they come from Debian: ddrescue and bmaptool copy exactly the listed
// ranges from one real block device to another; jq, head, sha256sum and a Python program read lists. It executes the commands of
// the pages in docs as they stand there. It needs root, and installs with apt-get what is missing. `make e2e` runs it.
package tools

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/sink"
	"github.com/cbt-populator/cbt-populator/test/compiled"
	"github.com/cbt-populator/cbt-populator/test/seeded"
)

// program is the path of kubectl-cbr, built once.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("kubectl-cbr-%d", os.Getpid()))
	return path, compiled.Program(path, "github.com/cbt-populator/cbt-populator/cmd/kubectl-cbr")
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.Remove(path) // it is in the temporary folder
	}
	os.Exit(code)
}

// cbr runs kubectl-cbr and returns its output.
func cbr(t *testing.T, args ...string) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return run(t, path, args...)
}

// run runs a program and returns its standard output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// installing lets one test at a time use apt-get.
var installing sync.Mutex

// need installs a package of Debian or Ubuntu unless test, a command line, succeeds.
func need(t *testing.T, pkg string, test ...string) {
	t.Helper()
	installing.Lock()
	defer installing.Unlock()
	if exec.CommandContext(t.Context(), test[0], test[1:]...).Run() == nil {
		return
	}
	install := func() error {
		return exec.CommandContext(t.Context(), "apt-get", "install", "-y", "--no-install-recommends", pkg).Run()
	}
	if install() != nil {
		run(t, "apt-get", "update")
		if err := install(); err != nil {
			t.Fatalf("apt-get install %s: %v", pkg, err)
		}
	}
}

// device returns a loop device with the given content.
func device(t *testing.T, content []byte) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return attach(t, image)
}

// attach returns a loop device of an image.
func attach(t *testing.T, image string) string {
	t.Helper()
	path := strings.TrimSpace(run(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v\n%s", path, err, out)
		}
	})
	return path
}

// volumeBytes is not a multiple of any block but the smallest.
const volumeBytes = 16<<20 + 512

// randomList returns a list with an extent at the start, one at the end and random ones between, all multiples of unit.
func randomList(rng *rand.Rand, unit int64) []blocklist.Extent {
	all := []blocklist.Extent{{Offset: 0, Length: unit}}
	for at := unit; ; {
		at += rng.Int64N(200) * unit // often 0: extents that touch
		if rng.IntN(3) == 0 {
			at = all[len(all)-1].End()
		}
		e := blocklist.Extent{Offset: at, Length: (1 + rng.Int64N(40)) * unit}
		if e.End() > volumeBytes-8*unit {
			break
		}
		all = append(all, e)
		at = e.End()
	}
	last := volumeBytes/unit*unit - unit
	return append(all, blocklist.Extent{Offset: last, Length: volumeBytes - last})
}

// listHeader is that of random lists.
var listHeader = blocklist.Header{
	Mode: blocklist.Delta, Driver: "tools.csi", Namespace: "demo", BaseSnapshot: "monday", BaseSnapshotHandle: "h-1",
	TargetSnapshot: "tuesday", TargetSnapshotHandle: "h-2", VolumeCapacityBytes: volumeBytes, BlockMetadataType: blocklist.VariableLength,
}

// listFile writes a list as the populator does, with the checksum file beside it, and returns its path.
func listFile(t *testing.T, f blocklist.Format, extents []blocklist.Extent) string {
	t.Helper()
	return listIn(t, t.TempDir(), blocklist.FileName(f), f, listHeader, extents)
}

// listIn does the same in a folder, under a name.
func listIn(t *testing.T, dir, name string, f blocklist.Format, header blocklist.Header, extents []blocklist.Extent) string {
	t.Helper()
	s, err := sink.NewFile(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, f, header, extents)
	return filepath.Join(dir, name)
}

// listDevice returns a block device that holds a list, as the populator writes it.
func listDevice(t *testing.T, header blocklist.Header, extents []blocklist.Extent) string {
	t.Helper()
	path := device(t, make([]byte, 1<<20))
	s, err := sink.NewDevice(path, blocklist.DeviceRecord)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, blocklist.Binary, header, extents)
	return path
}

func write(t *testing.T, s sink.Sink, f blocklist.Format, header blocklist.Header, extents []blocklist.Extent) {
	t.Helper()
	e, err := blocklist.NewEncoder(s, f, header)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Encode(extents); err != nil {
		t.Fatal(err)
	}
	trailer, err := e.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), sink.List{Bytes: trailer.ListBytes, SHA256: trailer.ListSHA256}); err != nil {
		t.Fatal(err)
	}
}

// volumes are two devices that differ in every byte.
type volumes struct {
	source, target []byte
	from, to       string
}

func newVolumes(t *testing.T, rng *rand.Rand) volumes {
	t.Helper()
	v := volumes{source: make([]byte, volumeBytes), target: make([]byte, volumeBytes)}
	for i := range v.source {
		v.source[i] = byte(rng.Uint32())
		v.target[i] = ^v.source[i]
	}
	v.from, v.to = device(t, v.source), device(t, v.target)
	return v
}

// wantCopied demands that the target has the source's bytes in the extents, and its own everywhere else.
func (v volumes) wantCopied(t *testing.T, extents []blocklist.Extent) {
	t.Helper()
	want := bytes.Clone(v.target)
	for _, e := range extents {
		copy(want[e.Offset:e.End()], v.source[e.Offset:e.End()])
	}
	got, err := os.ReadFile(v.to)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, want, got)
}

// tsv is what our tsv and the Python reader print.
func tsv(extents []blocklist.Extent) string {
	var b strings.Builder
	for _, e := range extents {
		fmt.Fprintf(&b, "%d\t%d\n", e.Offset, e.Length)
	}
	return b.String()
}

// TestCopyTools copies with each tool from one loop device to another: afterwards the target has the source's bytes in the
// listed ranges, and its own everywhere else.
func TestCopyTools(t *testing.T) {
	need(t, "gddrescue", "ddrescue", "--version")
	need(t, "bmap-tools", "bmaptool", "--version")
	for format, command := range map[string]func(list, source, target string) []string{
		"ddrescue": func(list, source, target string) []string {
			return []string{"ddrescue", "--quiet", "--force", "--synchronous", "--max-read-errors=0", "--domain-mapfile=" + list, source, target}
		},
		"bmap": func(list, source, target string) []string {
			return []string{"bmaptool", "copy", "--bmap", list, source, target}
		},
	} {
		for _, unit := range []int64{512, 4096, 65536} {
			t.Run(fmt.Sprint(format, "/", unit), func(t *testing.T) {
				rng := seeded.Rand(t)
				v := newVolumes(t, rng)
				extents := randomList(rng, unit)
				if unit == 65536 && format == "bmap" {
					extents = extents[:len(extents)-1] // the last one is not on the grid, which would halve the blocks
				}
				list := filepath.Join(t.TempDir(), "list")
				cbr(t, "cat", listFile(t, blocklist.Binary, extents), "-o", format, "--out", list)
				c := command(list, v.from, v.to)
				run(t, c[0], c[1:]...)
				v.wantCopied(t, extents)
			})
		}
	}
}

// compare reports the first byte in which two contents differ.
func compare(t *testing.T, want, got []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("the target has %d bytes, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("the target differs at byte %d: %#x, want %#x", i, got[i], want[i])
		}
	}
}

// TestRefusedMap: bmaptool checks our checksum of the block map.
func TestRefusedMap(t *testing.T) {
	need(t, "bmap-tools", "bmaptool", "--version")
	list := filepath.Join(t.TempDir(), "list")
	cbr(t, "cat", listFile(t, blocklist.JSON, randomList(seeded.Rand(t), 4096)), "-o", "bmap", "--out", list)
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Replace(text, []byte("<Range> 0 </Range>"), []byte("<Range> 1 </Range>"), 1)
	if bytes.Equal(damaged, text) {
		damaged = bytes.Replace(text, []byte("<Range> 0-"), []byte("<Range> 1-"), 1)
	}
	if err := os.WriteFile(list, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	image := make([]byte, volumeBytes)
	out, err := exec.Command("bmaptool", "copy", "--bmap", list, device(t, image), device(t, image)).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("checksum")) {
		t.Errorf("a damaged block map: %v\n%s", err, out)
	}
}

// generated returns a folder with the code that Debian's protoc generates for Python.
func generated(t *testing.T) string {
	t.Helper()
	need(t, "protobuf-compiler", "protoc", "--version")
	need(t, "python3-protobuf", "/usr/bin/python3", "-c", "import google.protobuf")
	dir := t.TempDir()
	run(t, "protoc", "-I", root+"/api/blocklist", "--python_out="+dir, "blocklist.proto")
	return dir
}

// TestPython reads lists with examples/python-reader, an empty one included.
func TestPython(t *testing.T) {
	dir := generated(t)
	reader, err := filepath.Abs("../../examples/python-reader/read.py")
	if err != nil {
		t.Fatal(err)
	}
	python := func(list string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", reader, list)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+dir)
		return cmd.Output()
	}
	rng := seeded.Rand(t)
	for _, unit := range []int64{0, 1, 512, 4096} {
		var extents []blocklist.Extent
		if unit > 0 {
			extents = randomList(rng, unit)
		}
		path := listFile(t, blocklist.Binary, extents)
		got, err := python(path)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(got) != sha256.Sum256([]byte(tsv(extents))) {
			t.Errorf("unit %d: %s", unit, cmp.Diff(tsv(extents), string(got)))
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)/2] ^= 4
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := python(path); err == nil || len(got) > 0 {
			t.Errorf("unit %d: a damaged list is read: %s", unit, got)
		}
	}
}

// TestTerminal draws a map in a terminal of 50 columns and 16 lines: it fits, with colours unless NO_COLOR is set.
func TestTerminal(t *testing.T) {
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	list := listFile(t, blocklist.Binary, randomList(seeded.Rand(t), 4096))
	escape := regexp.MustCompile("\x1b\\[[0-9;]*m")
	for _, noColour := range []string{"", "1"} {
		cmd := exec.CommandContext(t.Context(), "script", "-qec", "stty cols 50 rows 16; "+path+" map "+list, "/dev/null")
		cmd.Env = append(os.Environ(), "TERM=xterm-256color", "NO_COLOR="+noColour)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if escape.Match(out) != (noColour == "") {
			t.Errorf("NO_COLOR=%s: %q", noColour, out)
		}
		lines := strings.Split(strings.TrimSpace(escape.ReplaceAllString(string(out), "")), "\n")
		for _, line := range lines[2:] {
			if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > 50 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
		if len(lines) > 16 {
			t.Errorf("%d lines", len(lines))
		}
	}
}
