package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOutThroughLinks: what a link names is written, wherever that is, and the link stays one.
func TestOutThroughLinks(t *testing.T) {
	path := listFile(t, increment("mon", "tue"), 0, 1)
	for _, c := range []struct {
		name string
		// links are made in their order, from names in a folder to what they say; {} is that folder.
		links [][2]string
		out   string
		real  string
		is    bool // the file is there before
	}{
		{"absolute", [][2]string{{"link", "{}/data/list"}}, "link", "data/list", true},
		{"relative", [][2]string{{"link", "data/list"}}, "link", "data/list", true},
		{"upwards", [][2]string{{"sub/link", "../data/list"}}, "sub/link", "data/list", true},
		{"a link to a link", [][2]string{{"link", "sub/link"}, {"sub/link", "../data/list"}}, "link", "data/list", true},
		{"to nothing", [][2]string{{"link", "data/list"}}, "link", "data/list", false},
		{"a link to a link to nothing", [][2]string{{"link", "sub/link"}, {"sub/link", "../data/list"}}, "link", "data/list", false},
		{"upwards through a folder that is one", [][2]string{{"deep/folder", "{}/sub"}, {"sub/link", "../data/list"}}, "deep/folder/link", "data/list", false},
		{"down and up through a folder that is one", [][2]string{{"deep/folder", "{}/data"}, {"link", "deep/folder/../data/list"}}, "link", "data/list", false},
		{"no link in a folder that is one", [][2]string{{"folder", "data"}}, "folder/list", "data/list", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			at := func(name string) string { return filepath.Join(dir, name) }
			err := errors.Join(os.Mkdir(at("data"), 0o700), os.Mkdir(at("sub"), 0o700), os.Mkdir(at("deep"), 0o700))
			if c.is {
				err = errors.Join(err, os.WriteFile(at(c.real), []byte("before"), 0o600))
			}
			for _, link := range c.links {
				err = errors.Join(err, os.Symlink(strings.ReplaceAll(link[1], "{}", dir), at(link[0])))
			}
			if err != nil {
				t.Fatal(err)
			}
			ok(t, "cat", path, "-o", "tsv", "--out", at(c.out))
			if data, err := os.ReadFile(at(c.real)); err != nil || string(data) != "0\t4096\n4096\t4096\n" {
				t.Errorf("behind the link: %q, %v", data, err)
			}
			for _, link := range c.links {
				if info, err := os.Lstat(at(link[0])); err != nil || info.Mode()&os.ModeSymlink == 0 {
					t.Errorf("%s is no link any more: %v, %v", link[0], info, err)
				}
			}
			if entries, err := os.ReadDir(at("data")); err != nil || len(entries) != 1 {
				t.Errorf("beside the file: %v, %v", entries, err)
			}
		})
	}
	dir := t.TempDir()
	for name, to := range map[string]string{"loop": "loop", "nowhere": "none/list"} {
		link := filepath.Join(dir, name)
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
		if r := cbr(t, "", "cat", path, "--out", link); r.code != exitFailed || !strings.Contains(r.err, link) {
			t.Errorf("%s: %+v", name, r)
		}
		if got, err := os.Readlink(link); err != nil || got != to {
			t.Errorf("%s is a link to %q, %v", name, got, err)
		}
	}
}
