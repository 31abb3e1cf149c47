package populate

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestDevicesTakeBinaryOnly: with another format the message says what the owner of the claim has to change, who sees no flags.
func TestDevicesTakeBinaryOnly(t *testing.T) {
	info, err := fstest.MapFS{"list": {Mode: fs.ModeDevice}}.Stat("list")
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.Output, o.Format = "/dev/list", blocklist.Binary
	if err := o.checkOutput(info); err != nil {
		t.Errorf("a Binary list: %v", err)
	}
	o.Format = blocklist.JSON
	const want = "a claim with volumeMode Block needs a new ChangedBlockRange with format Binary, or make it one with volumeMode Filesystem"
	if err := o.checkOutput(info); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a JSON list: %v, want %q", err, want)
	}
}
