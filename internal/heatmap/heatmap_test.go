package heatmap

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"image"
	"image/color"
	"image/png"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

var (
	update   = flag.Bool("update", false, "write the golden files in testdata; look at the pictures")
	seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 chooses one")
)

func batches(extents ...blocklist.Extent) iter.Seq2[[]blocklist.Extent, error] {
	return func(yield func([]blocklist.Extent, error) bool) {
		for i := range extents {
			if !yield(extents[i:i+1], nil) {
				return
			}
		}
	}
}

// TestCount compares cells with a count byte by byte.
func TestCount(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		capacity := 1 + rng.Int64N(300)
		n := 1 + rng.IntN(50)
		var extents []blocklist.Extent
		listed := make([]bool, capacity)
		for at := rng.Int64N(10); at < capacity; at += rng.Int64N(20) {
			e := blocklist.Extent{Offset: at, Length: 1 + rng.Int64N(min(60, capacity-at))}
			extents = append(extents, e)
			for at < e.End() {
				listed[at] = true
				at++
			}
		}
		c, err := Count(batches(extents...), capacity, n)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]int64, c.Len())
		for at, is := range listed {
			i := c.at(int64(at))
			if int64(at) < c.start(i) || int64(at) >= c.start(i+1) {
				t.Fatalf("seed %d: byte %d is in cell %d, which goes from %d to %d", seed, at, i, c.start(i), c.start(i+1))
			}
			if is {
				want[i]++
			}
		}
		if diff := cmp.Diff(want, c.listed); diff != "" || int64(c.Len()) != min(int64(n), capacity) {
			t.Fatalf("seed %d: %v of %d bytes in %d cells: %s", seed, extents, capacity, n, diff)
		}
	}
}

// TestHugeVolume counts on the largest volume there is.
func TestHugeVolume(t *testing.T) {
	c, err := Count(batches(blocklist.Extent{Offset: 0, Length: math.MaxInt64}), math.MaxInt64, 16384)
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.Len() {
		if c.share(i) != 1 {
			t.Fatalf("cell %d: %v", i, c.share(i))
		}
	}
	broken := errors.New("broken")
	if _, err := Count(func(yield func([]blocklist.Extent, error) bool) { yield(nil, broken) }, 100, 3); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func TestClasses(t *testing.T) {
	for share, want := range map[float64]string{
		0: "nothing", 1e-12: "up to 1 %", 0.01: "up to 1 %", 0.0101: "up to 10 %", 0.3: "up to 30 %", 0.6: "up to 60 %", 0.99: "up to 99 %", 0.991: "over 99 %", 1: "over 99 %",
	} {
		if got := classOf(share).name; got != want {
			t.Errorf("%v: %s, want %s", share, got, want)
		}
	}
}

// TestHilbert: the curve visits every place once, each beside the one before, from the upper left to the upper right.
func TestHilbert(t *testing.T) {
	for n := 1; n <= mostCells; n *= 2 {
		seen := map[image.Point]bool{}
		last := image.Point{}
		for i := range n * n {
			x, y := hilbert(n, i)
			p := image.Pt(x, y)
			if d := p.Sub(last); i > 0 && d.X*d.X+d.Y*d.Y != 1 || !p.In(image.Rect(0, 0, n, n)) || seen[p] {
				t.Fatalf("%d of %d: from %v to %v", i, n, last, p)
			}
			seen[p], last = true, p
		}
		if first, _ := hilbert(n, 0); first != 0 || last != image.Pt(n-1, 0) {
			t.Errorf("%d: from %d to %v", n, first, last)
		}
	}
	// The quarters lie as they are labelled: upper left, lower left, lower right, upper right.
	for i, want := range []image.Point{{0, 0}, {0, 1}, {1, 1}, {1, 0}} {
		if x, y := hilbert(mostCells, mostCells*mostCells/4*i+5); image.Pt(x/(mostCells/2), y/(mostCells/2)) != want {
			t.Errorf("quarter %d: %d, %d", i, x, y)
		}
	}
}

func sample(t *testing.T, cells int) (*Cells, Caption) {
	t.Helper()
	const mib = 1 << 20
	c, err := Count(batches(
		blocklist.Extent{Offset: 0, Length: 100 * mib}, blocklist.Extent{Offset: 300 * mib, Length: 4096}, blocklist.Extent{Offset: 511 * mib, Length: 80 * mib},
		blocklist.Extent{Offset: 700 * mib, Length: mib / 2}, blocklist.Extent{Offset: 702 * mib, Length: mib / 4}, blocklist.Extent{Offset: 1023 * mib, Length: mib},
	), 1024*mib, cells)
	if err != nil {
		t.Fatal(err)
	}
	return c, Caption{Title: "Blocks changed from <monday> to shop/tuesday", Lines: []string{"182 MiB in 6 extents: 17.75 % of a volume of 1.0 GiB"}}
}

// golden compares got with a file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestText(t *testing.T) {
	for name, colour := range map[string]bool{"terminal.txt": false, "terminal-colour.txt": true} {
		columns := Columns(60)
		c, caption := sample(t, columns*5)
		var b bytes.Buffer
		if err := Text(&b, c, caption, columns, colour); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
		for _, line := range strings.Split(b.String(), "\n") {
			if n := len([]rune(line)); !colour && n > 60 {
				t.Errorf("%q has %d columns", line, n)
			}
		}
		if strings.Contains(b.String(), "\x1b") != colour {
			t.Errorf("%s: colours", name)
		}
	}
}

