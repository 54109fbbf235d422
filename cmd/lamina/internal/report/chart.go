package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// Sizes of a chart, in pixels.
const (
	chartWidth  = 560
	chartHeight = 260
	chartLeft   = 62
	chartRight  = 12
	chartTop    = 10
	chartBottom = 30
	chartPoints = 500 // of a curve; more are averaged
)

// curve is a line of a chart.
type curve struct {
	name   string
	color  string
	dashed bool
	x, y   []float64
}

// colors are those of Okabe and Ito, which people tell apart with any kind of colour vision.
func colors() []string {
	return []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}
}

// chart is a diagram over steps.
type chart struct {
	Title string
	SVG   template.HTML // made of numbers and escaped text only
}

// draws lists the charts: their titles, and the fields of their curves. The second field is dashed.
func draws() []struct {
	title  string
	fields []string
	scale  float64
} {
	return []struct {
		title  string
		fields []string
		scale  float64
	}{
		{"Loss, nats a token (dashed: validation)", []string{"loss", "validation_loss"}, 1},
		{"Bits a byte (dashed: validation)", []string{"bits_per_byte", "validation_bits_per_byte"}, 1},
		{"Gradient norm before clipping", []string{"gradient_norm"}, 1},
		{"Learning rate", []string{"learning_rate"}, 1},
		{"Tokens a second", []string{"tokens_per_second"}, 1},
		{"Step, ms", []string{"step_ms"}, 1},
		{"Bubble, % (dashed: simulated)", []string{"bubble", "simulated_bubble"}, 100},
		{"Bytes of gradients a step, KiB", []string{"gradient_bytes"}, 1.0 / 1024},
		{"Error of the wire type, relative", []string{"gradient_error"}, 1},
	}
}

// charts draws the fields that some run has.
func charts(runs []*Run) []chart {
	var out []chart
	for _, d := range draws() {
		var list []curve
		for i, r := range runs {
			for f, field := range d.fields {
				c := curve{name: r.Name, color: colors()[i%len(colors())], dashed: f > 0}
				for _, s := range r.Steps {
					// A validation loss of 0 means that the step has none.
					if v, ok := s[field]; ok && (v != 0 || f == 0) && !math.IsInf(v, 0) && !math.IsNaN(v) {
						c.x, c.y = append(c.x, s["step"]), append(c.y, v*d.scale)
					}
				}
				if len(c.x) > 0 {
					list = append(list, c.thin())
				}
			}
		}
		if len(list) > 0 {
			out = append(out, chart{d.title, draw(d.title, list)})
		}
	}
	return out
}

// thin averages neighbouring points of a curve with too many of them.
func (c curve) thin() curve {
	if len(c.x) <= chartPoints {
		return c
	}
	out := c
	out.x, out.y = nil, nil
	for i := range chartPoints {
		lo, hi := i*len(c.x)/chartPoints, (i+1)*len(c.x)/chartPoints
		var x, y float64
		for at := lo; at < hi; at++ {
			x, y = x+c.x[at], y+c.y[at]
		}
		out.x, out.y = append(out.x, x/float64(hi-lo)), append(out.y, y/float64(hi-lo))
	}
	return out
}

// draw draws curves.
func draw(title string, curves []curve) template.HTML {
	minX, maxX, minY, maxY := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, c := range curves {
		for i := range c.x {
			minX, maxX, minY, maxY = min(minX, c.x[i]), max(maxX, c.x[i]), min(minY, c.y[i]), max(maxY, c.y[i])
		}
	}
	if maxX == minX {
		maxX++
	}
	if maxY-minY < 1e-12*math.Abs(maxY)+1e-300 {
		pad := max(math.Abs(maxY)*0.1, 1e-3)
		minY, maxY = minY-pad, maxY+pad
	}
	px := func(x float64) float64 { return chartLeft + (x-minX)/(maxX-minX)*(chartWidth-chartLeft-chartRight) }
	py := func(y float64) float64 {
		return chartTop + (maxY-y)/(maxY-minY)*(chartHeight-chartTop-chartBottom)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, chartHeight,
		template.HTMLEscapeString(title))
	for _, y := range ticks(minY, maxY) {
		fmt.Fprintf(&b, `<path class="grid" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`, chartLeft,
			py(y), chartWidth-chartRight, chartLeft-5, py(y)+4, number(y))
	}
	for _, x := range ticks(minX, maxX) {
		fmt.Fprintf(&b, `<path class="grid" d="M%.1f %dV%d"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`, px(x),
			chartTop, chartHeight-chartBottom, px(x), chartHeight-chartBottom+16, number(x))
	}
	for _, c := range curves {
		dash, end := "", len(c.x)-1
		if c.dashed {
			dash = ` stroke-dasharray="5 3"`
		}
		fmt.Fprintf(&b, `<g><title>%s: %.6g at step %.0f</title><polyline fill="none" stroke="%s" stroke-width="1.5"%s points="`,
			template.HTMLEscapeString(c.name), c.y[end], c.x[end], c.color, dash)
		for i := range c.x {
			fmt.Fprintf(&b, "%.1f,%.1f ", px(c.x[i]), py(c.y[i]))
		}
		b.WriteString(`"/>`)
		if len(c.x) < 40 { // a line between few points shows where they are
			for i := range c.x {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="2" fill="%s"/>`, px(c.x[i]), py(c.y[i]), c.color)
			}
		}
		b.WriteString("</g>")
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // numbers and escaped text
}

// ticks returns round numbers between two values.
func ticks(lo, hi float64) []float64 {
	step := math.Pow(10, math.Floor(math.Log10((hi-lo)/4)))
	for _, f := range []float64{1, 2, 5, 10} {
		if (hi-lo)/(step*f) <= 6 {
			step *= f
			break
		}
	}
	var out []float64
	for i := math.Ceil(lo / step); i*step <= hi+step*1e-9 && len(out) < 12; i++ {
		out = append(out, i*step)
	}
	return out
}

// number writes a number of an axis.
func number(v float64) string {
	if a := math.Abs(v); a >= 1e6 || a < 1e-3 && a > 1e-12 {
		return fmt.Sprintf("%.2g", v)
	}
	if math.Abs(v) <= 1e-12 {
		return "0"
	}
	return fmt.Sprintf("%.5g", v)
}
