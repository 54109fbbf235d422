package evaluate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/eval"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Results are what a run writes to results.json.
type Results struct {
	Settings
	Metrics map[string]eval.Estimate `json:"metrics"`
	Seconds float64                  `json:"seconds"` // of this call; a run that went on was longer
}

// Run asks for the samples of docs 0 to n-1 that the journal lacks, at most streams at once, and summarises all of
// them. progress is called with the number of docs that are done.
func Run(
	ctx context.Context,
	s Settings,
	streams int,
	j *Journal,
	ask func(ctx context.Context, doc int) (Sample, error),
	progress func(done int),
) (Results, error) {
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, streams))
	for i := range s.Docs {
		if j.Has(i) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			sample, err := ask(ctx, i)
			if err != nil {
				return fmt.Errorf("evaluate doc %d: %w", i, err)
			}
			sample.Index = i
			if err := j.Add(sample); err != nil {
				return err
			}
			progress(j.Len())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return Results{}, err
	}
	if err := ctx.Err(); err != nil && j.Len() < s.Docs {
		return Results{}, err
	}
	return Results{
		Settings: s,
		Metrics:  eval.Summarise(j.Parts(s.Docs), s.Seed),
		Seconds:  time.Since(began).Seconds(),
	}, nil
}

// Write writes results.json into a folder.
func (r *Results) Write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return weights.WriteFile(filepath.Join(dir, ResultsFile), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}

// Print writes a table of the metrics.
func (r *Results) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TASK\tMODEL\tDOCS\tMETRIC\tVALUE\tSTDERR\t95 %")
	for _, name := range slices.Sorted(maps.Keys(r.Metrics)) {
		m := r.Metrics[name]
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.4f\t%.4f\t%.4f to %.4f\n", r.Task, r.Model, m.Docs, name, m.Value, m.StdErr,
			m.Low, m.High)
	}
	return w.Flush()
}

// Comparison compares two folders of results.
type Comparison struct {
	A           Settings                   `json:"a"`
	B           Settings                   `json:"b"`
	Differences map[string]eval.Difference `json:"differences"`
}

// Compare compares the results of two folders, which are of one task with the same data.
func Compare(a, b string, seed uint64) (*Comparison, error) {
	sa, pa, err := readSamples(a)
	if err != nil {
		return nil, err
	}
	sb, pb, err := readSamples(b)
	if err != nil {
		return nil, err
	}
	if sa.Task != sb.Task || sa.Data != sb.Data || sa.Docs != sb.Docs {
		return nil, fault.New(fault.FailedPrecondition,
			"compare %s with %s: they have results of different tasks, data or numbers of docs", a, b)
	}
	d, err := eval.Compare(pa, pb, seed)
	return &Comparison{sa, sb, d}, err
}

// readSamples reads the journal of a finished run.
func readSamples(dir string) (Settings, []eval.Parts, error) {
	var s Settings
	path := filepath.Join(dir, SamplesFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return s, nil, fault.Wrap(fault.NotFound, err, "read results")
	}
	var j Journal
	j.done = map[int]Sample{}
	header, rest, _ := cutLine(text)
	if err := json.Unmarshal(header, &s); err != nil {
		return s, nil, fault.Wrap(fault.DataLoss, err, "read %s", path)
	}
	if err := j.read(rest); err != nil {
		return s, nil, fault.Wrap(fault.DataLoss, err, "read %s", path)
	}
	for i := range s.Docs {
		if !j.Has(i) {
			return s, nil, fault.New(
				fault.FailedPrecondition,
				"read %s: it has %d of %d docs: let the run finish first",
				path,
				j.Len(),
				s.Docs,
			)
		}
	}
	return s, j.Parts(s.Docs), nil
}

// Print writes a table of the differences.
func (c *Comparison) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "METRIC\tA\tB\tB-A\tSTDERR\t95 %%\tP\tONLY A\tONLY B\tMCNEMAR P\n")
	for _, name := range slices.Sorted(maps.Keys(c.Differences)) {
		d := c.Differences[name]
		fmt.Fprintf(w, "%s\t%.4f\t%.4f\t%+.4f\t%.4f\t%+.4f to %+.4f\t%.4f\t", name, d.A, d.B, d.Delta, d.StdErr, d.Low,
			d.High, d.P)
		if d.McNemar > 0 {
			fmt.Fprintf(w, "%d\t%d\t%.4f\n", d.OnlyA, d.OnlyB, d.McNemar)
		} else {
			fmt.Fprint(w, "\t\t\n")
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "A is %s, B is %s: %s, %s\n", c.A.Model, c.B.Model, c.A.Task, plural.Of(c.A.Docs, "doc"))
	return err
}

// cutLine splits text after its first line.
func cutLine(text []byte) (line, rest []byte, ok bool) {
	for i, c := range text {
		if c == '\n' {
			return text[:i], text[i+1:], true
		}
	}
	return text, nil, false
}
