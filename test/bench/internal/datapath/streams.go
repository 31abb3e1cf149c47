package datapath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/peers"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/report"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/sidecar"
)

const (
	// atOnce adds streams as soon as there is something to split.
	atOnce = time.Millisecond
	// paced adds them as slowly as the sidecar can take calls: each costs it two of the five requests a second that it
	// allows itself to the API server, after the first ten.
	paced = 300 * time.Millisecond
)

// streams are the populator's flags for reading with up to n streams, the second one after a time.
func streams(n int, after time.Duration) []string {
	return []string{"--streams=" + strconv.Itoa(n), "--streams-after=" + after.String()}
}

// withStreams returns the populator with 1, 2 and 4 streams.
func (l *Lab) withStreams(s *Source, after time.Duration) []Contestant {
	var c []Contestant
	for _, n := range []int{1, 2, 4} {
		title := fmt.Sprintf("**populator, Binary, %d streams**", n)
		if n == 1 {
			title = "**populator, Binary, one stream**"
		}
		c = append(c, l.ours(title, blocklist.Binary, s, ToNowhere, streams(n, after)...))
	}
	return c
}

// Streams measures several streams from servers that are slower than their reader.
func (l *Lab) Streams(ctx context.Context, plan Plan) (report.Section, error) {
	busy := plan.Extents * longer
	section := report.Section{
		Key: "streams", Title: "Several streams from slow servers",
		Text: fmt.Sprintf("Lists from servers that cost something: CPU time per extent, as a conversion does (%s extents), or a wait per message, as a driver "+
			"does that asks a storage system (%s extents). The populator is told to begin with so many streams; by default it adds them when a list turns "+
			"out long. What the server takes for an extent beside its cost is what it takes to send it: protobuf's, gRPC's and TLS's part. Both share the "+
			"machine's %d cores, so where one stream keeps b of them busy, several can be at most %[3]d/b times as fast. One cost is a multiple of what a "+
			"raw receiver takes on this machine, which is the same on slow and fast ones.", report.Group(busy), report.Group(plan.Extents), runtime.NumCPU()),
		Heading: []string{"server", "streams", "million extents/s", "× one stream", "× at most", "CPU ns/extent", "server's CPU ns/extent", "cores busy", "peak memory, MiB"},
		Chart:   report.Chart{Axis: "× one stream (more is better)"},
	}
	relative, err := l.relativeCost(ctx, plan)
	if err != nil {
		return report.Section{}, fmt.Errorf("raw receiver: %w", err)
	}
	for _, slow := range []struct {
		title string
		cfg   server.Config
	}{
		{fmt.Sprintf("%.1f × the raw receiver's CPU per extent (%d ns)", receivers, relative.Nanoseconds()),
			server.Config{Extents: busy, PerMessage: plan.PerMessage, CostPerExtent: relative}},
		{"100 ns of CPU per extent", server.Config{Extents: busy, PerMessage: plan.PerMessage, CostPerExtent: 100 * time.Nanosecond}},
		{"1 ms wait per message", server.Config{Extents: plan.Extents, PerMessage: plan.PerMessage, WaitPerMessage: time.Millisecond}},
	} {
		standings, err := l.streamsFrom(ctx, plan, slow.cfg)
		if err != nil {
			return report.Section{}, fmt.Errorf("%s: %w", slow.title, err)
		}
		for i, p := range standings {
			times, n := p.Rate()/standings[0].Rate(), strconv.Itoa(1<<i)
			section.Rows = append(section.Rows, []string{slow.title, n, report.Number(p.Rate() / 1e6), report.Number(times),
				atMost(standings[0], i), report.Number(p.CPUPerExtent()), report.Number(float64(p.ServerCPU) / float64(p.Extents)),
				report.Number(p.Cores), strconv.FormatInt(p.Peak>>20, 10)})
			section.Chart.Bars = append(section.Chart.Bars, report.Bar{Label: slow.title + ", streams: " + n, Value: times, Ours: true})
		}
	}
	return section, nil
}

// atMost is the cell that says how many times as fast as one stream so many more can be, as long as an extent costs the machine as much.
func atMost(one Standing, more int) string {
	if more == 0 {
		return "–"
	}
	return report.Number(float64(runtime.NumCPU()) / one.Cores)
}

// receivers is what a server costs an extent that gains from several streams, in units of what a raw receiver does: 100 ns on a
// machine on which the latter takes 15.
const receivers = 100.0 / 15

