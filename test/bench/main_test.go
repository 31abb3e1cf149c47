package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/datapath"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/peers"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// TestMain lets the test's binary be the child processes too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "peer") {
		main()
		return
	}
	os.Exit(m.Run())
}

func newLab(tb testing.TB) *datapath.Lab {
	tb.Helper()
	lab, err := datapath.NewLab(tb.Context(), "../..")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := lab.Close(); err != nil {
			tb.Error(err)
		}
	})
	return lab
}

func serveList(tb testing.TB, lab *datapath.Lab, cfg server.Config) *datapath.Source {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // outlives the test's, which ends before the clean-ups
	s, err := lab.Serve(ctx, cfg)
	if err != nil {
		cancel()
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		defer cancel()
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// TestEveryPathYieldsTheList compares what each peer and the populator get with what each kind of server sent.
func TestEveryPathYieldsTheList(t *testing.T) {
	lab := newLab(t)
	for name, cfg := range map[string]server.Config{
		"quick":   {Extents: 20_000, PerMessage: 1024},
		"working": {Extents: 5_000, PerMessage: 100, CostPerExtent: 100 * time.Nanosecond},
		"waiting": {Extents: 5_000, PerMessage: 1000, WaitPerMessage: time.Millisecond},
		"distant": {Extents: 5_000, PerMessage: 1024, RoundTrip: 2 * time.Millisecond},
		"one":     {Extents: 1, PerMessage: 1024},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveList(t, lab, cfg)
			for _, p := range peers.All() {
				if sample, err := lab.Peer(t.Context(), s, p.Name, datapath.ToFile, true); err != nil {
					t.Errorf("%s: %v", p.Name, err)
				} else if sample.CPU <= 0 || sample.Wall <= 0 || sample.Peak <= 0 || sample.Allocations <= 0 {
					t.Errorf("%s: nothing was measured: %+v", p.Name, sample)
				}
			}
			for _, format := range []blocklist.Format{blocklist.JSON, blocklist.Binary} {
				if sample, err := lab.Populate(t.Context(), s, format, datapath.ToFile, true); err != nil {
					t.Errorf("populator, %s: %v", format, err)
				} else if sample.CPU <= 0 || sample.Wall <= 0 || sample.Peak <= 0 || sample.Written <= 0 {
					t.Errorf("populator, %s: nothing was measured: %+v", format, sample)
				}
			}
		})
	}
}

// TestWrongListsAreNoticed compares each path's list with another one.
func TestWrongListsAreNoticed(t *testing.T) {
	lab := newLab(t)
	for _, expected := range []int64{4_999, 5_001} {
		s := serveList(t, lab, server.Config{Extents: 5_000, PerMessage: 1000})
		s.Extents = expected
		for _, p := range peers.All() {
			if _, err := lab.Peer(t.Context(), s, p.Name, datapath.ToFile, true); err == nil || !strings.Contains(err.Error(), "WRONG LIST") {
				// A block of a bitmap may hold the last extent and the one before it.
				if p.Block == 1<<20 && err == nil {
					continue
				}
				t.Errorf("%s, %d extents expected: %v", p.Name, expected, err)
			}
		}
		if _, err := lab.Populate(t.Context(), s, blocklist.JSON, datapath.ToFile, true); err == nil || !strings.Contains(err.Error(), "WRONG LIST") {
			t.Errorf("populator, %d extents expected: %v", expected, err)
		}
	}
}

// TestBench runs the parts that need no node, small, and looks for the page, its plots and the table.
func TestBench(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"docs", "test"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var table bytes.Buffer
	parts := []string{"reader", "distance", "streams", "sidecar", "large"}
	args := []string{"--root=../..", "--into=" + root, "--only=" + strings.Join(parts, ","), "--extents=5000", "--large=20000", "--rounds=1"}
	if err := bench(t.Context(), args, &table, io.Discard); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"**populator, Binary**", "upstream's iterator, JSON emitter", "4 streams", "20,000 | JSON", "revision"} {
		if !strings.Contains(string(page), text) {
			t.Errorf("the page has no %q", text)
		}
	}
	for _, name := range parts {
		plot := "performance-" + name + ".svg"
		if data, err := os.ReadFile(filepath.Join(root, "docs", plot)); err != nil || !bytes.Contains(data, []byte("</svg>")) {
			t.Errorf("plot %s: %v", plot, err)
		}
		if !strings.Contains(string(page), "("+plot+")") {
			t.Errorf("the page does not show %s", plot)
		}
	}
	if !strings.Contains(table.String(), "populator, JSON") || strings.Contains(table.String(), "**") {
		t.Errorf("table:\n%s", &table)
	}
}
