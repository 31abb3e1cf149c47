package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// preface begins docs/performance.md.
const preface = `# Performance

This page is written by ` + "`make bench`" + `, which measures cbt-populator and its peers side by side in one run. Compare ratios and CPU time within a
table: absolute times belong to the machine that is named below it.

Servers, peers and the populator are processes of their own. Before a path is measured its list is compared,
extent by extent, with what the server sent, so every figure here belongs to a correct list. Peers run upstream's own code: the
iterator and emitters of ` + "`github.com/kubernetes-csi/external-snapshot-metadata`" + ` and the real sidecar, the pod mode of
` + "`lib-volume-populator`" + `. The bitmap is what backup tools such as Velero build from the stream.

| command | what it measures |
|---|---|
| ` + "`make bench`" + ` | all but the long lists, in about half an hour on two cores; the local cluster is started for it |
| ` + "`make bench-large`" + ` | lists of up to 500 million extents |
| ` + "`cd test/bench && go test -run '^$' -bench . -count 10 . > new.txt`" + ` | Go benchmarks with allocations, for benchstat |
| ` + "`cd test/bench && go run . --help`" + ` | single parts, other lengths |
`

// where says when, on what and with what code is measured.
func (o options) where(ctx context.Context) (string, error) {
	git := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--exclude=*")
	git.Dir = o.root
	revision, err := git.Output()
	if err != nil {
		return "", fmt.Errorf("ask git for the revision: %w", err)
	}
	processor, err := processorName()
	if err != nil {
		return "", err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", fmt.Errorf("find out how busy the machine is: %w", err)
	}
	lastMinute, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("Measured on %s at revision %s with %s: %s, %d cores, load average before the run %s", time.Now().UTC().Format(time.DateOnly),
		strings.TrimSpace(string(revision)), runtime.Version(), processor, runtime.NumCPU(), lastMinute), nil
}

func processorName() (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("find the processor's name: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "model name"); ok {
			return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), ":")), nil
		}
	}
	return runtime.GOARCH, lines.Err()
}