// relativeCost measures the raw receiver and returns so many times its CPU time for an extent.
func (l *Lab) relativeCost(ctx context.Context, plan Plan) (cost time.Duration, err error) {
	s, err := l.Serve(ctx, server.Config{Extents: plan.Extents, PerMessage: plan.PerMessage})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	raw, err := hold(ctx, plan.Rounds, plan.Log, l.peer("raw gRPC receive, nothing parsed", "raw", s, ToNowhere))
	if err != nil {
		return 0, err
	}
	return time.Duration(receivers * raw[0].CPUPerExtent()), nil
}

func (l *Lab) streamsFrom(ctx context.Context, plan Plan, cfg server.Config) (standings []Standing, err error) {
	s, err := l.Serve(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	return hold(ctx, plan.Rounds, plan.Log, l.withStreams(s, atOnce)...)
}

// Sidecar measures every client through upstream's real sidecar, the binary at path.
func (l *Lab) Sidecar(ctx context.Context, plan Plan, path string) (section report.Section, err error) {
	dir, err := os.MkdirTemp(l.Scratch, "sidecar-")
	if err != nil {
		return report.Section{}, fmt.Errorf("make folder for the sidecar: %w", err)
	}
	cfg := server.Config{Extents: plan.Extents * longer, PerMessage: plan.PerMessage}
	car, err := sidecar.Start(ctx, l.Bench, path, dir, cfg)
	if err != nil {
		return report.Section{}, err
	}
	defer func() { err = errors.Join(err, car.Stop()) }()
	s, err := behind(car, dir, cfg.Extents)
	if err != nil {
		return report.Section{}, err
	}
	standings, err := hold(ctx, plan.Rounds, plan.Log, append([]Contestant{
		l.peer("raw gRPC receive, nothing parsed", "raw", s, ToNowhere),
		l.peer("generated protobuf `Recv`, extents discarded", "protobuf", s, ToNowhere),
		l.peer("upstream's iterator, JSON emitter", "iterator-json", s, ToNowhere),
	}, l.withStreams(s, paced)...)...)
	if err != nil {
		return report.Section{}, err
	}
	section = report.Section{
		Key: "sidecar", Title: "Through upstream's sidecar",
		Text: fmt.Sprintf("%s extents through the real snapshot-metadata sidecar in front of a CSI driver that answers from memory, with a real API "+
			"server that reviews each call's token. What the sidecar does to an extent bounds every client of one stream. Driver, sidecar and client share "+
			"the machine's %d cores, so where one stream keeps b of them busy, several can be at most %[2]d/b times as fast.", report.Group(cfg.Extents), runtime.NumCPU()),
		Heading: []string{"path", "million extents/s", "× the populator with one stream", "× at most", "CPU ns/extent", "sidecar's CPU ns/extent", "cores busy"},
		Chart:   report.Chart{Axis: "million extents/s (more is better)"},
	}
	const one = 3
	for i, p := range standings {
		section.Rows = append(section.Rows, []string{
			p.Title, report.Number(p.Rate() / 1e6), report.Number(p.Rate() / standings[one].Rate()), atMost(standings[one], max(i-one, 0)),
			report.Number(p.CPUPerExtent()), report.Number(float64(p.ServerCPU) / float64(p.Extents)), report.Number(p.Cores)})
		section.Chart.Bars = append(section.Chart.Bars, bar(p, p.Rate()/1e6))
	}
	return section, nil
}

// behind returns a source whose server is the sidecar.
func behind(car *sidecar.Sidecar, dir string, extents int64) (*Source, error) {
	token, target := filepath.Join(dir, "token"), filepath.Join(dir, "target.json")
	for path, data := range map[string]string{
		filepath.Join(dir, server.AddressFile): car.Address, filepath.Join(dir, server.CAFile): string(car.CA), token: car.Token,
		target: encode(peers.Target{
			Address: car.Address, CA: car.CA, Token: car.Token, Namespace: car.Namespace, Snapshot: car.Snapshot, Base: car.Base,
		}),
	} {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			return nil, fmt.Errorf("write the sidecar's endpoint: %w", err)
		}
	}
	return &Source{
		Dir: dir, Extents: extents, Behind: []*measure.Process{car.Process},
		Target: target,
		Flags:  []string{"--namespace=" + car.Namespace, "--snapshot=" + car.Snapshot, "--base-snapshot-handle=" + car.Base, "--token-file=" + token},
	}, nil
}
