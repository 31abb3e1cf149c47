package heatmap

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/cbt-populator/cbt-populator/internal/human"
)

// labelWidth is the width of the offsets at the left of a terminal's map, with the space behind them.
const labelWidth = 10

// Columns returns how many cells fit side by side into width columns of a terminal.
func Columns(width int) int { return max(width-labelWidth, 1) }

// Text writes the cells row by row for a terminal, columns in a row, each row behind the offset at which it begins.
func Text(w io.Writer, c *Cells, caption Caption, columns int, colour bool) error {
	b := bufio.NewWriter(w) // which keeps its first error
	_, _ = fmt.Fprintf(b, "%s\n%s\n\n", caption.Title, strings.Join(append(caption.Lines, cellLine(c)), "\n"))
	for row := 0; row < c.Len(); row += columns {
		_, _ = fmt.Fprintf(b, "%*s ", labelWidth-1, human.Bytes(c.start(row)))
		painter := painter{w: b, colour: colour}
		for i := row; i < min(row+columns, c.Len()); i++ {
			painter.cell(classOf(c.share(i)))
		}
		painter.end()
		_ = b.WriteByte('\n')
	}
	_ = b.WriteByte('\n')
	writeLegend(b, columns+labelWidth, colour)
	return b.Flush()
}

func cellLine(c *Cells) string {
	return fmt.Sprintf("a cell is %s", human.Bytes(c.Bytes()))
}

// writeLegend shows the classes that look different, in lines of at most width columns where they fit.
func writeLegend(w *bufio.Writer, width int, colour bool) {
	at := 0
	for i, k := range classes {
		if !colour && i+1 < len(classes) && classes[i+1].mark == k.mark {
			continue // the next one says the upper bound of both
		}
		text := " " + k.name
		switch need := 1 + len(text); {
		case at == 0:
			at = need
		case at+2+need > width:
			_ = w.WriteByte('\n')
			at = need
		default:
			_, _ = w.WriteString("  ")
			at += 2 + need
		}
		p := painter{w: w, colour: colour}
		p.cell(k)
		p.end()
		_, _ = w.WriteString(text)
	}
	_ = w.WriteByte('\n')
}

// painter writes cells and changes the colour only where it has to.
type painter struct {
	w      *bufio.Writer
	colour bool
	code   int
}

func (p *painter) cell(k class) {
	mark := k.mark
	if p.colour {
		if k.code != p.code {
			_, _ = fmt.Fprintf(p.w, "\x1b[38;5;%dm", k.code)
			p.code = k.code
		}
		if k.mark != classes[0].mark {
			mark = '█'
		}
	}
	_, _ = p.w.WriteRune(mark)
}

func (p *painter) end() {
	if p.code != 0 {
		_, _ = p.w.WriteString("\x1b[0m")
	}
}
