package report

import (
	"image/color"
	"io"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

var (
	blue = color.RGBA{R: 31, G: 97, B: 178, A: 255}
	dark = color.RGBA{R: 60, G: 60, B: 60, A: 255}
	grey = color.RGBA{R: 160, G: 160, B: 160, A: 255}
)

// Draw draws the first column of results as an SVG: a point for the median of each
// peer, and a line from the least to the most. The peer in question is blue, and
// floors are grey.
func Draw(w io.Writer, r *Results, peer string) error {
	first := r.Load.Columns[0]
	p := plot.New()
	p.Title.TextStyle.Font.Variant = "Sans"
	p.X.Label.TextStyle.Font.Variant, p.X.Tick.Label.Font.Variant, p.Y.Tick.Label.Font.Variant = "Sans", "Sans", "Sans"
	p.Title.Text = title(r)
	p.X.Label.Text = first.Title + ", more is better"
	if first.Less {
		p.X.Label.Text = first.Title + ", less is better"
	}
	p.Add(plotter.NewGrid())

	ranked := r.ranked()
	slices.Reverse(ranked) // from the bottom up
	for y, name := range ranked {
		if err := point(p, float64(y), r.figure(name, first.Figure), colorOf(name, peer)); err != nil {
			return err
		}
	}
	p.NominalY(ranked...)
	p.Y.Min, p.Y.Max = -0.5, float64(len(ranked))-0.5
	scale(p)

	canvas := vgsvg.New(16*vg.Centimeter, font.Length(2+0.7*float64(len(ranked)))*vg.Centimeter)
	const margin = 0.2 * vg.Centimeter // gonum/plot has none
	p.Draw(draw.Crop(draw.New(canvas), margin, -margin, 0, -margin))
	_, err := canvas.WriteTo(w)
	return err
}

func colorOf(name, peer string) color.Color {
	switch {
	case name == peer:
		return blue
	case strings.HasPrefix(name, "floor-"):
		return grey
	}
	return dark
}

func point(p *plot.Plot, y float64, s Spread, c color.Color) error {
	if len(s) == 0 {
		return nil
	}
	at := plotter.XYs{{X: s.Median(), Y: y}}
	dot, err := plotter.NewScatter(at)
	if err != nil {
		return err
	}
	dot.Color, dot.Shape, dot.Radius = c, draw.CircleGlyph{}, vg.Points(4)
	line, err := plotter.NewLine(plotter.XYs{{X: s[0], Y: y}, {X: s[len(s)-1], Y: y}})
	if err != nil {
		return err
	}
	line.Color, line.Width = c, vg.Points(1.5)
	p.Add(line, dot)
	return nil
}

// scale begins the axis at zero, or makes it logarithmic where some peers would
// be too close to zero to be told apart.
func scale(p *plot.Plot) {
	p.X.Max *= 1.02
	if p.X.Min <= 0 || p.X.Max < 20*p.X.Min {
		p.X.Min = min(0, p.X.Min)
		return
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
}
