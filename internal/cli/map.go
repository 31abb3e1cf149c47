package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/internal/heatmap"
	"github.com/cbt-populator/cbt-populator/internal/human"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// mapOptions are the flags of map.
type mapOptions struct {
	foreign       foreignFlags
	output        string
	layout        string
	colour        string
	width, height int
}

// The size of a map where no terminal tells its own, and the largest one.
const (
	usualWidth, usualHeight = 80, 24
	mostWidth, mostHeight   = 1000, 1000
	// aroundMap is how many lines of a terminal the map leaves for the caption, the legend and the next prompt.
	aroundMap = 8
)

func newMapCommand(s Streams) *cobra.Command {
	var o mapOptions
	c := &cobra.Command{
		Use:   "map FILE|DEVICE|-",
		Short: "Show where in the volume the listed blocks are: in the terminal, or as a picture",
		Long: `Shows where in the volume the listed blocks are. In the terminal the volume goes row by row and fits the window; with
--output FILE.png or FILE.svg it is a picture, in which the volume follows a Hilbert curve (what is near in the volume is
near in the picture) or goes row by row.

Colours are used in a terminal that has them, unless NO_COLOR is set.`,
		Example: `  kubectl cbr map changed-blocks.cbl
  kubectl cbr map changed-blocks.cbl -o changes.png
  kubectl cbr map changed-blocks.cbl -o changes.svg --layout rows`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return drawMap(c.Context(), s, o, args[0]) },
	}
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "", "write a picture to this file, whose name ends in .png or .svg")
	f.StringVar(&o.layout, "layout", string(heatmap.Hilbert), "order of a picture: hilbert or rows")
	f.StringVar(&o.colour, "color", "auto", "colours in the terminal: auto, always or never")
	f.IntVar(&o.width, "width", 0, "columns of the terminal; 0: its own number")
	f.IntVar(&o.height, "height", 0, "lines of the terminal; 0: its own number")
	completeValues(c, "layout", []string{string(heatmap.Hilbert), string(heatmap.Rows)})
	completeValues(c, "color", []string{"auto", "always", "never"})
	o.foreign.register(f)
	return c
}

// check reports bad flags.
func (o *mapOptions) check() error {
	switch {
	case o.layout != string(heatmap.Hilbert) && o.layout != string(heatmap.Rows):
		return usagef("--layout is %q: use hilbert or rows", o.layout)
	case o.colour != "auto" && o.colour != "always" && o.colour != "never":
		return usagef("--color is %q: use auto, always or never", o.colour)
	case o.width < 0 || o.width > mostWidth:
		return usagef("--width is %d: it is from 1 to %d", o.width, mostWidth)
	case o.height < 0 || o.height > mostHeight:
		return usagef("--height is %d: it is from 1 to %d", o.height, mostHeight)
	}
	switch filepath.Ext(o.output) {
	case ".png", ".svg":
		return nil
	case "":
		if o.output == "" {
			return nil
		}
	}
	return usagef("--output is %q: its name ends in .png or .svg", o.output)
}

func drawMap(ctx context.Context, s Streams, o mapOptions, path string) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	in, err := openList(ctx, s, path, o.foreign)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	capacity := in.Header().VolumeCapacityBytes
	count := func(n int) (*heatmap.Cells, error) {
		cells, err := await(ctx, func() (*heatmap.Cells, error) { return heatmap.Count(in.extents(), capacity, n) })
		if err != nil {
			return nil, fmt.Errorf("read list %s: %w", in.name, err)
		}
		return cells, nil
	}
	if o.output == "" {
		width, height := terminalSize(s.Out, o.width, o.height)
		columns := heatmap.Columns(width)
		cells, err := count(columns * max(height-aroundMap, 1))
		if err != nil {
			return err
		}
		return heatmap.Text(s.Out, cells, caption(in), columns, hasColours(s.Out, o.colour))
	}
	cells, err := count(heatmap.PictureCells(capacity))
	if err != nil {
		return err
	}
	write := heatmap.PNG
	if filepath.Ext(o.output) == ".svg" {
		write = heatmap.SVG
	}
	return writeTo(s, o.output, func(w io.Writer) error { return write(w, cells, caption(in), heatmap.Layout(o.layout)) })
}

// caption says what the list is about.
func caption(in *input) heatmap.Caption {
	h, t := in.Header(), in.Trailer()
	target := strings.TrimPrefix(h.Namespace+"/"+h.TargetSnapshot, "/")
	c := heatmap.Caption{Title: "Blocks changed up to " + target}
	switch {
	case h.TargetSnapshot == "":
		c.Title = in.name
	case h.Mode == blocklist.Allocated:
		c.Title = "Allocated blocks of " + target
	case h.BaseSnapshot != "":
		c.Title = fmt.Sprintf("Blocks changed from %s to %s", h.BaseSnapshot, target)
	}
	c.Title = listops.Printable(c.Title)
	c.Lines = []string{fmt.Sprintf("%s in %d extents: %.2f %% of a volume of %s", human.Bytes(t.ChangedBytes),
		t.EntryCount, 100*float64(t.ChangedBytes)/float64(h.VolumeCapacityBytes), human.Bytes(h.VolumeCapacityBytes))}
	return c
}

// terminalSize returns the columns and lines to use: those asked for, those of the terminal w, or usual ones.
func terminalSize(w io.Writer, width, height int) (columns, lines int) {
	columns, lines = usualWidth, usualHeight
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		columns = n
	}
	if fd, ok := terminal(w); ok {
		if x, y, err := term.GetSize(fd); err == nil && x > 0 && y > 0 {
			columns, lines = x, y
		}
	}
	if width > 0 {
		columns = width
	}
	if height > 0 {
		lines = height
	}
	return min(columns, mostWidth), min(lines, mostHeight)
}

// hasColours reports whether w shall get colours.
func hasColours(w io.Writer, choice string) bool {
	if choice != "auto" {
		return choice == "always"
	}
	_, ok := terminal(w)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && os.Getenv("TERM") != ""
}

// terminal returns the descriptor of w, and whether it is a terminal's.
func terminal(w io.Writer) (fd int, ok bool) {
	if out, wrapped := w.(standardOutput); wrapped {
		w = out.Writer
	}
	f, ok := w.(*os.File)
	if !ok {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}
