package sample_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

func row(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.Round(r.NormFloat64()*8) / 4) // many equals
	}
	return x
}

func lse(row []float32) float64 {
	var sum float64
	for _, v := range row {
		sum += math.Exp(float64(v))
	}
	return math.Log(sum)
}

func picker(t testing.TB, r sample.Rules) *sample.Picker {
	t.Helper()
	p, err := sample.NewPicker(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBest_OrdersByLogitThenID(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		x := row(r, 1+r.IntN(60))
		all := sample.Best(x, len(x))
		if !slices.IsSortedFunc(all, func(a, b sample.Candidate) int {
			if a.Logit != b.Logit {
				return int(4 * (b.Logit - a.Logit))
			}
			return int(a.ID - b.ID)
		}) {
			t.Fatalf("not in order: %v", all)
		}
		for k := range len(x) {
			if got := sample.Best(x, k); !slices.Equal(got, all[:k]) {
				t.Fatalf("best %d of %v are %v, want %v", k, x, got, all[:k])
			}
		}
	}
}

func TestPick_CandidatesDecideAsTheWholeRowWould(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	decided := 0
	for i := range 4000 {
		x := row(r, 600+r.IntN(400))
		rules := sample.Rules{Seed: uint64(i), Temperature: []float64{0, 0.7, 1, 2}[r.IntN(4)], TopLogprobs: r.IntN(5)}
		if r.IntN(2) == 0 {
			rules.TopK = 1 + r.IntN(100)
		}
		if r.IntN(2) == 0 {
			rules.TopP = r.Float64()
		}
		if r.IntN(2) == 0 {
			rules.MinP = r.Float64()
		}
		var prompt, emitted []int32
		for range r.IntN(20) {
			prompt, emitted = append(prompt, int32(r.IntN(len(x)))), append(emitted, int32(r.IntN(len(x))))
		}
		switch r.IntN(8) {
		case 0:
			rules.RepetitionPenalty = 0.8 + r.Float64()
		case 1:
			rules.FrequencyPenalty, rules.PresencePenalty = r.Float64()-0.2, r.Float64()-0.2
		case 2:
			rules.LogitBias = sample.LogitBias{int32(r.IntN(9)): r.Float64() - 0.7}
		case 3:
			rules.DRY = sample.DRY{Multiplier: 1, Base: 1.75, AllowedLength: 1, LastN: -1}
		case 4:
			rules.NoRepeatNGram, rules.BadWords = 1, sample.BadWords{{3}, {4}}
		case 5:
			rules.EpsilonCutoff, rules.XTC = 0.01, sample.XTC{Probability: 0.5, Threshold: 0.05}
		case 6:
			rules.Mirostat = sample.Mirostat{Version: 2, Tau: 3, Eta: 0.1}
		}
		h := sample.NewHistory(prompt, emitted)
		p := picker(t, rules)
		whole, err := p.PickWhole(x, lse(x), h, i)
		if err != nil {
			t.Fatal(err)
		}
		need := p.Need(len(x), h.Len())
		if need == 0 {
			continue
		}
		some, err := p.Pick(sample.Best(x, need), lse(x), h, i)
		if errors.Is(err, sample.ErrTooFew) {
			continue
		}
		decided++
		if err != nil || some.ID != whole.ID || some.Logprob != whole.Logprob || !slices.Equal(some.Top, whole.Top) {
			t.Fatalf("%+v: %d candidates give %+v (%v), the row %+v", rules, need, some, err, whole)
		}
	}
	if decided < 1000 {
		t.Errorf("candidates decided only %d times", decided)
	}
}

func TestPick_DrawsByTheDistribution(t *testing.T) {
	x := []float32{0, 1, 2, 3}
	p := picker(t, sample.Rules{Temperature: 1, Seed: 9})
	counts := make([]float64, 4)
	const n = 100000
	for pos := range n {
		c, err := p.PickRow(x, lse(x), sample.NewHistory(nil, nil), pos)
		if err != nil {
			t.Fatal(err)
		}
		counts[c.ID]++
	}
	var chi float64
	for id, v := range x {
		want := n * math.Exp(float64(v)-lse(x))
		chi += (counts[id] - want) * (counts[id] - want) / want
	}
	if chi > 16.3 { // 0.1 % with three degrees of freedom
		t.Errorf("chi-square %.1f: counts %v", chi, counts)
	}
}

func TestPick_PenaltiesAndBiasMoveTheChoice(t *testing.T) {
	x := []float32{5, 4, 3}
	pick := func(r sample.Rules, prompt, emitted []int32) int32 {
		t.Helper()
		c, err := picker(t, r).PickRow(x, lse(x), sample.NewHistory(prompt, emitted), 0)
		if err != nil {
			t.Fatal(err)
		}
		if want := float64(x[c.ID]) - lse(x); c.Logprob != want {
			t.Errorf("log-probability %v is not the model's %v", c.Logprob, want)
		}
		return c.ID
	}
	for _, c := range []struct {
		rules           sample.Rules
		prompt, emitted []int32
		want            int32
	}{
		{sample.Rules{}, nil, nil, 0},
		{sample.Rules{RepetitionPenalty: 1.5}, []int32{0}, nil, 1},
		{sample.Rules{FrequencyPenalty: 0.6}, nil, []int32{0, 0}, 1},
		{sample.Rules{PresencePenalty: 0.6}, nil, []int32{0, 0}, 0},
		{sample.Rules{LogitBias: map[int32]float64{2: 2.5}}, nil, nil, 2},
	} {
		if got := pick(c.rules, c.prompt, c.emitted); got != c.want {
			t.Errorf("%+v after %v %v picks %d, want %d", c.rules, c.prompt, c.emitted, got, c.want)
		}
	}
}
