// Package version says which build of cbt-populator runs. It owns nothing but what the go command recorded in the binary, so
// that no build has to pass anything and two builds of one commit are identical.
package version

import (
	"runtime/debug"
	"strings"
)

// Unknown stands for what a build did not record, such as the commit of a build outside of a checkout.
const Unknown = "unknown"

// Info describes a build.
type Info struct {
	// Version is the release, such as v1.2.3, or the pseudo-version of a commit between two releases.
	Version string
	// Commit is the full hash of the commit, followed by -dirty if the checkout had changes.
	Commit string
	// Date is when the commit was made, in RFC 3339.
	Date string
	// Go is the version of the Go toolchain.
	Go string
}

// Get returns what the running program was built from.
func Get() Info {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		build = &debug.BuildInfo{}
	}
	return from(build)
}

func from(build *debug.BuildInfo) Info {
	info := Info{Version: build.Main.Version, Go: build.GoVersion}
	dirty := false
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Commit = s.Value
		case "vcs.time":
			info.Date = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && info.Commit != "" {
		info.Commit += "-dirty"
	}
	for _, field := range []*string{&info.Version, &info.Commit, &info.Date, &info.Go} {
		if *field == "" {
			*field = Unknown
		}
	}
	return info
}

// String is what --version prints: version, commit, date and toolchain in one line.
func (i Info) String() string {
	return strings.Join([]string{i.Version, "commit", i.Commit, "of", i.Date, "built with", i.Go}, " ")
}
