package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cbt-populator/cbt-populator/internal/convert"
	"github.com/cbt-populator/cbt-populator/internal/listops"
)

// catOptions are the flags of cat.
type catOptions struct {
	list    listFlags
	foreign foreignFlags
	ranges  string
	offset  int64
	limit   int64
}

const catLong = `Prints a list, or a part of it, in the format of your tool. What it reads is found out by itself: our JSON, our Binary,
a device that holds a list, or the JSON of the upstream snapshot-metadata-lister; - is standard input. The list is
verified first, all of it: nothing of a list that was cut or damaged is printed. (What cannot be read twice is kept in a
temporary file for that.)

Formats:
  json, cbl   the formats of this project, which prove themselves whole
  ndjson      one JSON object a line: byte_offset, size_bytes
  tsv         offset, tab, length; for shell loops and dd
  lister      the JSON of the upstream snapshot-metadata-lister (whose own output drops an offset of 0; this does not)
  table       its table
  ddrescue    a mapfile for ddrescue --domain-mapfile, with the other options that it needs in its first lines
  bmap        a block map for bmaptool copy --bmap

A part in json or cbl is a whole list by itself. Its target's name says that it is a part, and it has no target handle, so
that no increment follows it by mistake.`

func newCatCommand(s Streams) *cobra.Command {
	var o catOptions
	c := &cobra.Command{
		Use:   "cat FILE|DEVICE|-",
		Short: "Print a list, or a part of it, in the format of your tool",
		Long:  catLong,
		Example: `  # offsets and lengths for a shell loop
  kubectl cbr cat /mnt/changes/changed-blocks.json -o tsv

  # the list of a Block volume for ddrescue
  kubectl cbr cat /dev/xvda -o ddrescue --out changes.map

  # what changed in the second GiB
  kubectl cbr cat changed-blocks.cbl --range 1Gi-2Gi

  # the second thousand extents
  kubectl cbr cat changed-blocks.cbl --offset 1000 --limit 1000 -o ndjson`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return cat(c.Context(), s, o, args[0]) },
	}
	o.list.register(c)
	o.foreign.register(c.Flags())
	f := c.Flags()
	f.StringVar(&o.ranges, "range", "", "only what lies in this part of the volume, clipped to it: START-END or START:LENGTH, END excluded, either may be left out; sizes such as 4096, 64Ki, 1Gi")
	f.Int64Var(&o.offset, "offset", 0, "leave out so many extents (of the range)")
	f.Int64Var(&o.limit, "limit", -1, "print at most so many extents; -1: all")
	return c
}

func cat(ctx context.Context, s Streams, o catOptions, path string) (err error) {
	if err := o.list.check(); err != nil {
		return err
	}
	r, err := parseRange(o.ranges)
	switch {
	case err != nil:
		return usagef("--range: %v", err)
	case o.offset < 0:
		return usagef("--offset is %d: it is a number of extents", o.offset)
	case o.limit < -1:
		return usagef("--limit is %d: it is a number of extents, or -1 for all", o.limit)
	}
	if err := o.list.checkModes(ctx, &s, o.foreign, path); err != nil {
		return err
	}
	in, err := openList(ctx, s, path, o.foreign)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	return o.list.write(ctx, s, o.part(in, r), in)
}

// part returns what of the list the flags ask for.
func (o *catOptions) part(in *input, r listops.Range) convert.List {
	limit := o.limit
	if limit < 0 {
		limit = math.MaxInt64
	}
	list := convert.List{Header: in.Header(), Extents: in.extents}
	var remarks []string
	if o.ranges != "" {
		list.Header = listops.Clipped(list.Header)
		list.Extents = func() listops.Extents { return listops.Clip(listops.Of(in.From(r.From)), r) }
		remarks = append(remarks, fmt.Sprintf("bytes %d to %d", r.From, min(r.To, list.Header.VolumeCapacityBytes)))
		if g := list.Header.GranularityBytes; g > 0 && (r.From|min(r.To, list.Header.VolumeCapacityBytes))&(g-1) != 0 {
			list.Header.GranularityBytes = 0
		}
	}
	if o.offset > 0 || o.limit >= 0 {
		clipped := list.Extents
		list.Extents = func() listops.Extents { return listops.Page(clipped(), o.offset, limit) }
		remarks = append(remarks, fmt.Sprintf("extents from %d on, at most %d", o.offset, limit))
	}
	if len(remarks) > 0 {
		list.Header = listops.Part(list.Header, "part: "+strings.Join(remarks, ", "))
	}
	return list
}

// parseRange reads START-END or START:LENGTH, both of which may lack either side; nothing is everything.
func parseRange(s string) (listops.Range, error) {
	r := listops.Everything()
	if s == "" {
		return r, nil
	}
	left, right, ok := strings.Cut(s, ":")
	length := ok
	if !ok {
		left, right, ok = strings.Cut(s, "-")
	}
	if !ok || left == "" && right == "" {
		return r, fmt.Errorf("%q is neither START-END nor START:LENGTH", s)
	}
	var err error
	if left != "" {
		if r.From, err = parseBytes(left); err != nil {
			return r, err
		}
	}
	if right != "" {
		if r.To, err = parseBytes(right); err != nil {
			return r, err
		}
		if length {
			r.To = r.From + min(r.To, math.MaxInt64-r.From)
		}
	}
	if r.To <= r.From {
		return r, fmt.Errorf("%q is empty", s)
	}
	return r, nil
}
