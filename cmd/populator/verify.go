package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/listops"
	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

func newVerifyCommand(stdout io.Writer) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:           "verify FILE|DEVICE",
		Short:         "Read a whole list, check everything about it and print its summary; the exit code is 0 only if it is whole",
		Args:          cobra.ExactArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(_ *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return outcome.Errorf(outcome.InvalidArguments, "--output is %q: use text or json", output)
			}
			return verify(stdout, args[0], output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// notWholeError says why something is no whole list.
type notWholeError struct {
	path string
	err  error
}

func (e *notWholeError) Error() string {
	return fmt.Sprintf("%s is not a whole list: %v", e.path, e.err)
}
func (e *notWholeError) Unwrap() error { return e.err }

// verify prints the summary of the list at path, or says what is wrong with it.
func verify(stdout io.Writer, path, output string) (err error) {
	list, err := blocklist.Open(path)
	if err != nil {
		return &notWholeError{path: path, err: err}
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	s := listops.Summarize(list.Header(), list.Trailer())
	if output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	_, err = fmt.Fprintf(stdout, "%s is whole\n", path)
	return errors.Join(err, s.Print(stdout))
}
