//go:build linux

package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/copier"
)

// TestApply runs the command as a backup script does, and looks at its exit codes and at what it says.
func TestApply(t *testing.T) {
	const capacity = 2 << 20
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	var list bytes.Buffer
	enc, err := blocklist.NewEncoder(&list, blocklist.JSON, blocklist.Header{
		Mode: blocklist.Delta, Namespace: "ns", TargetSnapshot: "snap", VolumeCapacityBytes: capacity, BlockMetadataType: blocklist.FixedLength,
	})
	if err == nil {
		err = enc.Encode([]blocklist.Extent{{Offset: 4096, Length: 4096}, {Offset: 1 << 20, Length: 4096}})
	}
	if err == nil {
		_, err = enc.Finish()
	}
	source := bytes.Repeat([]byte{7}, capacity)
	for name, data := range map[string][]byte{"list.json": list.Bytes(), "cut.json": list.Bytes()[:list.Len()-2], "source": source} {
		if err == nil {
			err = os.WriteFile(path(name), data, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := Execute(t.Context(), Streams{In: strings.NewReader(""), Out: &out, Err: &errs}, "test", append([]string{"apply"}, args...))
		return code, out.String(), errs.String()
	}
	ends := []string{"--source", path("source"), "--target", path("target")}

	if code, _, errs := run(append(ends, "--list", path("cut.json"))...); code != exitFailed || !strings.Contains(errs, "nothing was written") {
		t.Errorf("cut list: exit code %d, %s", code, errs)
	}
	if _, err := os.Stat(path("target")); err == nil {
		t.Error("a refused copy made its target")
	}
	for _, wrong := range [][]string{{}, ends, append(ends, "--list", path("list.json"), "--shard", "2"), append(ends, "--list", path("list.json"), "-o", "xml")} {
		if code, _, errs := run(wrong...); code != exitUsage {
			t.Errorf("%q: exit code %d, %s", wrong, code, errs)
		}
	}
	code, out, errs := run(append(ends, "--list", path("list.json"), "--verify")...)
	if code != 0 || out != "copied 2 extents: read 8 KiB of 2 MiB (0.39 %), wrote 8 KiB; verified\n" || !strings.Contains(errs, "copying: 8 KiB of 8 KiB (100 %)") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	code, out, errs = run(append(ends, "--list", path("list.json"), "-o", "json", "--quiet")...)
	var result copier.Result
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 0 || errs != "" || result.ReadBytes != 8192 || result.Extents != 2 {
		t.Errorf("exit code %d, %v\n%s%s", code, err, out, errs)
	}
	want := make([]byte, capacity)
	copy(want[4096:8192], source)
	copy(want[1<<20:1<<20+4096], source)
	if got, err := os.ReadFile(path("target")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the target is not what was listed: %v", err)
	}
}
