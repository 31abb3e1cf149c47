package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cbt-populator/cbt-populator/test/bench/internal/cluster"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/datapath"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/report"
)

// options are the flags of the bench.
type options struct {
	plan datapath.Plan
	// root is the checkout's folder, into the one that results and documentation are written to.
	root, into string
	only       string
	// clusterDir is the local cluster's folder; claims is the number of claims that are made there once.
	clusterDir string
	claims     int
	// large is the longest list of the large part, in extents.
	large int64
}

// part measures one section.
type part struct {
	key     string
	measure func(context.Context) (report.Section, error)
}

// bench measures the parts that are asked for, prints them and renders the page.
func bench(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stdout, stderr)
	if err != nil {
		return err
	}
	lab, err := datapath.NewLab(ctx, o.root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	pages := report.Pages{
		Results: filepath.Join(o.into, "test", "bench", "results"), Docs: filepath.Join(o.into, "docs"), Preface: preface,
	}
	parts := o.parts(lab)
	for _, p := range parts {
		pages.Order = append(pages.Order, p.key)
	}
	where, err := o.where(ctx)
	if err != nil {
		return err
	}
	var done []report.Section
	for _, p := range parts {
		if !slices.Contains(strings.Split(o.only, ","), p.key) {
			continue
		}
		section, err := p.measure(ctx)
		if err != nil {
			return fmt.Errorf("measure %s: %w", p.key, err)
		}
		section.Measured = where
		if err := pages.Save(section); err != nil {
			return err
		}
		done = append(done, section)
	}
	for _, section := range done {
		if err := section.Print(stdout); err != nil {
			return err
		}
	}
	return pages.Render()
}

func (o options) parts(lab *datapath.Lab) []part {
	with := func(key string, f func(context.Context, datapath.Plan) (report.Section, error)) part {
		return part{key, func(ctx context.Context) (report.Section, error) { return f(ctx, o.plan) }}
	}
	return []part{
		with("reader", lab.Reader),
		with("distance", lab.Distance),
		with("streams", lab.Streams),
		with("sidecar", func(ctx context.Context, plan datapath.Plan) (report.Section, error) {
			return lab.Sidecar(ctx, plan, filepath.Join(o.root, "bin", "csi-snapshot-metadata"))
		}),
		{"controller", func(ctx context.Context) (report.Section, error) { return cluster.Measure(ctx, o.cluster(lab)) }},
		with("large", func(ctx context.Context, plan datapath.Plan) (report.Section, error) {
			return lab.Large(ctx, plan, o.large)
		}),
	}
}

// cluster returns where the local cluster is.
func (o options) cluster(lab *datapath.Lab) cluster.Options {
	return cluster.Options{
		Kubeconfig: filepath.Join(o.clusterDir, "kubeconfig"), AuditLog: filepath.Join(o.clusterDir, "logs", "audit.log"),
		Registry: "127.0.0.1:15000", Bin: filepath.Join(o.root, "bin"), Rounds: min(o.plan.Rounds, 3), Many: o.claims,
		Scratch: lab.Scratch, Log: o.plan.Log,
	}
}

func parse(args []string, stdout, stderr io.Writer) (options, error) {
	o := options{plan: datapath.Plan{Log: func(line string) { _, _ = fmt.Fprintln(stderr, line) }}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stdout)
	f.StringVar(&o.root, "root", "../..", "the checkout that the populator is built from")
	f.StringVar(&o.into, "into", "", "folder whose test/bench/results and docs are written (default: the checkout)")
	f.StringVar(&o.only, "only", "reader,distance,streams,sidecar,controller", "parts to measure, separated by commas; large is another")
	f.Int64Var(&o.plan.Extents, "extents", 5_000_000, "length of the lists")
	f.Int64Var(&o.plan.PerMessage, "per-message", 1024, "extents in a message")
	f.IntVar(&o.plan.Rounds, "rounds", 5, "runs whose median counts")
	f.StringVar(&o.clusterDir, "cluster-dir", "/var/lib/cbt-cluster", "the local cluster's folder, for the part controller")
	f.IntVar(&o.claims, "claims", 200, "claims that are made at once at last, in the part controller; 0: none")
	f.Int64Var(&o.large, "large", 500_000_000, "length of the longest list of the part large")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	if o.into == "" {
		o.into = o.root
	}
	if o.plan.Extents < 1 || o.plan.PerMessage < 1 || o.plan.Rounds < 1 || o.large < 10 || f.NArg() > 0 {
		return options{}, errors.New("lengths and rounds must be positive, that of --large at least 10, and there are no arguments: see --help")
	}
	return o, nil
}
