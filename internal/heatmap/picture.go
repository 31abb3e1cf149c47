package heatmap

import (
	"fmt"
	"io"

	"github.com/cbt-populator/cbt-populator/internal/human"
)

// Caption is what is written above a map.
type Caption struct {
	Title string
	Lines []string
}

// Layout says how the volume's cells lie in a picture.
type Layout string

// The layouts.
const (
	// Hilbert follows a Hilbert curve, so that neighbours in the volume are neighbours in the picture, in both
	// directions: it begins at the upper left and ends at the upper right.
	Hilbert Layout = "hilbert"
	// Rows goes line by line.
	Rows Layout = "rows"
)

// The picture's measures, in pixels.
const (
	mapSide = 768
	margin  = 28
	// side is the room at the left and the right of the map for offsets.
	side        = 96
	titleSize   = 20
	textSize    = 13
	lineHeight  = 20
	legendSpace = 64
	swatch      = 14
	// mostCells is the largest number of cells in a row and in a column, a power of two.
	mostCells = 128
	// leastCellBytes is the smallest part of a volume that gets a cell of its own.
	leastCellBytes = 4096
)

var (
	ink   = rgb{0x1f, 0x29, 0x37}
	faint = rgb{0x6b, 0x72, 0x80}
	paper = rgb{0xff, 0xff, 0xff}
	frame = rgb{0xc4, 0xcb, 0xd4}
)

// PictureCells returns how many cells a picture of a volume of capacity bytes has: a square of a power of four.
func PictureCells(capacity int64) int {
	n := mostCells
	for n > 8 && capacity/int64(n*n) < leastCellBytes {
		n /= 2
	}
	return n * n
}

// canvas is what a picture is drawn on. Coordinates are pixels from the upper left corner.
type canvas interface {
	rectangle(x, y, width, height int, fill rgb)
	// text writes s with its base line at y; anchor says which of its points is at x.
	text(x, y, size int, anchor anchor, bold bool, fill rgb, s string)
	// finish writes the picture.
	finish(w io.Writer) error
}

type anchor int

const (
	start anchor = iota
	end
)

// PNG writes cells, PictureCells of them, as a PNG.
func PNG(w io.Writer, c *Cells, caption Caption, layout Layout) error {
	width, height := measures(caption)
	p, err := newPixels(width, height)
	if err != nil {
		return err
	}
	paint(p, c, caption, layout)
	return p.finish(w)
}

// SVG writes the same picture as SVG.
func SVG(w io.Writer, c *Cells, caption Caption, layout Layout) error {
	width, height := measures(caption)
	v := newVector(width, height)
	paint(v, c, caption, layout)
	return v.finish(w)
}

func measures(caption Caption) (width, height int) {
	return mapSide + 2*(margin+side), mapTop(caption) + mapSide + legendSpace + margin
}

func mapTop(caption Caption) int {
	return margin + titleSize + lineHeight*(len(caption.Lines)+1) + margin/2
}

func paint(on canvas, c *Cells, caption Caption, layout Layout) {
	left, top := margin+side, mapTop(caption)
	width, height := measures(caption)
	on.rectangle(0, 0, width, height, paper)
	y := margin + titleSize
	on.text(left, y, titleSize, start, true, ink, caption.Title)
	for _, line := range append(caption.Lines[:len(caption.Lines):len(caption.Lines)], cellLine(c)+order(layout)) {
		y += lineHeight
		on.text(left, y, textSize, start, false, faint, line)
	}
	on.rectangle(left-1, top-1, mapSide+2, mapSide+2, frame)
	on.rectangle(left, top, mapSide, mapSide, classes[0].fill)
	n := 1
	for n*n < c.Len() {
		n *= 2
	}
	drawCells(on, c, layout, n, left, top)
	if layout == Hilbert {
		labelQuarters(on, c, left, top)
	} else {
		labelRows(on, c, n, left, top)
	}
	drawLegend(on, left, top+mapSide+legendSpace/2)
}

func order(layout Layout) string {
	if layout == Hilbert {
		return "; in the order of a Hilbert curve, from the upper left down, over, and up to the upper right"
	}
	return "; row by row"
}

// drawCells draws every cell of which something is listed, n in a row; neighbours of one class in a row are one rectangle.
func drawCells(on canvas, c *Cells, layout Layout, n, left, top int) {
	pixels := mapSide / n
	shares := make([]float64, n*n)
	for i := range c.Len() {
		x, y := i%n, i/n
		if layout == Hilbert {
			x, y = hilbert(n, i)
		}
		shares[y*n+x] = c.share(i)
	}
	for y := range n {
		for x := 0; x < n; {
			k := classOf(shares[y*n+x])
			from := x
			for x < n && classOf(shares[y*n+x]) == k {
				x++
			}
			if k != classes[0] {
				on.rectangle(left+from*pixels, top+y*pixels, (x-from)*pixels, pixels, k.fill)
			}
		}
	}
}

// hilbert returns the place of the cell i on the Hilbert curve through a square of n by n, n a power of two, that begins
// at the upper left and ends at the upper right.
func hilbert(n, i int) (x, y int) {
	for s := 1; s < n; s *= 2 {
		right := i / 2 & 1
		down := (i ^ right) & 1
		if down == 0 {
			if right == 1 {
				x, y = s-1-x, s-1-y
			}
			x, y = y, x
		}
		x, y = x+s*right, y+s*down
		i /= 4
	}
	return x, y
}

// labelQuarters writes beside each quarter of a Hilbert map which part of the volume it shows.
func labelQuarters(on canvas, c *Cells, left, top int) {
	half := mapSide / 2
	on.rectangle(left+half, top, 1, mapSide, frame)
	on.rectangle(left, top+half, mapSide, 1, frame)
	for i, q := range []struct {
		x, y int
		a    anchor
	}{{left - 10, top, end}, {left - 10, top + half, end}, {left + mapSide + 10, top + half, start}, {left + mapSide + 10, top, start}} {
		from, to := c.start(c.Len()/4*i), c.start(c.Len()/4*(i+1))
		on.text(q.x, q.y+half/2-4, textSize, q.a, false, ink, human.Bytes(from))
		on.text(q.x, q.y+half/2+14, textSize, q.a, false, ink, "to "+human.Bytes(to))
	}
}

// labelRows writes offsets at the left of a map that goes row by row.
func labelRows(on canvas, c *Cells, n, left, top int) {
	const labels = 8
	for i := range labels {
		row := n / labels * i
		y := top + row*(mapSide/n)
		on.rectangle(left-6, y, 5, 1, frame)
		on.text(left-10, y+textSize/2, textSize, end, false, ink, human.Bytes(c.start(min(row*n, c.Len()-1))))
	}
	on.text(left-10, top+mapSide, textSize, end, false, ink, human.Bytes(c.capacity))
}

func drawLegend(on canvas, left, y int) {
	on.text(left, y+swatch-2, textSize, start, false, faint, "listed of a cell:")
	const step, first = 92, 116
	for i, k := range classes {
		x := left + first + i*step
		on.rectangle(x-1, y-1, swatch+2, swatch+2, frame)
		on.rectangle(x, y, swatch, swatch, k.fill)
		on.text(x+swatch+6, y+swatch-2, textSize, start, false, ink, k.name)
	}
}

// hex returns the colour as SVG writes it.
func (c rgb) hex() string { return fmt.Sprintf("#%02x%02x%02x", c.r, c.g, c.b) }
