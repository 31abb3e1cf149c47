package datapath

import (
	"context"
	"fmt"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
)

// Contestant is one way to get a list, a row of a table.
type Contestant struct {
	Title string
	// Ours tells the populator from its peers.
	Ours bool
	// Run gets the list once. A check also compares it, and is no measurement.
	Run func(ctx context.Context, check bool) (Sample, error)
}

// peer returns a peer as a contestant, with env added to its environment.
func (l *Lab) peer(title, name string, s *Source, to Destination, env ...string) Contestant {
	return Contestant{Title: title, Run: func(ctx context.Context, check bool) (Sample, error) {
		return l.Peer(ctx, s, name, to, check, env...)
	}}
}

// ours returns the populator as a contestant.
func (l *Lab) ours(title string, format blocklist.Format, s *Source, to Destination, flags ...string) Contestant {
	return Contestant{Title: title, Ours: true, Run: func(ctx context.Context, check bool) (Sample, error) {
		return l.Populate(ctx, s, format, to, check, flags...)
	}}
}

// Standing is what a contestant needed: the medians of its runs.
type Standing struct {
	Contestant
	Sample
}

// Rate returns extents per second.
func (s Standing) Rate() float64 { return float64(s.Extents) / s.Wall.Seconds() }

// CPUPerExtent is in nanoseconds.
func (s Standing) CPUPerExtent() float64 { return float64(s.CPU) / float64(s.Extents) }

// hold has every contestant checked and then run so many times, in turns, so that whatever else the machine does meets all
// of them. log is told what happens.
func hold(ctx context.Context, rounds int, log func(string), contestants ...Contestant) ([]Standing, error) {
	samples := make([][]Sample, len(contestants))
	for round := range rounds + 1 {
		for i, c := range contestants {
			begin := time.Now()
			sample, err := c.Run(ctx, round == 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.Title, err)
			}
			if round == 0 {
				log(fmt.Sprintf("%-55s the same list (%s)", c.Title, time.Since(begin).Round(time.Millisecond)))
				continue
			}
			log(fmt.Sprintf("%-55s round %d: %s", c.Title, round, sample.Wall.Round(time.Millisecond)))
			samples[i] = append(samples[i], sample)
		}
	}
	standings := make([]Standing, len(contestants))
	for i, c := range contestants {
		standings[i] = Standing{Contestant: c, Sample: medians(samples[i])}
	}
	return standings, nil
}

// medians returns the median of each figure. How much was read, written and allocated hardly differs between runs.
func medians(samples []Sample) Sample {
	m := samples[0]
	m.Wall = medianOf(samples, func(s Sample) time.Duration { return s.Wall })
	m.CPU = medianOf(samples, func(s Sample) time.Duration { return s.CPU })
	m.ServerCPU = medianOf(samples, func(s Sample) time.Duration { return s.ServerCPU })
	m.Peak = medianOf(samples, func(s Sample) int64 { return s.Peak })
	m.Cores = medianOf(samples, func(s Sample) float64 { return s.Cores })
	m.Allocations = medianOf(samples, func(s Sample) int64 { return s.Allocations })
	return m
}

func medianOf[T ~int64 | ~float64](samples []Sample, figure func(Sample) T) T {
	values := make([]T, len(samples))
	for i, s := range samples {
		values[i] = figure(s)
	}
	return measure.Median(values)
}
