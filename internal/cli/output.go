package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/internal/convert"
)

// listFlags say in which format a list is written, and where.
type listFlags struct {
	output string
	file   string
	format convert.Format
}

func (o *listFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", string(convert.JSON), "format: "+strings.Join(convert.Formats(), ", "))
	f.StringVar(&o.file, "out", "-", "write to this file, which appears complete or not at all; -: standard output")
	completeValues(c, "output", convert.Formats())
}

// check parses the flags.
func (o *listFlags) check() (err error) {
	if o.format, err = convert.ParseFormat(o.output); err != nil {
		return usagef("--output: %v", err)
	}
	return nil
}

// saysMode reports whether the format says what is listed, so that it must be known.
func (o *listFlags) saysMode() bool { return o.format == convert.JSON || o.format == convert.CBL }

// checkModes refuses a list of the upstream lister among those at paths if its mode must be known and f does not say it. It does so
// before any list is read: of each it reads no more than tells whose it is, and leaves s as if that had not been read either.
func (o *listFlags) checkModes(ctx context.Context, s *Streams, f foreignFlags, paths ...string) error {
	if !o.saysMode() || f.mode != "" {
		return nil
	}
	for _, path := range paths {
		foreign, err := listsForeign(ctx, s, path)
		if err != nil {
			return err
		}
		if foreign {
			return withoutMode(displayName(path))
		}
	}
	return nil
}

func withoutMode(name string) error {
	return usagef("%s is the upstream lister's and does not say what it lists: add --mode Delta or --mode Allocated", name)
}

// write writes list, which inputs say that it comes from.
func (o *listFlags) write(ctx context.Context, s Streams, list convert.List, inputs ...*input) error {
	for _, in := range inputs {
		if o.saysMode() && !in.modeKnown { // a file that became the lister's after checkModes
			return withoutMode(in.name)
		}
	}
	return writeTo(s, o.file, func(w io.Writer) error { return convert.Write(ctx, w, o.format, list) })
}

// writeTo calls write with standard output for "-", and otherwise with a file that gets its name, and takes the place of
// an older one, only once write has succeeded and all is on disk. What a link names is replaced, and not the link.
func writeTo(s Streams, path string, write func(io.Writer) error) error {
	if path == "-" {
		return write(s.Out)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("write %s: %w", path, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("write %s: it is not a regular file, so that it could not appear at once; write to standard output instead", path)
	}
	file, err := behindLinks(path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := renameio.NewPendingFile(file, renameio.WithTempDir(filepath.Dir(file)), renameio.WithPermissions(0o644))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := write(f); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), f.Cleanup())
	}
	return syncDir(filepath.Dir(file))
}

// maxLinks is how many links may follow each other, as in Linux.
const maxLinks = 40

// behindLinks returns the name of what path names that is no link, and need not be there: filepath.EvalSymlinks fails if it is not.
func behindLinks(path string) (string, error) {
	for range maxLinks {
		dir, name := filepath.Split(path)
		dir, err := filepath.EvalSymlinks(cmp.Or(dir, "."))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSymlink == 0 {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if path = to; !filepath.IsAbs(to) {
			path = dir + string(filepath.Separator) + to // Join would drop "folder/..", and the folder may be a link
		}
	}
	return "", fmt.Errorf("more than %d links follow each other", maxLinks)
}

// syncDir makes what happened to names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// The formats of what is no list.
const (
	asTable = "table"
	asJSON  = "json"
	asYAML  = "yaml"
)

// objectFlag registers --output for a command that prints objects, not lists.
func objectFlag(c *cobra.Command, output *string) {
	formats := []string{asTable, asJSON, asYAML}
	c.Flags().StringVarP(output, "output", "o", asTable, "format: "+strings.Join(formats, ", "))
	completeValues(c, "output", formats)
	inner := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if !slices.Contains(formats, *output) {
			return usagef("--output is %q: use one of %s", *output, strings.Join(formats, ", "))
		}
		return inner(c, args)
	}
}

// printObject writes object as JSON or YAML, or what table writes.
func printObject(w io.Writer, output string, object any, table func(io.Writer) error) error {
	var data []byte
	var err error
	switch output {
	case asJSON:
		data, err = json.MarshalIndent(object, "", "  ")
		data = append(data, '\n')
	case asYAML:
		data, err = yaml.Marshal(object)
	default:
		b := bufio.NewWriter(w)
		return errors.Join(table(b), b.Flush())
	}
	if err != nil {
		return fmt.Errorf("print as %s: %w", output, err)
	}
	_, err = w.Write(data)
	return err
}

// completeValues lets the shell complete a flag with values.
func completeValues(c *cobra.Command, flag string, values []string) {
	// It fails only for a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}
