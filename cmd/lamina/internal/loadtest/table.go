package loadtest

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/internal/plural"
)

// Print writes the report as text.
func (r *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	load := "closed loop of " + plural.Of(r.Streams, "stream")
	if r.Loop == "open" {
		load = fmt.Sprintf("open loop, %g requests/s, at most %d in flight", r.Rate, r.Streams)
	}
	stopped := ""
	if r.Interrupted {
		stopped = ", stopped before its end"
	}
	fmt.Fprintf(w, "server\t%s, model %s\n", strings.Join(r.URLs, ", "), r.Model)
	fmt.Fprintf(w, "load\t%s, %s, seed %d, %.1f s%s\n", load, plural.Of(r.Prompts, "prompt"), r.Seed, r.ElapsedS,
		stopped)
	g := r.All
	fmt.Fprintf(w, "requests\t%d: %d ok, %d failed, %d refused", g.Requests, g.OK, g.Failed, g.Refused)
	if g.Interrupted > 0 {
		fmt.Fprintf(w, ", %d interrupted", g.Interrupted)
	}
	if g.Resumed > 0 {
		fmt.Fprintf(w, ", %d resumed", g.Resumed)
	}
	fmt.Fprintf(w, "\ngoodput\t%.1f tokens/s, %.2f requests/s (%d tokens in all)\n", g.Goodput, g.RequestsPerSec,
		g.Tokens)
	fmt.Fprintf(w, "stalls\t%s above %.0f ms in %s, longest %.0f ms\n", plural.Of(g.Stalls.Count, "gap"),
		g.Stalls.LimitMS, plural.Of(g.Stalls.Streams, "stream"), g.Stalls.LongestMS)
	identity := "no request was repeated or expected"
	if n := g.Identity.Compared; n > 0 {
		identity = fmt.Sprintf("%.2f %% (%d of %d answers)", 100*g.Identity.Share, g.Identity.Identical, n)
	}
	if g.Identity.Diverged > 0 {
		identity += fmt.Sprintf("; %d failed streams had begun with another text", g.Identity.Diverged)
	}
	fmt.Fprintf(w, "identical\t%s\n", identity)
	if r.Loop == "open" {
		fmt.Fprintf(w, "sent late\tp99 %.1f ms, max %.1f ms\n", r.Late.P99, r.Late.Max)
	}
	if g.Refused > 0 {
		var parts []string
		for _, status := range slices.Sorted(maps.Keys(g.Refusals.Status)) {
			parts = append(parts, fmt.Sprintf("%d x %s", g.Refusals.Status[status], status))
		}
		fmt.Fprintf(w, "refusals\t%s; %d with Retry-After (at most %g s); answered in p50 %.1f ms, p99 %.1f ms\n",
			strings.Join(parts, ", "), g.Refusals.WithRetryAfter, g.Refusals.RetryAfterMax, g.Refusals.Answer.P50,
			g.Refusals.Answer.P99)
	}
	if err := w.Flush(); err != nil {
		return err
	}

	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nms\tp50\tp90\tp99\tmax\tmean\tcount\t")
	row(w, "first token", g.TTFT)
	row(w, "inter-token", g.InterToken)
	row(w, "whole stream", g.Latency)
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Tenants) > 0 {
		w = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(
			w,
			"\ntenant\trequests\tok\tfailed\trefused\ttokens/s\tfirst p50\tp99\tinter p50\tp99\tstalls\tidentical\t",
		)
		for _, name := range slices.Sorted(maps.Keys(r.Tenants)) {
			t := r.Tenants[name]
			fmt.Fprintf(
				w,
				"%s\t%d\t%d\t%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%.2f %%\t\n",
				name,
				t.Requests,
				t.OK,
				t.Failed,
				t.Refused,
				t.Goodput,
				t.TTFT.P50,
				t.TTFT.P99,
				t.InterToken.P50,
				t.InterToken.P99,
				t.Stalls.Count,
				100*t.Identity.Share,
			)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(g.Errors) > 0 {
		fmt.Fprintln(out, "\nerrors")
	}
	for _, e := range g.Errors {
		status := ""
		if e.Status != 0 {
			status = fmt.Sprintf(" (status %d)", e.Status)
		}
		fmt.Fprintf(out, "  %d x %s%s: %s\n", e.Count, e.Class, status, e.Message)
	}
	if len(r.Differences) > 0 {
		fmt.Fprintln(out, "\ndifferent answers to the same request")
	}
	for _, d := range r.Differences {
		if _, err := fmt.Fprintf(out, "  prompt of line %d, request %d, choice %d, byte %d: got %q, want %q\n", d.Line,
			d.Index, d.Choice, d.Byte, d.Got, d.Want); err != nil {
			return err
		}
	}
	return nil
}

func row(w io.Writer, name string, q Quantiles) {
	fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t\n", name, q.P50, q.P90, q.P99, q.Max, q.Mean, q.Count)
}
