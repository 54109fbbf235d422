package sample_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

func vectors(t testing.TB, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(fixtures.Path(t, "vectors/sampling", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// TestLeave_TransformersChains compares with probabilities that Hugging Face's
// processors left.
func TestLeave_TransformersChains(t *testing.T) {
	var file struct{ Cases []json.RawMessage }
	vectors(t, "transformers.json", &file)
	for i, text := range file.Cases {
		var c struct {
			Logits        []float64          `json:"logits"`
			History       []int32            `json:"history"`
			Chain         json.RawMessage    `json:"chain"`
			Probabilities map[string]float64 `json:"probabilities"`
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		question, err := json.Marshal(map[string]any{"logits": c.Logits, "history": c.History, "chain": c.Chain})
		if err != nil {
			t.Fatal(err)
		}
		q, err := sample.ParseQuestion(question)
		if err != nil {
			t.Fatal(err)
		}
		got, err := q.Chain.Leave(q.Logits, q.History, 0)
		if err != nil || len(got) != len(c.Probabilities) {
			t.Errorf("case %d, %s: %d ids are left (%v), want %d", i, c.Chain, len(got), err, len(c.Probabilities))
			continue
		}
		for _, l := range got {
			if want, ok := c.Probabilities[strconv.Itoa(int(l.ID))]; !ok || math.Abs(want-l.Probability) > 2e-6 {
				t.Errorf("case %d, %s: id %d has %v, want %v", i, c.Chain, l.ID, l.Probability, want)
			}
		}
	}
}

// llamaCase is one of llama.cpp's own tests.
type llamaCase struct {
	Sampler                     string
	Probs, Expected             []float64
	Temp, Delta, Exponent, P, N float64
	K                           int
	Probability, Threshold      float64
	LastTokens                  []int32   `json:"last_tokens"`
	Repeat                      float64   `json:"repeat_penalty"`
	Frequency                   float64   `json:"alpha_frequency"`
	Presence                    float64   `json:"alpha_presence"`
	Multiplier                  float64   `json:"dry_multiplier"`
	Base                        float64   `json:"dry_base"`
	Allowed                     int       `json:"dry_allowed_length"`
	LastN                       int       `json:"dry_penalty_last_n"`
	Breakers                    [][]int32 `json:"seq_breakers"`
	Vocab                       int       `json:"n_vocab"`
	Order                       string
	TopK                        int     `json:"top_k"`
	TopP                        float64 `json:"top_p"`
	MinP                        float64 `json:"min_p"`
}

func (c *llamaCase) chain() sample.Chain {
	switch c.Sampler {
	case "temp":
		return sample.Chain{sample.Temperature(c.Temp)}
	case "temp_ext":
		return sample.Chain{sample.DynamicTemperature{Temperature: c.Temp, Range: c.Delta, Exponent: c.Exponent}}
	case "top_k":
		return sample.Chain{sample.TopK(c.K)}
	case "top_p":
		return sample.Chain{sample.TopP(c.P)}
	case "min_p":
		return sample.Chain{sample.MinP(c.P)}
	case "typical":
		return sample.Chain{sample.TypicalP(c.P)}
	case "xtc":
		return sample.Chain{sample.XTC{Probability: c.Probability, Threshold: c.Threshold}}
	case "top_n_sigma":
		return sample.Chain{sample.TopNSigma(c.N)}
	case "penalties":
		return sample.Chain{sample.Penalties{Repeat: c.Repeat, Frequency: c.Frequency, Presence: c.Presence, LastN: -1}}
	case "dry":
		return sample.Chain{sample.DRY{Multiplier: c.Multiplier, Base: c.Base, AllowedLength: c.Allowed, LastN: c.LastN,
			Breakers: c.Breakers}}
	}
	var chain sample.Chain
	for _, rule := range c.Order {
		chain = append(chain, map[rune]sample.Step{'k': sample.TopK(c.TopK), 'p': sample.TopP(c.TopP),
			'm': sample.MinP(c.MinP)}[rule])
	}
	return chain
}

func TestLeave_LlamaCases(t *testing.T) {
	var file struct{ Cases []llamaCase }
	vectors(t, "llama.cpp-cases.json", &file)
	for i, c := range file.Cases {
		t.Run(fmt.Sprint(i, c.Sampler, c.Order), func(t *testing.T) {
			if c.Sampler == "sampler_queue" {
				queue(t, &c)
				return
			}
			var logits []float64
			for _, p := range c.Probs {
				logits = append(logits, math.Log(p))
			}
			left, err := c.chain().Leave(logits, c.LastTokens, 0)
			if err != nil {
				t.Fatal(err)
			}
			var got, want []float64
			for _, l := range left {
				got = append(got, l.Probability)
			}
			for _, p := range c.Expected {
				if p > 0 {
					want = append(want, p)
				}
			}
			var total float64
			for _, p := range want {
				total += p
			}
			for j := range want {
				want[j] /= total
			}
			slices.Sort(want)
			slices.Sort(got)
			for len(got) > len(want) && got[0] < 1e-5 { // left, and hardly
				got = got[1:]
			}
			if len(got) != len(want) {
				t.Fatalf("leaves %v, want %v", got, want)
			}
			for j := range got {
				if math.Abs(got[j]-want[j]) > 1e-5 {
					t.Errorf("leaves %v, want %v", got, want)
				}
			}
		})
	}
}

// queue runs a chain over logits that are the logarithms of 1, 2, 3...: what is left
// are the best, as many as each rule alone says, in its turn.
func queue(t *testing.T, c *llamaCase) {
	logits := make([]float64, c.Vocab)
	for i := range logits {
		logits[i] = math.Log(float64(i + 1))
	}
	left, err := c.chain().Leave(logits, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := c.Vocab // ids 10000-n to 9999 are left; weight i+1
	weight := func(n int) float64 { return float64(n) * float64(2*c.Vocab-n+1) / 2 }
	for _, rule := range c.Order {
		switch rule {
		case 'k':
			n = min(n, c.TopK)
		case 'p':
			goal, k := c.TopP*weight(n), 1
			for k < n && weight(k) < goal*(1-1e-12) {
				k++
			}
			n = k
		case 'm':
			k := 1
			for k < n && float64(c.Vocab-k) >= c.MinP*float64(c.Vocab)*(1-1e-12) {
				k++
			}
			n = k
		}
	}
	if len(left) != n {
		t.Fatalf("leaves %d ids, want %d", len(left), n)
	}
	for i, l := range left {
		if int(l.ID) != c.Vocab-1-i {
			t.Fatalf("id %d stands at %d", l.ID, i)
		}
	}
}
