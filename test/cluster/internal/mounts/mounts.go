// Package mounts reads the kernel's table of mounts.
package mounts

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Mount is one line of mountinfo.
type Mount struct {
	// Point is where it is mounted, as this process sees it.
	Point string
	// Root is the folder of the file system that is mounted.
	Root string
	// Type is the file system's type, Source what was mounted.
	Type, Source string
	// SuperOptions belong to the file system; a cgroup v1 hierarchy names its controllers here.
	SuperOptions []string
}

// Self returns the mounts of this process's mount namespace.
func Self() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	// Only read from, so that closing it can lose nothing.
	defer func() { _ = f.Close() }()
	return Parse(f)
}

// Parse reads the format of proc_pid_mountinfo(5).
func Parse(r io.Reader) ([]Mount, error) {
	var found []Mount
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// "36 35 98:0 /root /point rw,opts shared:1 - type source superopts":
		// the number of optional fields before the dash varies.
		left, right, ok := strings.Cut(lines.Text(), " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !ok || len(before) < 6 || len(after) < 2 {
			return nil, fmt.Errorf("mounts: line %q is not mountinfo", lines.Text())
		}
		m := Mount{Root: unescape(before[3]), Point: unescape(before[4]), Type: after[0], Source: unescape(after[1])}
		if len(after) > 2 {
			m.SuperOptions = strings.Split(after[2], ",")
		}
		found = append(found, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	return found, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Below returns the mount points below dir, newest first: the order in which
// they can be unmounted. dir itself may be a mount of the machine's owner.
func Below(all []Mount, dir string) []string {
	var points []string
	for i := len(all) - 1; i >= 0; i-- {
		// The kernel lists a mount after the one that it lies on.
		if all[i].Point != filepath.Clean(dir) && Within(all[i].Point, dir) {
			points = append(points, all[i].Point)
		}
	}
	return points
}

// Within says whether path is dir or lies below it.
func Within(path, dir string) bool {
	dir = filepath.Clean(dir)
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
