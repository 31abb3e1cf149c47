package mounts

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const table = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
41 22 0:4 net:[4026532281] /run/netns/cbt-cluster rw - nsfs nsfs rw
42 22 7:0 / /var/lib/with\040space rw,relatime shared:7 - ext4 /dev/loop0 rw
43 42 7:1 /sub /var/lib/with\040space/inner rw - ext4 /dev/loop1 rw
44 22 7:2 / /var/lib/with\040spaces rw - ext4 /dev/loop2 rw
`

func TestParse(t *testing.T) {
	got, err := Parse(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{Root: "/", Point: "/", Type: "ext4", Source: "/dev/vda", SuperOptions: []string{"rw"}},
		{Root: "/", Point: "/sys/fs/cgroup/cpu,cpuacct", Type: "cgroup", Source: "cgroup", SuperOptions: []string{"rw", "cpu", "cpuacct"}},
		{Root: "net:[4026532281]", Point: "/run/netns/cbt-cluster", Type: "nsfs", Source: "nsfs", SuperOptions: []string{"rw"}},
		{Root: "/", Point: "/var/lib/with space", Type: "ext4", Source: "/dev/loop0", SuperOptions: []string{"rw"}},
		{Root: "/sub", Point: "/var/lib/with space/inner", Type: "ext4", Source: "/dev/loop1", SuperOptions: []string{"rw"}},
		{Root: "/", Point: "/var/lib/with spaces", Type: "ext4", Source: "/dev/loop2", SuperOptions: []string{"rw"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := Parse(strings.NewReader("22 1 254:0 / / rw\n")); err == nil {
		t.Error("a line without file system is mountinfo")
	}
}

func TestBelowIsWhatCanBeUnmountedInOrder(t *testing.T) {
	all, err := Parse(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][]string{
		"/var/lib":             {"/var/lib/with spaces", "/var/lib/with space/inner", "/var/lib/with space"},
		"/var/lib/with space":  {"/var/lib/with space/inner"},
		"/var/lib/with space/": {"/var/lib/with space/inner"},
		"/var/lib/with":        nil,
	} {
		if diff := cmp.Diff(want, Below(all, dir)); diff != "" {
			t.Errorf("%s: %s", dir, diff)
		}
	}
}

func TestSelf(t *testing.T) {
	all, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if len(Below(all, "/")) == len(all) || len(all) == 0 {
		t.Errorf("among %d mounts none is the root", len(all))
	}
}
