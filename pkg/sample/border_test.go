package sample_test

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

// These are the thresholds of llama.cpp, vLLM and transformers in float32, as their sources
// compute them. Each function returns how many of the probabilities, sorted from the greatest,
// stay.

// llamaTopP keeps tokens until their cumulative sum, from the best, is at least p.
func llamaTopP(probs []float32, p float32) int {
	var sum float32
	for i, v := range probs {
		if sum += v; sum >= p {
			return i + 1
		}
	}
	return len(probs)
}

// torchTopP removes tokens whose cumulative sum, from the worst, is at most 1 - p, where
// the subtraction is vLLM's (in float32) or transformers' (in float64).
func torchTopP(probs []float32, rest float32) int {
	var sum float32
	for i := len(probs) - 1; i > 0; i-- {
		if sum += probs[i]; sum > rest {
			return i + 1
		}
	}
	return 1
}

func softmax32(weights []int) []float32 {
	top := float32(math.Log(float64(weights[0])))
	out := make([]float32, len(weights))
	var sum float32
	for i, w := range weights {
		out[i] = float32(math.Exp(float64(float32(math.Log(float64(w))) - top)))
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

// borders calls f for distributions proportional to small integers, sorted from the greatest,
// with their sum.
func borders(f func(weights []int, total int)) {
	var grow func(weights []int, most, total int)
	grow = func(weights []int, most, total int) {
		if len(weights) >= 2 {
			f(weights, total)
		}
		if len(weights) == 6 {
			return
		}
		for w := 1; w <= most; w++ {
			grow(append(slices.Clone(weights), w), w, total+w)
		}
	}
	grow(nil, 7, 0)
}

func logs(weights []int, float32s bool) []float64 {
	out := make([]float64, len(weights))
	for i, w := range weights {
		if out[i] = math.Log(float64(w)); float32s {
			out[i] = float64(float32(out[i]))
		}
	}
	return out
}

func left(t *testing.T, step sample.Step, logits []float64) int {
	t.Helper()
	got, err := sample.Chain{step}.Leave(logits, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return len(got)
}

// TestLeave_TopPAtTheBorder sets top_p to every sum of best probabilities. Rounding in float32
// sometimes gives llama.cpp, vLLM or transformers one token more or less, each in other cases.
// Where the three agree, the chain must keep the same number of tokens, and it never keeps
// fewer than the exact number.
func TestLeave_TopPAtTheBorder(t *testing.T) {
	agree := 0
	borders(func(weights []int, total int) {
		probs := softmax32(weights)
		sum := 0
		for i, w := range weights[:len(weights)-1] {
			sum += w
			p := float64(sum) / float64(total)
			if llamaTopP(probs, float32(p)) == i+1 && torchTopP(probs, 1-float32(p)) == i+1 &&
				torchTopP(probs, float32(1-p)) == i+1 {
				agree++
			}
			for _, float32s := range []bool{false, true} {
				if got := left(t, sample.TopP(p), logs(weights, float32s)); got != i+1 {
					t.Errorf("weights %v, top_p %d/%d, float32 logits %v: %d tokens stay, want %d", weights, sum, total,
						float32s, got, i+1)
				}
				if got := left(t, sample.TopP(p+1e-5), logs(weights, float32s)); got != i+2 {
					t.Errorf("weights %v, top_p above %d/%d: %d tokens stay, want %d", weights, sum, total, got, i+2)
				}
			}
		}
	})
	if agree < 2500 {
		t.Errorf("the three agree on only %d borders", agree)
	}
}

// TestLeave_ThresholdsAtTheBorder puts a token exactly at each other threshold, and then just
// beyond it. A token that equals a threshold stays in all three.
func TestLeave_ThresholdsAtTheBorder(t *testing.T) {
	const off = 1e-5
	borders(func(weights []int, total int) {
		better := func(i int) int { // tokens at least as good as token i
			n := 0
			for _, w := range weights {
				if w >= weights[i] {
					n++
				}
			}
			return n
		}
		var mean, spread, entropy float64
		for _, w := range weights {
			mean += math.Log(float64(w)) / float64(len(weights))
			entropy -= float64(w) / float64(total) * math.Log(float64(w)/float64(total))
		}
		for _, w := range weights {
			spread += (math.Log(float64(w)) - mean) * (math.Log(float64(w)) - mean)
		}
		sigma := math.Sqrt(spread / float64(len(weights)))
		for i, w := range weights {
			share, ratio := float64(w)/float64(total), float64(w)/float64(weights[0])
			want := better(i)
			check := func(name string, step sample.Step, want int) {
				t.Helper()
				for _, float32s := range []bool{false, true} {
					if got := left(t, step, logs(weights, float32s)); got != want {
						t.Errorf("weights %v, token %d, %s %v, float32 logits %v: %d tokens stay, want %d", weights, i,
							name, step, float32s, got, want)
					}
				}
			}
			beyond := 0 // tokens strictly better
			for _, v := range weights {
				if v > w {
					beyond++
				}
			}
			check("min_p", sample.MinP(ratio), want)
			check("epsilon_cutoff", sample.EpsilonCutoff(share), want)
			// Mirostat's bound is twice tau, in bits.
			check("mirostat", sample.Mirostat{Version: 2, Tau: -math.Log2(share) / 2}, want)
			check("mirostat", sample.Mirostat{Version: 2, Tau: (-math.Log2(share) - off) / 2}, max(1, beyond))
			check("epsilon_cutoff", sample.EpsilonCutoff(share*(1+off)), max(1, beyond))
			if weights[0] > w {
				check("min_p", sample.MinP(ratio*(1+off)), beyond)
				check("top_n_sigma", sample.TopNSigma(-math.Log(ratio)/sigma), want)
				check("top_n_sigma", sample.TopNSigma((-math.Log(ratio)-off)/sigma), beyond)
			}
			// The eta cutoff is min(eta, sqrt(eta)*exp(-entropy)).
			if eta := share * share * math.Exp(2*entropy); eta < 1 && eta > share {
				check("eta_cutoff", sample.EtaCutoff(eta), want)
				check("eta_cutoff", sample.EtaCutoff(eta*(1+3*off)), max(1, beyond))
			}
			if share <= 0.5 {
				check("xtc", sample.XTC{Probability: 1, Threshold: share}, len(weights)-want+1)
				if share*(1+off) <= 0.5 {
					check("xtc", sample.XTC{Probability: 1, Threshold: share * (1 + off)},
						len(weights)-max(1, beyond)+1)
				}
			}
		}
	})
}

// TestLeave_TypicalAtTheBorder sets typical_p to the mass of the most typical tokens.
func TestLeave_TypicalAtTheBorder(t *testing.T) {
	borders(func(weights []int, total int) {
		var entropy float64
		for _, w := range weights {
			entropy -= float64(w) / float64(total) * math.Log(float64(w)/float64(total))
		}
		distance := func(w int) float64 { return math.Abs(-math.Log(float64(w)/float64(total)) - entropy) }
		order := slices.Clone(weights)
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(distance(a), distance(b)) })
		sum := 0
		for i, w := range order[:len(order)-1] {
			sum += w
			want := i + 1
			for want < len(order) && distance(order[want]) < distance(w)+1e-9 {
				want++
			}
			for _, float32s := range []bool{false, true} {
				if got := left(t, sample.TypicalP(float64(sum)/float64(total)), logs(weights, float32s)); got != want {
					t.Errorf("weights %v, typical_p %d/%d, float32 logits %v: %d tokens stay, want %d", weights, sum,
						total, float32s, got, want)
				}
			}
		}
	})
}

// TestPick_CandidatesAgreeAtTheBorder picks at thresholds that a candidate equals. A list that
// ends there gives the same token as the whole row, or is refused as too short.
func TestPick_CandidatesAgreeAtTheBorder(t *testing.T) {
	decided, refused := 0, 0
	borders(func(weights []int, total int) {
		row := make([]float32, len(weights))
		for i, v := range logs(weights, true) {
			row[i] = float32(v)
		}
		sum := 0
		for i, w := range weights[:len(weights)-1] {
			sum += w
			share := float64(w) / float64(total)
			for _, rules := range []sample.Rules{
				{TopP: float64(sum) / float64(total)}, {MinP: float64(w) / float64(weights[0])}, {EpsilonCutoff: share},
				{Mirostat: sample.Mirostat{Version: 2, Tau: -math.Log2(share) / 2}},
				{XTC: sample.XTC{Probability: 1, Threshold: share}},
			} {
				rules.Temperature, rules.Seed = 1, uint64(total)
				p := picker(t, rules)
				h := sample.NewHistory(nil, nil)
				whole, err := p.PickWhole(row, lse(row), h, i)
				if err != nil {
					t.Fatal(err)
				}
				for n := 1; n < len(row); n++ {
					some, err := p.Pick(sample.Best(row, n), lse(row), h, i)
					if errors.Is(err, sample.ErrTooFew) {
						refused++
						continue
					}
					decided++
					if err != nil || some.ID != whole.ID {
						t.Fatalf("weights %v, %+v: %d candidates give %v (%v), the row %v", weights, rules, n, some.ID,
							err, whole.ID)
					}
				}
			}
		}
	})
	if decided < 1000 || refused < 1000 {
		t.Errorf("candidates decided %d times and refused %d times", decided, refused)
	}
}
