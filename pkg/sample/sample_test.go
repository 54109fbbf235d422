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
		h := sample.NewHistory(nil, nil)
		whole, err := rules.Pick(sample.Best(x, len(x)), true, lse(x), h, i)
		if err != nil {
			t.Fatal(err)
		}
		need := rules.Need(len(x))
		if need == 0 {
			continue
		}
		some, err := rules.Pick(sample.Best(x, need), false, lse(x), h, i)
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
	rules := sample.Rules{Temperature: 1, Seed: 9}
	counts := make([]float64, 4)
	const n = 100000
	for pos := range n {
		c, err := rules.Pick(sample.Best(x, 4), true, lse(x), sample.NewHistory(nil, nil), pos)
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
		c, err := r.Pick(sample.Best(x, 3), true, lse(x), sample.NewHistory(prompt, emitted), 0)
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
