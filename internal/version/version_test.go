package version

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrom(t *testing.T) {
	setting := func(key, value string) debug.BuildSetting { return debug.BuildSetting{Key: key, Value: value} }
	for name, test := range map[string]struct {
		build debug.BuildInfo
		want  string
	}{
		"a release": {
			debug.BuildInfo{
				GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.3"},
				Settings: []debug.BuildSetting{setting("vcs.revision", "abc"), setting("vcs.time", "2026-01-02T03:04:05Z"), setting("vcs.modified", "false")},
			},
			"v1.2.3 commit abc of 2026-01-02T03:04:05Z built with go1.26.8",
		},
		"a changed checkout": {
			debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{setting("vcs.modified", "true"), setting("vcs.revision", "abc")}},
			"(devel) commit abc-dirty of unknown built with go1.26.8",
		},
		"nothing known": {debug.BuildInfo{}, "unknown commit unknown of unknown built with unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, from(&test.build).String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGet(t *testing.T) {
	if got := Get(); got.Go != runtime.Version() {
		t.Errorf("built with %q, runs on %q", got.Go, runtime.Version())
	}
}
