// Package heatmap draws where in a volume the listed bytes are: as text for a terminal, and as a picture.
package heatmap

import (
	"iter"
	"math"
	"math/bits"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// Cells counts the listed bytes in equal parts of a volume.
type Cells struct {
	capacity int64
	listed   []int64
}

// Count walks over extents of a volume of capacity bytes and counts them in n cells, or as many as the volume has bytes.
func Count(extents iter.Seq2[[]blocklist.Extent, error], capacity int64, n int) (*Cells, error) {
	c := &Cells{capacity: capacity, listed: make([]int64, min(int64(max(n, 1)), capacity))}
	i := 0
	for batch, err := range extents {
		if err != nil {
			return nil, err
		}
		for _, e := range batch {
			i = c.add(e, i)
		}
	}
	return c, nil
}

// add counts e, which begins in cell i or later, and returns the cell in which it ends.
func (c *Cells) add(e blocklist.Extent, i int) int {
	if e.Offset >= c.start(i+1) {
		i = c.at(e.Offset)
	}
	for at := e.Offset; ; i++ {
		end := min(e.End(), c.start(i+1))
		c.listed[i] += end - at
		if at = end; at == e.End() {
			return i
		}
	}
}

// start returns the first byte of cell i: the least offset that is not below capacity*i/len.
func (c *Cells) start(i int) int64 {
	high, low := bits.Mul64(uint64(c.capacity), uint64(i))
	quotient, rest := bits.Div64(high, low, uint64(len(c.listed)))
	if rest > 0 {
		quotient++
	}
	return int64(quotient)
}

// at returns the cell that holds offset.
func (c *Cells) at(offset int64) int {
	high, low := bits.Mul64(uint64(offset), uint64(len(c.listed)))
	quotient, _ := bits.Div64(high, low, uint64(c.capacity))
	return int(quotient)
}

// Len returns the number of cells.
func (c *Cells) Len() int { return len(c.listed) }

// Bytes returns the length of a cell, rounded up.
func (c *Cells) Bytes() int64 { return c.start(1) }

// share returns how much of cell i is listed, from 0 to 1.
func (c *Cells) share(i int) float64 {
	return float64(c.listed[i]) / float64(c.start(i+1)-c.start(i))
}

// class is a range of shares that look the same.
type class struct {
	// over is what a share exceeds to be in the class, if it is not 0.
	over float64
	name string
	// mark stands for the class in a terminal without colours, code is its number among the terminal's 256 colours.
	mark rune
	code int
	fill rgb
}

type rgb struct{ r, g, b uint8 }

// classes are in ascending order; the first one holds nothing but 0.
var classes = []class{
	{math.Inf(-1), "nothing", '·', 240, rgb{0xe9, 0xed, 0xf2}},
	{0, "up to 1 %", '░', 229, rgb{0xff, 0xe0, 0x8a}},
	{0.01, "up to 10 %", '░', 220, rgb{0xfe, 0xb7, 0x4b}},
	{0.10, "up to 30 %", '▒', 214, rgb{0xfb, 0x8c, 0x30}},
	{0.30, "up to 60 %", '▓', 202, rgb{0xe8, 0x53, 0x27}},
	{0.60, "up to 99 %", '▓', 160, rgb{0xc0, 0x1f, 0x2e}},
	{0.99, "over 99 %", '█', 88, rgb{0x7a, 0x04, 0x30}},
}

// classOf returns the class of a share.
func classOf(share float64) class {
	i := len(classes) - 1
	for i > 0 && (share <= classes[i].over || share == 0) {
		i--
	}
	return classes[i]
}
