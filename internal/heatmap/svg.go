package heatmap

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
)

// vector is a canvas for SVG.
type vector struct{ buf bytes.Buffer }

func newVector(width, height int) *vector {
	v := &vector{}
	fmt.Fprintf(&v.buf, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" font-family="Go, Helvetica, Arial, sans-serif" shape-rendering="crispEdges">`+"\n", width, height)
	return v
}

func (v *vector) rectangle(x, y, width, height int, fill rgb) {
	fmt.Fprintf(&v.buf, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", x, y, width, height, fill.hex())
}

func (v *vector) text(x, y, size int, a anchor, bold bool, fill rgb, s string) {
	attributes := ""
	if a == end {
		attributes += ` text-anchor="end"`
	}
	if bold {
		attributes += ` font-weight="bold"`
	}
	fmt.Fprintf(&v.buf, `<text x="%d" y="%d" font-size="%d" fill="%s"%s>`, x, y, size, fill.hex(), attributes)
	// A bytes.Buffer takes everything.
	_ = xml.EscapeText(&v.buf, []byte(s))
	v.buf.WriteString("</text>\n")
}

func (v *vector) finish(w io.Writer) error {
	v.buf.WriteString("</svg>\n")
	_, err := v.buf.WriteTo(w)
	return err
}
