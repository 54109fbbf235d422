package main

import (
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// Sizes of the chart in pixels.
const (
	chartLeft   = 72   // names of the stages
	chartRight  = 150  // figures of the stages
	chartTop    = 72   // title and legend
	chartBottom = 44   // time axis
	chartRow    = 30   // height of a stage
	chartWidest = 4000 // of the timeline
	chartNarrow = 480
	chartAction = 26 // preferred width of the shortest action
	chartLabel  = 6  // width of a digit
)

// chartColor returns the fill of an action. The colours of the passes have enough contrast to black
// text, and differ in lightness for readers who do not tell the hues apart. Later spans are mixed
// with white.
func chartColor(a schedule.Action, spans int) string {
	var rgb [3]float64
	switch a.Kind {
	case schedule.Forward:
		rgb = [3]float64{125, 175, 240}
	case schedule.Backward:
		rgb = [3]float64{110, 190, 130}
	case schedule.BackwardInput:
		rgb = [3]float64{80, 185, 175}
	case schedule.BackwardWeight:
		rgb = [3]float64{245, 195, 95}
	}
	white := 0.0
	if spans > 1 {
		white = 0.6 * float64(a.Span) / float64(spans-1)
	}
	out := "#"
	for _, v := range rgb {
		out += fmt.Sprintf("%02x", int(v+white*(255-v)))
	}
	return out
}

// scheduleSVG draws a timeline with one row for each stage.
func scheduleSVG(out io.Writer, c schedule.Config, r schedule.Result) error {
	shortest := r.Makespan
	for _, list := range r.Timeline {
		for _, a := range list {
			shortest = min(shortest, a.End-a.Start)
		}
	}
	wide := min(chartWidest, max(chartNarrow, chartAction*r.Makespan/shortest))
	scale := wide / r.Makespan
	height := chartTop + chartRow*c.Stages + chartBottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" viewBox="0 0 %[1]f %[2]d" `+
		`font-family="sans-serif" font-size="12">`+"\n", wide+chartLeft+chartRight, height)
	title := fmt.Sprintf("%s: %d stages, %d micro-batches", c.Name, c.Stages, c.Micro)
	if c.Spans > 1 {
		title += fmt.Sprintf(", %d spans a stage", c.Spans)
	}
	title += fmt.Sprintf("; bubble %.2f %%", 100*r.Bubble)
	fmt.Fprintf(&b, "<title>%s</title>\n"+`<rect width="100%%" height="100%%" fill="white"/>`+"\n", title)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="16" font-weight="bold">%s</text>`+"\n", 12, title)
	chartLegend(&b, c, r)
	for stage, list := range r.Timeline {
		y := chartTop + chartRow*stage
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">stage %d</text>`+"\n", chartLeft-8, y+19, stage)
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.2f" height="%d" fill="#f0f0f0"/>`+"\n", chartLeft, y+2, wide,
			chartRow-4)
		for _, a := range list {
			x, w := chartLeft+scale*a.Start, scale*(a.End-a.Start)
			fmt.Fprintf(&b, `<g><title>%s of stage %d, %.6g to %.6g</title><rect x="%.2f" y="%d" width="%.2f" `+
				`height="%d" fill="%s" stroke="white" stroke-width="0.8"/>`, a.Action, stage, a.Start, a.End, x, y+2, w,
				chartRow-4, chartColor(a.Action, c.Spans))
			if label := fmt.Sprint(a.Micro); w > float64(chartLabel*len(label)+3) {
				fmt.Fprintf(
					&b,
					`<text x="%.2f" y="%d" text-anchor="middle" font-size="11">%s</text>`,
					x+w/2,
					y+19,
					label,
				)
			}
			b.WriteString("</g>\n")
		}
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" fill="#444">idle %.1f %%, peak %.3g</text>`+"\n", chartLeft+wide+8, y+19,
			100*r.Idle[stage], r.Peak[stage])
	}
	chartAxis(&b, r.Makespan, scale, chartTop+chartRow*c.Stages)
	b.WriteString("</svg>\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// chartLegend names the colours of the passes that occur.
func chartLegend(b *strings.Builder, c schedule.Config, r schedule.Result) {
	seen := map[schedule.Kind]bool{}
	for _, list := range r.Timeline {
		for _, a := range list {
			seen[a.Kind] = true
		}
	}
	x := 12
	for _, k := range []schedule.Kind{schedule.Forward, schedule.Backward, schedule.BackwardInput,
		schedule.BackwardWeight} {
		if !seen[k] {
			continue
		}
		fmt.Fprintf(b, `<rect x="%d" y="40" width="14" height="14" fill="%s"/><text x="%d" y="52">%s</text>`+"\n", x,
			chartColor(schedule.Action{Kind: k}, 1), x+20, k)
		x += 32 + 7*len(k.String())
	}
	note := "grey: idle"
	if c.Spans > 1 {
		note += "; lighter: later span"
	}
	fmt.Fprintf(b, `<text x="%d" y="52" fill="#444">%s</text>`+"\n", x+4, note)
}

// chartAxis draws a time axis with round numbers.
func chartAxis(b *strings.Builder, makespan, scale float64, y int) {
	step := math.Pow(10, math.Floor(math.Log10(makespan)))
	for _, part := range []float64{1, 2, 2.5, 2} { // 1, 1/2, 1/5 and 1/10 of a power of ten
		if makespan/step*part > 12 || scale*step/part < 40 {
			break
		}
		step /= part
	}
	for i := 0; float64(i)*step <= makespan*(1+1e-9); i++ {
		x := chartLeft + scale*step*float64(i)
		fmt.Fprintf(
			b,
			`<path d="M%.2f %dv5" stroke="#444"/><text x="%.2f" y="%d" text-anchor="middle" fill="#444">%.6g`+
				"</text>\n",
			x,
			y+2,
			x,
			y+20,
			step*float64(i),
		)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" fill="#444">time</text>`+"\n", 12, y+20)
}
