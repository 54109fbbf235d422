package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/export"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// quantFlags are the flags of commands that write quantised models.
type quantFlags struct {
	Pure       bool   `help:"Give every matrix the same type. By default the output matrix and, in the K types, some others get more bits."`
	Imatrix    string `help:"Importance matrix: a GGUF file of llama.cpp's llama-imatrix."                                                  placeholder:"FILE"`
	Perplexity string `help:"Also measure the perplexity of the source and of the result on a text."                                        placeholder:"FILE"`
	Ctx        int    `help:"With --perplexity: number of ids in a window."                                                                                    default:"512"`
	Chunks     int    `help:"With --perplexity: maximum number of windows; 0 means all."                                                                       default:"0"`
	Threads    int    `help:"Number of threads; 0 means one for each processor."                                                                               default:"0"`
	Quiet      bool   `help:"Do not show the progress."                                                                                                                       short:"q"`
	Format     string `help:"Output: text or json."                                                                                                            default:"text"           enum:"text,json"`
}

type quantizeCmd struct {
	quantFlags
	In   string `arg:"" help:"GGUF file or Hugging Face folder."`
	Out  string `arg:"" help:"GGUF file to write."`
	Type string `arg:"" help:"F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K_S, Q4_K_M (or Q4_K), Q5_K_S, Q5_K_M (or Q5_K) or Q6_K."`
}

// Run writes the model as a GGUF file of another type.
func (c *quantizeCmd) Run(e *verb.Env) error {
	w := exporter{quantFlags: c.quantFlags, in: c.In, out: c.Out, kind: c.Type}
	return w.gguf(e)
}

// exported is what --format json prints.
type exported struct {
	In               string         `json:"in"`
	Out              string         `json:"out"`
	Type             string         `json:"type"`
	Bytes            int64          `json:"bytes"` // of the files that were written
	Seconds          float64        `json:"seconds"`
	Kinds            []exportedKind `json:"kinds,omitempty"` // error by kind of tensor; GGUF only
	Total            *exportedKind  `json:"total,omitempty"`
	PerplexityBefore *float64       `json:"perplexity_before,omitempty"`
	PerplexityAfter  *float64       `json:"perplexity_after,omitempty"`
}

type exportedKind struct {
	Kind       string         `json:"kind"`
	Tensors    int            `json:"tensors"`
	Parameters int64          `json:"parameters"`
	Bytes      int64          `json:"bytes"`
	Types      map[string]int `json:"types"`
	RMSE       float64        `json:"rmse"`
	Relative   float64        `json:"relative_error"`
	Largest    float64        `json:"largest_error"`
}

func exportedStat(s export.Stat) exportedKind {
	return exportedKind{Kind: s.Kind, Tensors: s.Tensors, Parameters: s.Elements, Bytes: s.Bytes, Types: s.Types,
		RMSE: s.RMSE, Relative: s.Relative, Largest: s.Largest}
}

// options returns the settings of the writer.
func (w *exporter) options(e *verb.Env) (export.Options, error) {
	recipe, err := export.ParseRecipe(w.kind)
	if err != nil {
		return export.Options{}, err
	}
	if w.Threads < 0 {
		return export.Options{}, fault.Field("threads", "%d threads: want one or more, or 0 for one for each processor",
			w.Threads)
	}
	recipe.Pure = w.Pure
	o := export.Options{Recipe: recipe, Workers: w.Threads}
	if w.Imatrix != "" {
		if o.Importance, err = export.ReadImportance(w.Imatrix); err != nil {
			return o, err
		}
	}
	if !w.Quiet && w.Format == "text" {
		o.Progress = func(name string, d tensor.DType, done, all int) {
			fmt.Fprintf(e.Stderr, "%4d of %d  %-6v %s\n", done, all, d, name)
		}
	}
	return o, nil
}

// finish adds sizes and perplexities and prints the result.
func (w *exporter) finish(e *verb.Env, r *exported, began time.Time) error {
	r.In, r.Out, r.Seconds = w.in, w.out, time.Since(began).Seconds()
	files, err := weights.Files(w.out)
	if err != nil {
		return err
	}
	for _, f := range files {
		stat, err := os.Stat(f)
		if err != nil {
			return err
		}
		r.Bytes += stat.Size()
	}
	if w.Perplexity != "" {
		for path, to := range map[string]**float64{w.in: &r.PerplexityBefore, w.out: &r.PerplexityAfter} {
			p := perplexityCmd{Model: path, File: w.Perplexity, Ctx: w.Ctx, Stages: 1, Chunks: w.Chunks, Format: "json",
				KernelFlags: verb.KernelFlags{Kernels: "cpu", KVType: "auto", Threads: w.Threads}}
			measured, err := p.result(e)
			if err != nil {
				return fmt.Errorf("measure the perplexity of %s: %w", path, err)
			}
			*to = &measured.Perplexity
		}
	}
	if w.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	return r.print(e)
}

// print writes the table of errors.
func (r *exported) print(e *verb.Env) error {
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	if r.Total != nil {
		fmt.Fprintln(w, "TENSORS\tNUMBER\tTYPES\tMIB\tRMSE\tRELATIVE\tLARGEST")
		for _, k := range append(slices.Clone(r.Kinds), *r.Total) {
			var types []string
			for _, name := range slices.Sorted(maps.Keys(k.Types)) {
				types = append(types, fmt.Sprintf("%d %s", k.Types[name], name))
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%.1f\t%.3g\t%.4f\t%.3g\n", k.Kind, k.Tensors, strings.Join(types, ", "),
				float64(k.Bytes)/(1<<20), k.RMSE, k.Relative, k.Largest)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.Stdout, "%s: %s, %.1f MiB in %.1f s\n", r.Out, r.Type, float64(r.Bytes)/(1<<20), r.Seconds)
	if err == nil && r.PerplexityBefore != nil {
		_, err = fmt.Fprintf(e.Stdout, "perplexity %.4f before, %.4f after (%+.2f %%)\n", *r.PerplexityBefore,
			*r.PerplexityAfter, 100*(*r.PerplexityAfter / *r.PerplexityBefore - 1))
	}
	return err
}

// sameFile reports whether two paths name one file or folder.
func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errors.Join(errA, errB) == nil && os.SameFile(sa, sb)
}
