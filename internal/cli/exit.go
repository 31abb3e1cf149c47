package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes, which docs/kubectl-cbr.md lists.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
	// exitPipe is what a shell says of a program that died of a closed pipe.
	exitPipe = 141
)

// Execute runs the command line args and returns the exit code. What went wrong is on s.Err.
func Execute(ctx context.Context, s Streams, version string, args []string) int {
	s.Out = standardOutput{s.Out}
	root := NewCommand(s, version) //nolint:contextcheck // cobra hands the commands ctx
	root.SetArgs(args)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := exitCode(ctx, err)
	if code == exitPipe {
		return code // as with any program before head
	}
	text := fmt.Sprintf("%s: %v", root.DisplayName(), err)
	if code == exitUsage {
		text += fmt.Sprintf("\nSee '%s --help'.", commandPath(root, ran))
	}
	_, _ = fmt.Fprintln(s.Err, text) // the exit code says it too
	return code
}

func commandPath(root, ran *cobra.Command) string {
	if ran == nil || ran == root {
		return root.DisplayName()
	}
	return ran.CommandPath()
}

// failure is an error of a command's work. An error that is none is one of the command line.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usageError is an error of the command line that only the command itself could see.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// usagef returns an error of the command line, for RunE. The message names the flag or argument and says what would do.
func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// markFailure wraps an error that RunE returned, unless it is one of the command line.
func markFailure(err error) error {
	var usage *usageError
	if err == nil || errors.As(err, &usage) {
		return err
	}
	return &failure{err}
}

func exitCode(ctx context.Context, err error) int {
	var failed *failure
	switch {
	case !errors.As(err, &failed):
		return exitUsage
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, errReaderGone):
		return exitPipe
	}
	return exitFailed
}

// errReaderGone is what writes to standard output return when its reader went away. EPIPE alone does not say that: a connection to
// the API server breaks with it, too, and that is a failure of which something must be said.
var errReaderGone = errors.New("the reader of standard output went away")

// standardOutput tells its own EPIPE from others.
type standardOutput struct{ io.Writer }

func (o standardOutput) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		err = fmt.Errorf("%w: %w", errReaderGone, err)
	}
	return n, err
}
