package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

type benchSamplerCmd struct {
	Vocab  int    `help:"Number of logits in a row." default:"151669"`
	Rows   int    `help:"Number of rows to sample from. The median time is reported." default:"50"`
	Format string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// samplerResult is what --format json prints for each sampler.
type samplerResult struct {
	Rule       string  `json:"rule"`
	RowUS      float64 `json:"row_us"`            // to sample from a logits row
	Candidates int     `json:"candidates"`        // number that the last stage sends; 0: it sends the row
	ThinUS     float64 `json:"thin_us,omitempty"` // to sample from the candidates
	Bytes      int     `json:"bytes"`             // sent by the last stage for each token
	Short      float64 `json:"too_few,omitempty"` // fraction of rows for which the candidates were too few
}

// Run measures the time to sample a token with each sampler.
func (c *benchSamplerCmd) Run(e *verb.Env) error {
	if c.Vocab < 1 || c.Rows < 1 {
		return fault.Field("vocab", "want one or more for --vocab and --rows")
	}
	r := rand.New(rand.NewPCG(1, 2))
	rows, sums := make([][]float32, c.Rows), make([]float64, c.Rows)
	for i := range rows {
		rows[i] = make([]float32, c.Vocab)
		var total float64
		for j := range rows[i] { // a few ids have most of the probability, as with a model
			v := r.NormFloat64() * 2
			if j%4096 == i {
				v += 12 * r.Float64()
			}
			rows[i][j] = float32(v)
			total += math.Exp(v)
		}
		sums[i] = math.Log(total)
	}
	history := make([]int32, 512)
	for i := range history {
		history[i] = int32(r.IntN(c.Vocab))
	}
	var results []samplerResult
	for _, rule := range benchRules() {
		p, err := sample.NewPicker(rule.rules)
		if err != nil {
			return err
		}
		result := samplerResult{Rule: rule.name, Candidates: p.Need(c.Vocab, len(history)), Bytes: 4 * c.Vocab}
		var whole, thin []float64
		for i, row := range rows {
			h := sample.NewHistory(history, nil)
			began := time.Now()
			if _, err := p.PickWhole(row, sums[i], h, i); err != nil {
				return err
			}
			whole = append(whole, float64(time.Since(began).Nanoseconds())/1e3)
			if result.Candidates == 0 {
				continue
			}
			best := sample.Best(row, result.Candidates)
			began = time.Now()
			if _, err := p.Pick(best, sums[i], h, i); err != nil {
				result.Short += 1 / float64(len(rows))
			}
			thin = append(thin, float64(time.Since(began).Nanoseconds())/1e3)
		}
		result.RowUS = middle(whole)
		if result.Candidates > 0 {
			result.ThinUS, result.Bytes = middle(thin), 8*result.Candidates
		}
		results = append(results, result)
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, results)
	}
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SAMPLER\tLOGITS ROW us\tCANDIDATES\tFROM CANDIDATES us\tBYTES\tTOO FEW")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%.0f\t%d\t%.1f\t%d\t%.0f %%\n", r.Rule, r.RowUS, r.Candidates, r.ThinUS, r.Bytes,
			100*r.Short)
	}
	return w.Flush()
}

func middle(times []float64) float64 {
	slices.Sort(times)
	return times[len(times)/2]
}

type benchRule struct {
	name  string
	rules sample.Rules
}

func benchRules() []benchRule {
	return []benchRule{
		{"greedy", sample.Rules{}},
		{"temperature 1", sample.Rules{Temperature: 1}},
		{"temperature 0.7", sample.Rules{Temperature: 0.7}},
		{"dynamic_temperature", sample.Rules{Temperature: 1, DynamicRange: 0.5}},
		{"top_k 40", sample.Rules{Temperature: 0.7, TopK: 40}},
		{"top_p 0.95", sample.Rules{Temperature: 1, TopP: 0.95}},
		{"top_p 0.95 at 0.7", sample.Rules{Temperature: 0.7, TopP: 0.95}},
		{"min_p 0.05", sample.Rules{Temperature: 0.7, MinP: 0.05}},
		{"typical_p 0.9", sample.Rules{Temperature: 1, TypicalP: 0.9}},
		{"top_n_sigma 1", sample.Rules{Temperature: 1, TopNSigma: 1}},
		{"xtc", sample.Rules{Temperature: 1, XTC: sample.XTC{Probability: 0.5, Threshold: 0.1}}},
		{"epsilon_cutoff", sample.Rules{Temperature: 1, EpsilonCutoff: 3e-4}},
		{"eta_cutoff", sample.Rules{Temperature: 1, EtaCutoff: 3e-4}},
		{"repetition_penalty", sample.Rules{RepetitionPenalty: 1.1}},
		{"frequency, presence", sample.Rules{Temperature: 0.7, TopK: 40, FrequencyPenalty: 0.5, PresencePenalty: 0.5}},
		{"dry", sample.Rules{TopK: 40, Temperature: 1,
			DRY: sample.DRY{Multiplier: 0.8, Base: 1.75, AllowedLength: 2, LastN: -1}}},
		{"no_repeat_ngram 3", sample.Rules{NoRepeatNGram: 3}},
		{"mirostat 1", sample.Rules{Temperature: 1, Mirostat: sample.Mirostat{Version: 1, Tau: 5, Eta: 0.1}}},
		{"mirostat 2", sample.Rules{Temperature: 1, Mirostat: sample.Mirostat{Version: 2, Tau: 5, Eta: 0.1}}},
	}
}
