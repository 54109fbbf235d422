package sample_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

// anyRules returns random sampling parameters, each set or not.
func anyRules(r *rand.Rand) sample.Rules {
	some := func(v float64) float64 {
		if r.IntN(3) > 0 {
			return 0
		}
		return v * r.Float64()
	}
	q := sample.Rules{
		Temperature: []float64{0, 0.5, 1, 1, 1.7}[r.IntN(5)], DynamicRange: some(0.5), TopK: r.IntN(3) * r.IntN(20),
		TopP: some(1), MinP: some(0.3),
		TypicalP: some(1), TopNSigma: some(3), EpsilonCutoff: some(0.05), EtaCutoff: some(0.05),
		RepetitionPenalty: 1 + some(1),
		FrequencyPenalty:  some(1), PresencePenalty: some(1), NoRepeatNGram: r.IntN(3) * r.IntN(3), Seed: r.Uint64(),
		Choice: uint32(r.IntN(3)),
		XTC:    sample.XTC{Probability: some(1), Threshold: 0.1},
	}
	if r.IntN(4) == 0 {
		q.DRY = sample.DRY{Multiplier: 1, Base: 1.75, AllowedLength: 1, LastN: -1}
	}
	if r.IntN(4) == 0 {
		q.Mirostat = sample.Mirostat{Version: 1 + r.IntN(2), Tau: 3, Eta: 0.2}
	}
	if r.IntN(4) == 0 {
		q.Min = sample.MinTokens{N: 5, Ends: []int32{0, 1}}
	}
	return q
}

// TestPicker_TakesUpFromAnyPrefix picks a sequence. Then a second picker, which knows only the
// sampling parameters, the tokens and their log-probabilities, continues from some position.
func TestPicker_TakesUpFromAnyPrefix(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	const vocab, length = 60, 20
	for trial := range 500 {
		rules := anyRules(r)
		prompt := []int32{3, 4, 5}
		rows, sums := make([][]float32, length), make([]float64, length)
		for i := range rows {
			rows[i] = row(r, vocab)
			sums[i] = lse(rows[i])
		}
		p, h := picker(t, rules), sample.NewHistory(prompt, nil)
		var ids []int32
		var logprobs []float64
		for i := range rows {
			c, err := p.PickRow(rows[i], sums[i], h, i)
			if err != nil {
				t.Fatalf("trial %d, %+v: %v", trial, rules, err)
			}
			logprob := float64(float32(c.Logprob))
			h.Emit(c.ID, logprob)
			ids, logprobs = append(ids, c.ID), append(logprobs, logprob)
		}
		other := picker(t, rules)
		for i := range rows {
			c, err := other.PickRow(rows[i], sums[i], sample.NewHistory(prompt, ids[:i], logprobs[:i]...), i)
			if err != nil || c.ID != ids[i] {
				t.Fatalf("trial %d, %+v: position %d is %d (%v), was %d", trial, rules, i, c.ID, err, ids[i])
			}
		}
	}
}

// TestPicker_VerifyIsPickingOneByOne proposes right and wrong ids.
func TestPicker_VerifyIsPickingOneByOne(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for trial := range 300 {
		rules := anyRules(r)
		rows, sums := make([][]float32, 6), make([]float64, 6)
		for i := range rows {
			rows[i] = row(r, 40)
			sums[i] = lse(rows[i])
		}
		h := sample.NewHistory([]int32{1, 2}, nil)
		var want []int32
		for i := range rows {
			c, err := picker(t, rules).PickRow(rows[i], sums[i], h, 9+i)
			if err != nil {
				t.Fatal(err)
			}
			h.Emit(c.ID, float64(float32(c.Logprob)))
			want = append(want, c.ID)
		}
		proposed, wrong := slices.Clone(want[:5]), r.IntN(7)
		if wrong < 5 {
			proposed[wrong] = (proposed[wrong] + 1) % 40
		}
		got, err := picker(t, rules).Verify(rows, sums, proposed, sample.NewHistory([]int32{1, 2}, nil), 9)
		if err != nil || len(got) != min(wrong, 5)+1 {
			t.Fatalf("trial %d: %d picks (%v), want %d", trial, len(got), err, min(wrong, 5)+1)
		}
		for i, c := range got {
			if c.ID != want[i] {
				t.Fatalf("trial %d: pick %d is %d, was %d", trial, i, c.ID, want[i])
			}
		}
	}
}

