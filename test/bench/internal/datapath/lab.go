// Package datapath measures how fast a list gets from a server to its reader: servers, peers and the populator are
// processes of their own, their output goes to memory, and every path's list is compared with what the server sent.
package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/extents"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/measure"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/peers"
	"github.com/cbt-populator/cbt-populator/test/bench/internal/server"
)

// Lab has what a measurement needs.
type Lab struct {
	// Bench is this program, whose commands serve and peer are the child processes.
	Bench string
	// Populator is the program that is measured.
	Populator string
	// Scratch is a folder in memory.
	Scratch string
	// digests are those of lists that were compared, by source and format.
	digests map[string]string
}

// Destination says where a path writes to when it is measured. When it is checked, that is a file.
type Destination int

const (
	// ToNowhere is /dev/null: what is measured does not depend on any storage.
	ToNowhere Destination = iota
	// ToFile is a file in memory.
	ToFile
)

// NewLab returns a lab whose populator is built from source, the folder of the module. Close removes it.
func NewLab(ctx context.Context, source string) (*Lab, error) {
	bench, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	scratch, err := os.MkdirTemp(parent, "cbt-bench-")
	if err != nil {
		return nil, fmt.Errorf("make scratch folder: %w", err)
	}
	l := &Lab{digests: map[string]string{}, Bench: bench, Populator: filepath.Join(scratch, "populator"), Scratch: scratch}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", l.Populator, "./cmd/populator")
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := measure.Run(build); err != nil {
		return nil, errors.Join(fmt.Errorf("build the populator: %w", err), l.Close())
	}
	return l, nil
}

// Close removes the scratch folder.
func (l *Lab) Close() error {
	if err := os.RemoveAll(l.Scratch); err != nil {
		return fmt.Errorf("remove scratch folder: %w", err)
	}
	return nil
}

// Source is a running server with what a client needs to reach it.
type Source struct {
	// Dir is the endpoint folder.
	Dir     string
	Extents int64
	// Target is a file with the peers.Target of a real sidecar, and Flags are what the populator has to say to it. Both are
	// empty for a server that looks at no names.
	Target string
	Flags  []string
	// Behind are the processes that serve it.
	Behind []*measure.Process
}

