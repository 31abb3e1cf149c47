package datapath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/report"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// Large measures lists from a million extents, ten times longer each time, up to most.
func (l *Lab) Large(ctx context.Context, plan Plan, most int64) (report.Section, error) {
	section := report.Section{
		Key: "large", Title: "Long lists",
		Text: fmt.Sprintf("The whole populator with lists of up to %s extents (%.0f TiB of volume), one run each, %d extents a message. Every list is compared: Binary "+
			"from its file after the run, JSON while it is written, through a pipe, because the longest does not fit into memory; its time includes waiting for that reader.",
			report.Group(most), float64(most)*0.2/1e6, plan.PerMessage),
		Heading: []string{"extents", "format", "seconds", "CPU ns/extent", "peak memory, MiB", "bytes/extent"},
		Chart:   report.Chart{Axis: "CPU seconds; memory in MiB", Along: "million extents"},
	}
	var binary, json, memory report.Line
	binary.Label, json.Label, memory.Label = "Binary, CPU seconds", "JSON, CPU seconds", "peak memory, MiB"
	for _, n := range lengths(most) {
		b, j, err := l.largeList(ctx, plan, n)
		if err != nil {
			return report.Section{}, fmt.Errorf("%d extents: %w", n, err)
		}
		for _, run := range []struct {
			format blocklist.Format
			Sample
		}{{blocklist.Binary, b}, {blocklist.JSON, j}} {
			section.Rows = append(section.Rows, []string{
				report.Group(n), string(run.format), report.Number(run.Wall.Seconds()), report.Number(float64(run.CPU) / float64(n)),
				strconv.FormatInt(run.Peak>>20, 10), report.Number(float64(run.Written) / float64(n))})
			plan.Log(fmt.Sprintf("%s extents, %s: %s, peak %d MiB", report.Group(n), run.format, run.Wall, run.Peak>>20))
		}
		x := float64(n) / 1e6
		binary.At = append(binary.At, [2]float64{x, b.CPU.Seconds()})
		json.At = append(json.At, [2]float64{x, j.CPU.Seconds()})
		memory.At = append(memory.At, [2]float64{x, float64(max(b.Peak, j.Peak)) / (1 << 20)})
	}
	section.Chart.Lines = []report.Line{binary, json, memory}
	return section, nil
}

// lengths returns 1, 5, 50, … million up to most, and most itself; two lengths at least, else there is no line to draw.
func lengths(most int64) []int64 {
	all := []int64{min(1_000_000, most/10)}
	for n := int64(5_000_000); n < most; n *= 10 {
		all = append(all, n)
	}
	return append(all, most)
}

func (l *Lab) largeList(ctx context.Context, plan Plan, n int64) (binary, json Sample, err error) {
	s, err := l.Serve(ctx, server.Config{Extents: n, PerMessage: plan.PerMessage})
	if err != nil {
		return Sample{}, Sample{}, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	if binary, err = l.Populate(ctx, s, blocklist.Binary, ToFile, true); err != nil {
		return Sample{}, Sample{}, err
	}
	json, err = l.pipe(ctx, s, blocklist.JSON)
	return binary, json, err
}

// pipe runs the populator with a reader that compares its standard output.
func (l *Lab) pipe(ctx context.Context, s *Source, format blocklist.Format) (Sample, error) {
	cmd, termination, err := l.populator(ctx, s, format, "-")
	if err != nil {
		return Sample{}, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return Sample{}, fmt.Errorf("make a pipe: %w", err)
	}
	cmd.Stdout = writer
	p, err := measure.Start(cmd)
	// The child has its own.
	if err := errors.Join(err, writer.Close()); err != nil {
		return Sample{}, errors.Join(err, reader.Close())
	}
	compared := make(chan error, 1)
	go func() {
		err := compareStream(reader, s.Extents)
		// The populator ends when nobody reads.
		compared <- errors.Join(err, reader.Close())
	}()
	usage, err := p.Wait()
	if err := errors.Join(<-compared, err); err != nil {
		return Sample{}, err
	}
	result, err := readResult(termination)
	if err != nil {
		return Sample{}, err
	}
	return Sample{Extents: s.Extents, Wall: usage.Wall, CPU: usage.CPU, Peak: usage.Peak, Written: result.NumBytesWritten, Allocations: -1}, nil
}
