package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type benchGrammarCmd struct {
	Model  string `short:"m" required:"" help:"Vocabulary, in any form that tokenize accepts." type:"model"`
	File   string `short:"f" required:"" help:"File with a JSON list of objects with name, schema, and text, which is the text to generate."`
	Repeat int    `help:"How often to compile each schema and to compute the token masks along its text." default:"20"`
	Format string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// grammarResult is what --format json prints for each schema.
type grammarResult struct {
	Name        string  `json:"name"`
	Tokens      int     `json:"tokens"`     // of the text
	Compile     float64 `json:"compile_ms"` // the median
	CompileMost float64 `json:"compile_ms_most"`
	Mask        float64 `json:"mask_us"` // the median over all masks
	MaskP99     float64 `json:"mask_us_p99"`
	MaskMost    float64 `json:"mask_us_most"`
	Accept      float64 `json:"accept_us"`
	Forced      float64 `json:"forced"` // fraction of the bytes of the text that are forced
}

type grammarBench struct {
	Vocabulary int             `json:"vocabulary"`
	Layout     float64         `json:"layout_ms"` // preparation of the vocabulary, once for all grammars
	Schemas    []grammarResult `json:"schemas"`
	Machine    machine         `json:"machine"`
}

// Run matches texts with their schemas, token by token, on one thread.
func (c *benchGrammarCmd) Run(e *verb.Env) error {
	if c.Repeat < 1 {
		return fault.Field("repeat", "%d times: want one or more", c.Repeat)
	}
	data, err := os.ReadFile(c.File)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "read schemas")
	}
	var cases []struct {
		Name, Text string
		Schema     json.RawMessage
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		return fault.Wrap(fault.Invalid, err, "parse %s", c.File)
	}
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return err
	}
	out := grammarBench{Vocabulary: v.Size(), Machine: thisMachine()}
	began := time.Now()
	tokens, err := verb.GrammarVocabulary(v)
	if err != nil {
		return err
	}
	out.Layout = millis(time.Since(began))
	for _, one := range cases {
		ids, err := v.Encode(one.Text, vocab.Options{})
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "encode the text of %s", one.Name)
		}
		r := grammarResult{Name: one.Name, Tokens: len(ids)}
		if err := c.measure(&r, one.Schema, tokens, ids); err != nil {
			return err
		}
		out.Schemas = append(out.Schemas, r)
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, out)
	}
	fmt.Fprintf(e.Stdout, "%d tokens prepared in %.0f ms on %s\n", out.Vocabulary, out.Layout, out.Machine.CPU)
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SCHEMA\tTOKENS\tCOMPILE ms\tMAX\tMASK us\tP99\tMAX\tACCEPT us\tFORCED")
	for _, r := range out.Schemas {
		fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f\t%.2f\t%.1f\t%.1f\t%.2f\t%.0f %%\n", r.Name, r.Tokens, r.Compile,
			r.CompileMost, r.Mask, r.MaskP99, r.MaskMost, r.Accept, 100*r.Forced)
	}
	return w.Flush()
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// measure compiles a schema and matches ids with it, Repeat times.
func (c *benchGrammarCmd) measure(r *grammarResult, schema []byte, tokens *grammar.Vocabulary, ids []int32) error {
	var compiles, masks, accepts []float64
	mask := make([]uint64, tokens.Words())
	for range c.Repeat {
		began := time.Now()
		g, err := grammar.Schema(schema)
		if err != nil {
			return err
		}
		compiled, err := grammar.Compile(g, tokens)
		if err != nil {
			return err
		}
		compiles = append(compiles, millis(time.Since(began)))
		m := compiled.NewMatcher()
		for i, id := range ids {
			began := time.Now()
			if err := m.Mask(mask); err != nil {
				return err
			}
			made := time.Now()
			masks = append(masks, 1e3*millis(made.Sub(began)))
			if mask[id>>6]>>(id&63)&1 == 0 {
				return fault.New(fault.Invalid, "match the text of %s: token %d, id %d, is masked", r.Name, i, id)
			}
			began = time.Now()
			if err := m.Accept(id); err != nil {
				return err
			}
			accepts = append(accepts, 1e3*millis(time.Since(began)))
		}
		if !m.CanEnd() {
			return fault.New(fault.Invalid, "match the text of %s: it ends too early", r.Name)
		}
	}
	slices.Sort(compiles)
	slices.Sort(masks)
	slices.Sort(accepts)
	r.Compile, r.CompileMost = compiles[len(compiles)/2], compiles[len(compiles)-1]
	r.Mask, r.MaskP99, r.MaskMost = masks[len(masks)/2], masks[len(masks)*99/100], masks[len(masks)-1]
	r.Accept = accepts[len(accepts)/2]
	return c.forced(r, schema, tokens, ids)
}

// forced measures which fraction of the bytes jump-ahead could emit without sampling.
func (c *benchGrammarCmd) forced(r *grammarResult, schema []byte, tokens *grammar.Vocabulary, ids []int32) error {
	g, err := grammar.Schema(schema)
	if err != nil {
		return err
	}
	compiled, err := grammar.Compile(g, tokens)
	if err != nil {
		return err
	}
	m := compiled.NewMatcher()
	total, forced := 0, 0
	for _, id := range ids {
		text := tokens.Token(id)
		total += len(text)
		forced += min(len(text), len(m.Forced()))
		if err := m.Accept(id); err != nil {
			return err
		}
	}
	r.Forced = float64(forced) / float64(max(1, total))
	return nil
}
