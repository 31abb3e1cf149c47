package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/convert"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// input is a list that a command was given.
type input struct {
	*blocklist.File
	name string
	// foreign says that the list came without a trailer that proves it whole and without a header of its own: it is the
	// upstream lister's.
	foreign bool
	// modeKnown says that the header's mode is known, not assumed.
	modeKnown bool
}

// extents returns all extents of the list. It may be called several times.
func (in *input) extents() listops.Extents { return listops.Of(in.From(0)) }

// foreignFlags say what the upstream lister's JSON leaves open.
type foreignFlags struct {
	mode     string
	capacity byteCount
}

func (o *foreignFlags) register(f *pflag.FlagSet) {
	f.StringVar(&o.mode, "mode", "", "what the upstream lister's JSON lists, which it does not say: Delta or Allocated")
	f.Var(&o.capacity, "capacity", "size of the volume, for an empty list of the upstream lister, which does not say it")
}

// header returns the header that a list of the upstream lister gets besides what it says itself.
func (o *foreignFlags) header() (h blocklist.Header, err error) {
	h.VolumeCapacityBytes = int64(o.capacity) // 0 if it was not given
	switch h.Mode = blocklist.Mode(o.mode); h.Mode {
	case "", blocklist.Delta, blocklist.Allocated:
	default:
		return h, usagef("--mode is %q: use %s or %s", o.mode, blocklist.Delta, blocklist.Allocated)
	}
	return h, nil
}

// parseBytes reads a size such as 4096, 64Ki or 10Gi.
func parseBytes(s string) (int64, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: write bytes, or a number with Ki, Mi, Gi or Ti, such as 65536 or 64Ki", s)
	}
	n := q.Value() // rounded, and bounded by what fits
	if n < 0 || q.Cmp(*resource.NewQuantity(n, resource.BinarySI)) != 0 {
		return 0, fmt.Errorf("%q is not a whole, non-negative number of bytes", s)
	}
	return n, nil
}

// openList opens and verifies a list: a file in one of our formats, a device, a file with the upstream lister's JSON, or
// "-" for standard input. Nothing of a list that is not whole is handed out. What cannot be read twice is first written
// to a temporary file, which is gone as soon as it is open.
func openList(ctx context.Context, s Streams, path string, o foreignFlags) (*input, error) {
	h, err := o.header()
	if err != nil {
		return nil, err
	}
	in, err := open(ctx, s.In, path, h)
	if err != nil {
		return nil, err
	}
	in.name = displayName(path)
	return in, nil
}

func displayName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// await returns what work returns, or the cause of ctx soon after ctx has ended: a read of a terminal, of a pipe or of a
// slow disk cannot be interrupted otherwise. It wraps the innermost steps only, so that whoever made something removes it.
func await[T any](ctx context.Context, work func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := work()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

func open(ctx context.Context, stdin io.Reader, path string, h blocklist.Header) (*input, error) {
	if path == "-" {
		in, err := withTemp(func(temp *os.File) (*input, error) {
			if _, err := await(ctx, func() (int64, error) { return io.Copy(temp, stdin) }); err != nil {
				return nil, fmt.Errorf("keep it in %s: %w", temp.Name(), err)
			}
			return openPath(ctx, temp.Name(), h)
		})
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return in, nil
	}
	return openPath(ctx, path, h)
}

func openPath(ctx context.Context, path string, h blocklist.Header) (*input, error) {
	foreign, err := isLister(path)
	if err != nil {
		return nil, err
	}
	if foreign {
		return withTemp(func(temp *os.File) (*input, error) { return importLister(ctx, path, temp, h) })
	}
	list, err := await(ctx, func() (*blocklist.File, error) { return blocklist.Open(path) })
	if err != nil {
		return nil, err
	}
	return &input{File: list, modeKnown: true}, nil
}

// isLister reports whether the file begins like the upstream lister's JSON.
func isLister(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	b, err := begin(f)
	return b.isLister(), errors.Join(err, f.Close())
}

// beginning is as much of a list as tells whose it is, and what follows.
type beginning struct {
	head []byte
	rest io.Reader
}

func begin(r io.Reader) (beginning, error) {
	head := make([]byte, 64)
	n, err := io.ReadFull(r, head)
	b := beginning{head[:n], r}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		b.rest, err = bytes.NewReader(nil), nil // whoever types a list would have to end it again
	}
	return b, err
}

func (b beginning) isLister() bool { return bytes.HasPrefix(bytes.TrimSpace(b.head), []byte("[")) }

// listsForeign reports whether the list at path is the upstream lister's. What it has read of standard input is put back.
func listsForeign(ctx context.Context, s *Streams, path string) (bool, error) {
	if path != "-" {
		return await(ctx, func() (bool, error) { return isLister(path) })
	}
	b, err := await(ctx, func() (beginning, error) { return begin(s.In) })
	if err != nil {
		return false, fmt.Errorf("standard input: %w", err)
	}
	s.In = io.MultiReader(bytes.NewReader(b.head), b.rest)
	return b.isLister(), nil
}

// importLister writes the list of the upstream lister at path to temp in our Binary format, and opens that.
func importLister(ctx context.Context, path string, temp *os.File, h blocklist.Header) (*input, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	known := h.Mode != ""
	if !known {
		h.Mode = blocklist.Delta
	}
	if err := errors.Join(convert.ImportLister(ctx, temp, f, h), f.Close()); err != nil {
		return nil, fmt.Errorf("open list %s: %w", path, err)
	}
	list, err := blocklist.Open(temp.Name())
	if err != nil {
		return nil, err
	}
	return &input{File: list, foreign: true, modeKnown: known}, nil
}

// withTemp runs use with a temporary file, which is removed afterwards. What has it open then can still read it.
func withTemp[T any](use func(*os.File) (T, error)) (result T, err error) {
	temp, err := os.CreateTemp("", "kubectl-cbr-")
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			return result, fmt.Errorf("make a temporary file (set TMPDIR to a folder with room for the list): %w", err)
		}
		return result, err
	}
	result, err = use(temp)
	return result, errors.Join(err, temp.Close(), os.Remove(temp.Name()))
}
