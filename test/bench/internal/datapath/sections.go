package datapath

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/report"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// Plan says how much is measured.
type Plan struct {
	// Extents is the length of a list, PerMessage the number of extents in a message.
	Extents, PerMessage int64
	// Rounds is the number of runs whose median counts.
	Rounds int
	// Log is told what happens.
	Log func(string)
}

// slower is by how much the lists are shorter that the slowest peers read.
const slower = 5

// longer is by how much the lists are longer that several streams share where a server takes CPU time: the populator adds no stream for
// what a single one reads in half a second, and its start and its end weigh less.
const longer = 4

// Reader measures one stream without any other cost than the reader's own.
func (l *Lab) Reader(ctx context.Context, plan Plan) (section report.Section, err error) {
	s, err := l.Serve(ctx, server.Config{Extents: plan.Extents, PerMessage: plan.PerMessage})
	if err != nil {
		return report.Section{}, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	short, err := l.Serve(ctx, server.Config{Extents: plan.Extents / slower, PerMessage: plan.PerMessage})
	if err != nil {
		return report.Section{}, err
	}
	defer func() { err = errors.Join(err, short.Stop()) }()
	standings, err := hold(ctx, plan.Rounds, plan.Log,
		l.peer("raw gRPC receive, nothing parsed (the floor)", "raw", s, ToNowhere),
		l.ours("**populator, Binary**", blocklist.Binary, s, ToNowhere),
		l.ours("**populator, JSON**", blocklist.JSON, s, ToNowhere),
		l.peer("generated protobuf `Recv`, extents discarded", "protobuf", s, ToNowhere),
		l.peer("upstream's iterator, JSON emitter", "iterator-json", s, ToNowhere),
		l.peer("upstream's iterator, JSON emitter, `GOMAXPROCS=1` as the populator has it", "iterator-json", s, ToNowhere, "GOMAXPROCS=1"),
		l.peer("upstream's iterator, table emitter (buffered)", "iterator-table", s, ToNowhere),
		l.peer("iterator and roaring bitmap, 4 KiB blocks", "bitmap-4k", short, ToNowhere),
		l.peer("iterator and roaring bitmap, 1 MiB blocks", "bitmap-1m", short, ToNowhere),
		l.ours("**populator, Binary**, into a file", blocklist.Binary, s, ToFile),
		l.ours("**populator, JSON**, into a file", blocklist.JSON, s, ToFile),
		l.peer("upstream's iterator, JSON emitter, into a file", "iterator-json", s, ToFile))
	if err != nil {
		return report.Section{}, err
	}
	// Allocations cannot be counted from outside.
	for i, name := range map[int]string{1: "populator-binary", 2: "populator-json", 9: "populator-binary", 10: "populator-json"} {
		inside, err := l.Peer(ctx, s, name, ToNowhere, false)
		if err != nil {
			return report.Section{}, err
		}
		standings[i].Allocations = inside.Allocations
	}
	section = readerSection(plan, standings)
	section.Notes = []string{fmt.Sprintf("Of the CPU time for an extent, the SHA-256 of a list takes %s ns as JSON and %s ns as Binary on this machine, "+
		"whoever computes it. Upstream's emitters compute none.", report.Number(digestOf(standings[2])), report.Number(digestOf(standings[1])))}
	return section, nil
}

// digestOf returns how many nanoseconds SHA-256 takes for the bytes that were written for an extent.
func digestOf(s Standing) float64 {
	block, best := make([]byte, 256<<10), time.Duration(math.MaxInt64)
	for range 100 {
		began := time.Now()
		_ = sha256.Sum256(block)
		best = min(best, time.Since(began))
	}
	return float64(best) / float64(len(block)) * float64(s.Written) / float64(s.Extents)
}

func readerSection(plan Plan, standings []Standing) report.Section {
	// The last rows are compared with upstream's that writes into a file too.
	const floor, upstream, files, upstreamFile = 0, 4, 9, 11
	s := report.Section{
		Key: "reader", Title: "One stream",
		Text: fmt.Sprintf("%s extents of 4 KiB with gaps of 1 to 99 blocks, %d a message, over loopback TLS from a server whose messages are "+
			"marshalled beforehand (the bitmaps: %s extents). Medians of %d runs in turns. The populator's figures are those of the whole "+
			"program, from its start to its end, with every check of the protocol, checksums and digest; a peer's begin when it connects. "+
			"What a path writes goes to /dev/null, or into a file in memory where it says so.",
			report.Group(plan.Extents), plan.PerMessage, report.Group(plan.Extents/slower), plan.Rounds),
		Heading: []string{"path", "million extents/s", "CPU ns/extent", "× the floor's CPU", "extents per CPU second, × upstream's JSON",
			"allocations/extent", "peak memory, MiB", "bytes/extent"},
		Chart: report.Chart{Axis: "million extents per CPU second (more is better)"},
	}
	for i, p := range standings {
		perExtent, theirs := p.CPUPerExtent(), standings[upstream]
		if i >= files {
			theirs = standings[upstreamFile]
		}
		s.Rows = append(s.Rows, []string{
			p.Title, report.Number(p.Rate() / 1e6), report.Number(perExtent), report.Number(perExtent / standings[floor].CPUPerExtent()),
			report.Number(theirs.CPUPerExtent() / perExtent), report.Number(float64(p.Allocations) / float64(p.Extents)),
			strconv.FormatInt(p.Peak>>20, 10), written(p),
		})
		s.Chart.Bars = append(s.Chart.Bars, bar(p, 1e3/perExtent))
	}
	return s
}

// written returns the bytes per extent of a path that writes.
func written(s Standing) string {
	if s.Written == 0 {
		return "–"
	}
	return report.Number(float64(s.Written) / float64(s.Extents))
}

// Distance measures one stream over a long cable.
func (l *Lab) Distance(ctx context.Context, plan Plan) (section report.Section, err error) {
	const roundTrip = 11 * time.Millisecond
	s, err := l.Serve(ctx, server.Config{Extents: plan.Extents, PerMessage: plan.PerMessage, RoundTrip: roundTrip})
	if err != nil {
		return report.Section{}, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	standings, err := hold(ctx, plan.Rounds, plan.Log,
		l.peer("raw gRPC receive, nothing parsed", "raw", s, ToNowhere),
		l.ours("**populator, Binary**", blocklist.Binary, s, ToNowhere),
		l.ours("**populator, JSON**", blocklist.JSON, s, ToNowhere),
		l.peer("upstream's iterator, JSON emitter", "iterator-json", s, ToNowhere))
	if err != nil {
		return report.Section{}, err
	}
	section = report.Section{
		Key: "distance", Title: fmt.Sprintf("One stream over a round trip of %d ms", roundTrip.Milliseconds()),
		Text:    fmt.Sprintf("As above, %s extents, with every byte delayed by half the round trip in each direction.", report.Group(plan.Extents)),
		Heading: []string{"path", "million extents/s", "× the raw receiver's", "CPU ns/extent"},
		Chart:   report.Chart{Axis: "million extents/s (more is better)"},
	}
	for _, p := range standings {
		section.Rows = append(section.Rows, []string{
			p.Title, report.Number(p.Rate() / 1e6), report.Number(p.Rate() / standings[0].Rate()), report.Number(p.CPUPerExtent())})
		section.Chart.Bars = append(section.Chart.Bars, bar(p, p.Rate()/1e6))
	}
	return section, nil
}

func bar(s Standing, value float64) report.Bar {
	return report.Bar{Label: report.Plain(s.Title), Value: value, Ours: s.Ours}
}
