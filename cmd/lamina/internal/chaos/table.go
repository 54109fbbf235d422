package chaos

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/internal/plural"
)

// Print writes the table of promises.
func (r *Result) Print(out io.Writer) error {
	g := r.Load.All
	fmt.Fprintf(out, "\nload with faults: %s in %.1f s, %.0f tokens/s, %d ok, %d failed, %d refused\n",
		plural.Of(g.Requests, "request"),
		r.Load.ElapsedS, g.Goodput, g.OK, g.Failed, g.Refused)
	missed := ""
	if r.Missed > 0 {
		missed = fmt.Sprintf(", %d not injected before the load was over", r.Missed)
	}
	fmt.Fprintf(out, "%s%s\n\n", plural.Of(len(r.Faults), "fault"), missed)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(
		w,
		"promise\tfaults\tin flight\tended\tfailed\tidentical\tstalled\tp50 ms\tp99 ms\tmax ms\tdetected p50\tmax\t\t",
	)
	for _, v := range r.Verdicts {
		identical := "-"
		if v.Compared > 0 {
			identical = fmt.Sprintf("%.1f %%", 100*float64(v.Identical)/float64(v.Compared))
		}
		detect50, detectMax := "-", "-"
		if v.DetectMS.Count > 0 {
			detect50, detectMax = fmt.Sprintf("%.0f ms", v.DetectMS.P50), fmt.Sprintf("%.0f ms", v.DetectMS.Max)
		}
		held := "held"
		if !v.Pass {
			held = "BROKEN"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\t%d\t%.0f\t%.0f\t%.0f\t%s\t%s\t%s\t\n", v.Promise, v.Faults, v.Running,
			v.Streams,
			v.Failed+v.Refused, identical, v.Stalled, v.StallMS.P50, v.StallMS.P99, v.StallMS.Max, detect50, detectMax,
			held)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, v := range r.Verdicts {
		fmt.Fprintf(out, "%-4s %s\n", v.Promise, v.Title)
		for _, note := range v.Notes {
			fmt.Fprintf(out, "     %s\n", note)
		}
		for _, why := range v.Why {
			fmt.Fprintf(out, "     BROKEN: %s\n", why)
		}
	}
	for _, d := range r.Load.Differences {
		fmt.Fprintf(out, "request %d (prompt %d), choice %d, byte %d: got %q, want %q\n", d.Index, d.Line, d.Choice,
			d.Byte,
			d.Got, d.Want)
	}
	for _, crash := range r.Crashes {
		fmt.Fprintf(out, "crash: %s\n", crash)
	}
	if r.Logs != "" {
		fmt.Fprintf(out, "the logs of the members are in %s\n", r.Logs)
	}
	verdict := "all promises held"
	if !r.Pass {
		verdict = "NOT all promises held"
	}
	_, err := fmt.Fprintf(out, "\n%s\n", verdict)
	return err
}
