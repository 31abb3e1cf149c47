// Command populator writes the list of blocks that changed between two snapshots, or that are allocated in one, to a
// volume or to standard output. docs/populator.md describes its flags and exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
	"github.com/cbt-populator/cbt-populator/internal/populate"
)

// stopGrace is how long a population may take to stop by itself once it was asked to. A sync of a slow disk may take
// longer; then the process ends without it, and the volume holds the whole list or none.
const stopGrace = 800 * time.Millisecond

// exitNotWhole is the exit code of verify for what is not a whole list.
const exitNotWhole = 1

// memoryTarget is what the Go runtime keeps to as long as it can, in bytes. What the longest list needs is less than half of
// it; without a target the collector would let garbage double that.
const memoryTarget = 28 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryTarget)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// A list goes through a few goroutines that wait for one another. On one processor a handover between them costs
		// nothing, on several a fifth of the CPU time; and one processor takes a list several times faster than a sidecar
		// sends it, over any number of streams.
		runtime.GOMAXPROCS(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// A reader of standard output that goes away shall be a reported failure, not a silent death.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs the command line and returns the exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	code := 0
	root := newCommand(func(f *flags) {
		code = populateAndReport(ctx, f, stdout, log).ExitCode()
	})
	root.AddCommand(newVerifyCommand(stdout))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return code
	}
	_, _ = fmt.Fprintln(stderr, "populator:", err) // the exit code says it too
	var notWhole *notWholeError
	if errors.As(err, &notWhole) {
		return exitNotWhole
	}
	// The default command fails here only if its command line could not be parsed.
	if ran == root {
		reportUnparsed(args, err, log)
	}
	return outcome.InvalidArguments.ExitCode()
}

// populateAndReport runs one population and leaves its result in the termination message.
func populateAndReport(ctx context.Context, f *flags, stdout io.Writer, log *slog.Logger) outcome.Reason {
	result, err := guard(ctx, log, func() (outcome.Result, error) { return populate.Run(ctx, f.resolve(), stdout, log) })
	result.Reason = outcome.ReasonOf(err)
	if err != nil {
		result.Message = err.Error()
		log.Error("population failed", "reason", result.Reason, "exitCode", result.Reason.ExitCode(), "error", err.Error())
	} else {
		log.Info("populated", "mode", result.Mode, "entries", result.EntryCount, "changedBytes", result.ChangedBytes,
			"listBytes", result.NumBytesWritten, "digest", result.ListDigest, "resumes", result.Resumes)
	}
	if err := writeTermination(f.termination, f.terminationGiven, result); err != nil {
		log.Error("could not write the termination message", "error", err.Error())
	}
	return result.Reason
}

// guard turns a panic of run into an error with a reason, and returns soon after ctx has ended whatever run does.
func guard(ctx context.Context, log *slog.Logger, run func() (outcome.Result, error)) (outcome.Result, error) {
	type ending struct {
		result outcome.Result
		err    error
	}
	done := make(chan ending, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				log.Error("panic", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
				done <- ending{err: outcome.Errorf(outcome.InternalError, "the populator has a defect: %v", p)}
			}
		}()
		result, err := run()
		done <- ending{result, err}
	}()
	select {
	case e := <-done:
		return e.result, e.err
	case <-ctx.Done():
	}
	select {
	case e := <-done:
		return e.result, e.err
	case <-time.After(stopGrace):
		return outcome.Result{}, outcome.Errorf(outcome.Cancelled, "stopped while the output was busy: %w", context.Cause(ctx))
	}
}

// reportUnparsed leaves a termination message for a command line that could not be parsed.
func reportUnparsed(args []string, err error, log *slog.Logger) {
	path, given := terminationFlag(args)
	result := outcome.Result{Reason: outcome.InvalidArguments, Message: err.Error()}
	if err := writeTermination(path, given, result); err != nil {
		log.Error("could not write the termination message", "error", err.Error())
	}
}

// writeTermination writes the termination message. A default path that does not exist is passed over: outside a pod
// nobody reads it.
func writeTermination(path string, given bool, result outcome.Result) error {
	if path == "" {
		return nil
	}
	if _, err := os.Stat(path); !given && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	data, err := result.Marshal()
	if err != nil {
		return err
	}
	// Not by rename: the kubelet mounts this very file.
	return os.WriteFile(path, data, 0o644)
}
