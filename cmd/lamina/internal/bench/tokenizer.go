package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type benchTokenizerCmd struct {
	Models  []string `short:"m" name:"model" required:"" sep:"none" help:"Vocabulary, in any form that tokenize accepts; repeatable." type:"model"`
	File    string   `short:"f" required:"" help:"File with plain text."`
	Size    int      `help:"Size of a document in bytes." default:"10000"`
	Threads int      `help:"Number of documents to encode in parallel." default:"1"`
	Repeat  int      `help:"Number of passes over the file. The median is reported, and also the first pass, when the word cache is empty." default:"5"`
	Format  string   `help:"Output: text or json." enum:"text,json" default:"text"`
}

// tokenizerResult is what --format json prints for each vocabulary. Rates are in 10⁶ bytes per
// second.
type tokenizerResult struct {
	Model   string  `json:"model"`
	Family  string  `json:"family"`
	Threads int     `json:"threads"`
	Tokens  int     `json:"tokens"`
	Cold    float64 `json:"cold_mbps"`
	Warm    float64 `json:"warm_mbps"`
	Decode  float64 `json:"decode_mbps"`
	Load    float64 `json:"load_ms"`
}

// Run splits a text into documents and encodes them with each vocabulary.
func (c *benchTokenizerCmd) Run(e *verb.Env) error {
	if c.Size < 1 || c.Threads < 1 || c.Repeat < 1 {
		return fault.Field("repeat", "want one or more for --size, --threads and --repeat")
	}
	text, err := os.ReadFile(c.File)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "read text")
	}
	documents := cutDocuments(string(text), c.Size)
	var results []tokenizerResult
	for _, path := range c.Models {
		r, err := c.measure(path, documents, len(text))
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, results)
	}
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOCABULARY\tFAMILY\tCOLD MB/s\tWARM MB/s\tDECODE MB/s\tTOKENS\tLOAD ms")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%.1f\t%d\t%.0f\n", filepath.Base(r.Model), r.Family, r.Cold, r.Warm,
			r.Decode, r.Tokens, r.Load)
	}
	return w.Flush()
}

// cutDocuments splits a text between characters into documents of about size bytes.
func cutDocuments(text string, size int) []string {
	var out []string
	for len(text) > 0 {
		n := min(size, len(text))
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n++
		}
		out, text = append(out, text[:n]), text[n:]
	}
	return out
}

func (c *benchTokenizerCmd) measure(path string, documents []string, size int) (tokenizerResult, error) {
	began := time.Now()
	v, err := tokenizer.LoadVocab(path)
	if err != nil {
		return tokenizerResult{}, err
	}
	r := tokenizerResult{Model: path, Family: v.Family(), Threads: c.Threads,
		Load: float64(time.Since(began).Microseconds()) / 1e3}
	ids := make([][]int32, len(documents))
	pass := func(body func(i int) error) (float64, error) {
		began := time.Now()
		errs := make([]error, c.Threads)
		var wg sync.WaitGroup
		for t := range c.Threads {
			wg.Go(func() {
				for i := t; i < len(documents) && errs[t] == nil; i += c.Threads {
					errs[t] = body(i)
				}
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				return 0, err
			}
		}
		return float64(size) / 1e6 / time.Since(began).Seconds(), nil
	}
	encode := func(i int) (err error) {
		ids[i], err = v.Encode(documents[i], vocab.Options{})
		return err
	}
	if r.Cold, err = pass(encode); err != nil {
		return r, err
	}
	rates := []float64{r.Cold}
	for range c.Repeat - 1 {
		rate, err := pass(encode)
		if err != nil {
			return r, err
		}
		rates = append(rates, rate)
	}
	slices.Sort(rates)
	r.Warm = rates[len(rates)/2]
	for _, document := range ids {
		r.Tokens += len(document)
	}
	r.Decode, err = pass(func(i int) error {
		_, err := v.Decode(ids[i], vocab.DecodeOptions{})
		return err
	})
	return r, err
}
