package report

import (
	"fmt"
	"image/color"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Chart is a section's plot: bars, or lines over the length of the list.
type Chart struct {
	// Axis says what is plotted, with its unit.
	Axis string `json:"axis"`
	Bars []Bar  `json:"bars,omitempty"`
	// Lines are plotted on two logarithmic axes.
	Lines []Line `json:"lines,omitempty"`
	// Along names the lines' horizontal axis.
	Along string `json:"along,omitempty"`
}

// Bar is one value.
type Bar struct {
	Label string  `json:"label"`
	Value float64 `json:"value"`
	// Ours gives it another colour than the peers' bars.
	Ours bool `json:"ours,omitempty"`
}

// Line is one series of points.
type Line struct {
	Label string       `json:"label"`
	At    [][2]float64 `json:"at"`
}

var (
	oursColour = color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}
	peerColour = color.RGBA{R: 0xb0, G: 0xb0, B: 0xb0, A: 0xff}
	palette    = []color.Color{oursColour, color.RGBA{R: 0xd6, G: 0x5f, B: 0x0e, A: 0xff}, color.RGBA{R: 0x2c, G: 0xa0, B: 0x2c, A: 0xff}}
)

// draw writes the chart as an SVG file.
func (c Chart) draw(path string) error {
	p := plot.New()
	p.BackgroundColor = color.White
	width, height := 8*vg.Inch, 4*vg.Inch
	var err error
	if len(c.Lines) > 0 {
		err = c.addLines(p)
	} else {
		height = vg.Length(len(c.Bars))*0.28*vg.Inch + 0.8*vg.Inch
		err = c.addBars(p)
	}
	if err != nil {
		return fmt.Errorf("plot %s: %w", path, err)
	}
	if err := p.Save(width, height, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// addBars draws horizontal bars, the first on top, each with its value at its end.
func (c Chart) addBars(p *plot.Plot) error {
	bars := slices.Clone(c.Bars)
	slices.Reverse(bars)
	names := make([]string, len(bars))
	var values plotter.XYs
	var texts []string
	most := 0.0
	for i, b := range bars {
		names[i] = " " + b.Label
		values = append(values, plotter.XY{X: b.Value, Y: float64(i)})
		texts = append(texts, " "+strconv.FormatFloat(b.Value, 'g', 3, 64))
		most = max(most, b.Value)
		bar, err := plotter.NewBarChart(plotter.Values{b.Value}, 0.16*vg.Inch)
		if err != nil {
			return err
		}
		bar.Horizontal, bar.XMin, bar.LineStyle.Width = true, float64(i), 0
		if bar.Color = peerColour; b.Ours {
			bar.Color = oursColour
		}
		p.Add(bar)
	}
	labels, err := plotter.NewLabels(plotter.XYLabels{XYs: values, Labels: texts})
	if err != nil {
		return err
	}
	for i := range labels.TextStyle {
		labels.TextStyle[i].YAlign = -0.5
	}
	p.Add(labels)
	p.NominalY(names...)
	p.X.Label.Text = c.Axis
	p.Y.Min, p.Y.Max = -0.6, float64(len(bars))-0.4
	// Room for the longest bar's value.
	p.X.Min, p.X.Max = 0, most*1.1
	return nil
}

func (c Chart) addLines(p *plot.Plot) error {
	p.X.Label.Text, p.Y.Label.Text = c.Along, c.Axis
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for i, l := range c.Lines {
		var at plotter.XYs
		for _, xy := range l.At {
			at = append(at, plotter.XY{X: xy[0], Y: xy[1]})
		}
		line, points, err := plotter.NewLinePoints(at)
		if err != nil {
			return err
		}
		line.Color, points.Color = palette[i%len(palette)], palette[i%len(palette)]
		p.Add(line, points)
		p.Legend.Add(l.Label, line, points)
	}
	return nil
}