// TestPNG finds the cells of a picture in the colours of their classes.
func TestPNG(t *testing.T) {
	for _, layout := range []Layout{Hilbert, Rows} {
		c, caption := sample(t, PictureCells(1<<30))
		var b bytes.Buffer
		if err := PNG(&b, c, caption, layout); err != nil {
			t.Fatal(err)
		}
		picture, err := png.Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		n := 128
		for i := range c.Len() {
			x, y := i%n, i/n
			if layout == Hilbert {
				x, y = hilbert(n, i)
			}
			if layout == Hilbert && (x == n/2 || y == n/2) {
				continue // the lines between the quarters
			}
			at := image.Pt(margin+side+x*mapSide/n+3, mapTop(caption)+y*mapSide/n+3)
			fill := classOf(c.share(i)).fill
			if got := color.RGBAModel.Convert(picture.At(at.X, at.Y)); got != (color.RGBA{fill.r, fill.g, fill.b, 0xff}) {
				t.Fatalf("%s: cell %d at %v has the colour %v, want %v", layout, i, at, got, fill)
			}
		}
	}
}

// TestSVG: well-formed, with the text in it.
func TestSVG(t *testing.T) {
	c, caption := sample(t, PictureCells(1<<30))
	var b bytes.Buffer
	if err := SVG(&b, c, caption, Hilbert); err != nil {
		t.Fatal(err)
	}
	var picture struct {
		Texts      []string   `xml:"text"`
		Rectangles []struct{} `xml:"rect"`
	}
	if err := xml.Unmarshal(b.Bytes(), &picture); err != nil {
		t.Fatal(err)
	}
	if picture.Texts[0] != caption.Title || picture.Texts[1] != caption.Lines[0] || len(picture.Rectangles) < 20 {
		t.Errorf("%d rectangles, %q", len(picture.Rectangles), picture.Texts)
	}
}

func TestPictureCells(t *testing.T) {
	for capacity, want := range map[int64]int{1: 64, 10 << 20: 32 * 32, 64 << 20: 128 * 128, math.MaxInt64: 128 * 128} {
		if got := PictureCells(capacity); got != want {
			t.Errorf("%d: %d, want %d", capacity, got, want)
		}
	}
	// A volume with fewer bytes than cells is drawn, too.
	c, err := Count(batches(blocklist.Extent{Offset: 0, Length: 1}), 1, PictureCells(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, layout := range []Layout{Hilbert, Rows} {
		if err := PNG(io.Discard, c, Caption{Title: "tiny"}, layout); err != nil {
			t.Error(err)
		}
	}
}