func TestPropose_WhatFollowedTheLongestEnd(t *testing.T) {
	for _, c := range []struct {
		least     int
		ids, want []int32
	}{
		{1, nil, nil},
		{1, []int32{1, 2, 3}, nil},
		{1, []int32{1, 2, 3, 9, 1, 2}, []int32{3, 9}},
		{1, []int32{1, 2, 3, 5, 2, 7, 1, 2}, []int32{3, 5}},
		{1, []int32{2, 7, 2, 8, 2}, []int32{8, 2}},
		{2, []int32{2, 7, 2, 8, 2}, nil},
		{2, []int32{1, 2, 3, 9, 1, 2}, []int32{3, 9}},
	} {
		if got := sample.Propose(c.ids, c.least, 3, 2); !slices.Equal(got, c.want) {
			t.Errorf("%v proposes %v, want %v", c.ids, got, c.want)
		}
	}
}

// TestPicker_DrawsByWhatTheChainLeaves compares the frequencies of picks with Leave's
// probabilities, one sampling parameter after another.
func TestPicker_DrawsByWhatTheChainLeaves(t *testing.T) {
	logits := []float64{2, 1.5, 1.2, 1, 0.5, 0, -0.5, -1, -2, -3}
	values, history := make([]float32, len(logits)), []int32{1, 2, 3, 1, 2}
	for i, v := range logits {
		values[i] = float32(v)
	}
	for name, rules := range map[string]sample.Rules{
		"temperature": {Temperature: 1.4}, "dynamic": {Temperature: 1, DynamicRange: 0.6},
		"top_k": {Temperature: 1, TopK: 4}, "top_p": {Temperature: 1, TopP: 0.8},
		"min_p": {Temperature: 1, MinP: 0.2}, "typical_p": {Temperature: 1, TypicalP: 0.7},
		"top_n_sigma": {Temperature: 1, TopNSigma: 1},
		"epsilon":     {Temperature: 1, EpsilonCutoff: 0.05}, "eta": {Temperature: 1, EtaCutoff: 0.3},
		"repetition": {Temperature: 1, RepetitionPenalty: 1.5},
		"ngram":      {Temperature: 1, NoRepeatNGram: 2},
		"dry":        {Temperature: 1, DRY: sample.DRY{Multiplier: 1, Base: 1.5, AllowedLength: 1, LastN: -1}},
		"bias":       {Temperature: 1, LogitBias: sample.LogitBias{4: 1}},
		"bad words":  {Temperature: 1, BadWords: sample.BadWords{{0}, {2, 3}}},
		"order":      {Temperature: 2, TopP: 0.6, Order: []string{"top_p", "temperature"}},
	} {
		t.Run(name, func(t *testing.T) {
			rules.Seed = 77
			chain, err := rules.Chain()
			if err != nil {
				t.Fatal(err)
			}
			left, err := chain.Leave(logits, history, 77)
			if err != nil {
				t.Fatal(err)
			}
			const n = 20000
			counts, p, h := map[int32]float64{}, picker(t, rules), sample.NewHistory(history, nil)
			for pos := range n {
				c, err := p.PickRow(values, lse(values), h, pos)
				if err != nil {
					t.Fatal(err)
				}
				counts[c.ID]++
			}
			var chi float64
			for _, l := range left {
				want := n * l.Probability
				chi += (counts[l.ID] - want) * (counts[l.ID] - want) / want
				delete(counts, l.ID)
			}
			if len(counts) > 0 {
				t.Errorf("drew %v, which the chain drops", counts)
			}
			// 0.01 % of the chi-square distribution, by Wilson and Hilferty
			k := float64(max(1, len(left)-1))
			if limit := k * math.Pow(1-2/(9*k)+3.719*math.Sqrt(2/(9*k)), 3); chi > limit {
				t.Errorf("chi-square is %.1f, more than %.1f", chi, limit)
			}
		})
	}
}

func ExampleBeams() {
	rows := map[int][]float32{0: {0, 1, 2}, 1: {0, 0, 1}, 2: {3, 0, 0}}
	b := sample.NewBeams(2, 3, 1, nil)
	for len(b.Live()) > 0 {
		var next [][]float32
		for _, beam := range b.Live() {
			last := 0
			if n := len(beam.IDs); n > 0 {
				last = int(beam.IDs[n-1])
			}
			next = append(next, rows[last])
		}
		b.Advance(next)
	}
	for _, beam := range b.Done() {
		fmt.Printf("%v %.3f\n", beam.IDs, beam.Score)
	}
	// Output:
	// [2 0 2] -0.303
	// [2 0 1] -0.637
}
