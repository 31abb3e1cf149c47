package heatmap

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// pixels is a canvas for PNG.
type pixels struct {
	image         *image.RGBA
	regular, bold *opentype.Font
}

func newPixels(width, height int) (*pixels, error) {
	p := &pixels{image: image.NewRGBA(image.Rect(0, 0, width, height))}
	var err error
	if p.regular, err = opentype.Parse(goregular.TTF); err != nil {
		return nil, fmt.Errorf("load font: %w", err)
	}
	if p.bold, err = opentype.Parse(gobold.TTF); err != nil {
		return nil, fmt.Errorf("load font: %w", err)
	}
	return p, nil
}

func (c rgb) uniform() image.Image { return image.NewUniform(color.RGBA{c.r, c.g, c.b, 0xff}) }

func (p *pixels) rectangle(x, y, width, height int, fill rgb) {
	draw.Draw(p.image, image.Rect(x, y, x+width, y+height), fill.uniform(), image.Point{}, draw.Src)
}

func (p *pixels) text(x, y, size int, a anchor, bold bool, fill rgb, s string) {
	f := p.regular
	if bold {
		f = p.bold
	}
	// It fails only for sizes that are none.
	face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: float64(size), DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return
	}
	d := font.Drawer{Dst: p.image, Src: fill.uniform(), Face: face, Dot: fixed.P(x, y)}
	if a == end {
		d.Dot.X -= d.MeasureString(s)
	}
	d.DrawString(s)
}

func (p *pixels) finish(w io.Writer) error { return png.Encode(w, p.image) }