// Serve starts a server as a child process.
func (l *Lab) Serve(ctx context.Context, cfg server.Config) (*Source, error) {
	dir, err := os.MkdirTemp(l.Scratch, "endpoint-")
	if err != nil {
		return nil, fmt.Errorf("make endpoint folder: %w", err)
	}
	p, err := measure.Start(exec.CommandContext(ctx, l.Bench, "serve", "--config="+encode(cfg), "--endpoint-dir="+dir))
	if err != nil {
		return nil, err
	}
	err = p.Await(ctx, func() error {
		_, err := os.Stat(filepath.Join(dir, server.AddressFile))
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return &Source{Dir: dir, Extents: cfg.Extents, Behind: []*measure.Process{p}}, nil
}

// Stop stops the source's processes, the last started first.
func (s *Source) Stop() error {
	var errs []error
	for i := len(s.Behind) - 1; i >= 0; i-- {
		errs = append(errs, s.Behind[i].Stop())
	}
	return errors.Join(errs...)
}

// encode writes what a child process shall know as a flag's value.
func encode(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of numbers and strings
	}
	return string(data)
}

// Sample is one run of one path.
type Sample struct {
	Extents   int64
	Wall, CPU time.Duration
	// Peak is the largest resident memory in bytes, Written the size of what was written.
	Peak, Written int64
	// Allocations is the number of allocated objects; -1: unknown.
	Allocations int64
	// ServerCPU is what the processes behind the source used meanwhile.
	ServerCPU time.Duration
	// Cores is how many of the machine's processors were busy on average, whoever with.
	Cores float64
}

// Peer runs a peer against s, with env added to its environment. A check compares what it got with the list; its times are no measurement.
func (l *Lab) Peer(ctx context.Context, s *Source, name string, to Destination, check bool, env ...string) (Sample, error) {
	out := os.DevNull
	if to == ToFile || check {
		out = filepath.Join(l.Scratch, "peer-"+name)
		defer func() { _ = os.Remove(out) }()
	}
	args := []string{"peer", "--name=" + name, "--endpoint-dir=" + s.Dir, "--output=" + out}
	if s.Target != "" {
		args = append(args, "--target="+s.Target)
	}
	if check {
		args = append(args, "--compare="+strconv.FormatInt(s.Extents, 10))
	}
	cmd := exec.CommandContext(ctx, l.Bench, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	sample, err := s.during(cmd)
	if err != nil {
		return Sample{}, err
	}
	var r peers.Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		return Sample{}, fmt.Errorf("read the result of peer %s: %w", name, err)
	}
	sample.Wall, sample.CPU, sample.Written, sample.Allocations = r.Wall, r.CPU, r.Written, r.Allocations
	return sample, nil
}

// during runs cmd and tells what it used, and what the processes behind the source and the whole machine did meanwhile.
func (s *Source) during(cmd *exec.Cmd) (Sample, error) {
	before, err := s.cpu()
	if err != nil {
		return Sample{}, err
	}
	var used measure.Usage
	_, cores, err := measure.Busy(func() (err error) {
		used, err = measure.Run(cmd)
		return err
	})
	if err != nil {
		return Sample{}, err
	}
	after, err := s.cpu()
	return Sample{
		Extents: s.Extents, Wall: used.Wall, CPU: used.CPU, Peak: used.Peak, Allocations: -1, ServerCPU: after - before, Cores: cores,
	}, err
}

func (s *Source) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, p := range s.Behind {
		t, err := p.CPU()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// Populate runs the populator against s. Unlike a peer's, its times include the start of the process. A check compares its
// list; later lists must have the same digest.
func (l *Lab) Populate(ctx context.Context, s *Source, format blocklist.Format, to Destination, check bool, flags ...string) (Sample, error) {
	volume := "-" // standard output, which is /dev/null
	if to == ToFile || check {
		var err error
		if volume, err = os.MkdirTemp(l.Scratch, "volume-"); err != nil {
			return Sample{}, fmt.Errorf("make volume: %w", err)
		}
		defer func() { _ = os.RemoveAll(volume) }()
	}
	cmd, termination, err := l.populator(ctx, s, format, volume, flags...)
	if err != nil {
		return Sample{}, err
	}
	sample, err := s.during(cmd)
	if err != nil {
		return Sample{}, err
	}
	result, err := readResult(termination)
	if err != nil {
		return Sample{}, err
	}
	if result.EntryCount != s.Extents {
		return Sample{}, fmt.Errorf("WRONG LIST: the populator's has %d of %d extents", result.EntryCount, s.Extents)
	}
	checked := s.Dir + "/" + string(format)
	if check {
		if err := compareFile(filepath.Join(volume, blocklist.FileName(format)), s.Extents); err != nil {
			return Sample{}, err
		}
		l.digests[checked] = result.ListDigest
	}
	if result.ListDigest != l.digests[checked] {
		return Sample{}, fmt.Errorf("WRONG LIST: the populator's has the digest %q, the one that was compared %q", result.ListDigest, l.digests[checked])
	}
	sample.Written = result.NumBytesWritten
	return sample, nil
}

// populator returns the command that writes to output, and the path of its termination message.
func (l *Lab) populator(ctx context.Context, s *Source, format blocklist.Format, output string, flags ...string) (*exec.Cmd, string, error) {
	token, termination := filepath.Join(s.Dir, "token"), filepath.Join(s.Dir, "termination")
	if s.Flags == nil {
		if err := os.WriteFile(token, []byte("token"), 0o600); err != nil {
			return nil, "", fmt.Errorf("write token: %w", err)
		}
		flags = append([]string{"--namespace=bench", "--snapshot=snap-2", "--base-snapshot-handle=handle-1", "--token-file=" + token}, flags...)
	}
	args := append([]string{
		"--endpoint-dir=" + s.Dir, "--format=" + string(format), "--output=" + output, "--termination-message=" + termination,
	}, append(s.Flags, flags...)...)
	return exec.CommandContext(ctx, l.Populator, args...), termination, nil
}

func readResult(termination string) (outcome.Result, error) {
	data, err := os.ReadFile(termination)
	if err != nil {
		return outcome.Result{}, fmt.Errorf("read the populator's result: %w", err)
	}
	result, err := outcome.Parse(string(data))
	if err != nil {
		return outcome.Result{}, fmt.Errorf("read the populator's result: %w", err)
	}
	return result, nil
}

// compareFile verifies the list at path and compares it with the list that was served.
func compareFile(path string, count int64) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the populator's list: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return compareStream(f, count)
}

func compareStream(r io.Reader, count int64) error {
	comparison := extents.New(count).Compare(0)
	if err := peers.DecodeList(r, comparison.Add); err != nil {
		return err
	}
	return comparison.Done()
}
