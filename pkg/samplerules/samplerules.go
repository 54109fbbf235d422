// Package samplerules reads the rules of pkg/sample from the wire. The sampler picks by
// them, and the router asks stages for as many candidates as they will need: both must
// read them alike.
package samplerules

import (
	"cmp"
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

// Bounds of lists and counts.
const (
	MaxTop     = 20 // top_logprobs
	maxVocab   = 1 << 24
	maxBiases  = 1 << 16
	maxPhrases = 4096 // bad words, breakers
	maxPhrase  = 64   // ids of one
	maxGrammar = 1 << 20
)

// Read checks every number; errors name the field, below prefix.
func Read(prefix string, r *samplerv1.Rules) (sample.Rules, error) {
	a := r.GetAdvanced()
	for _, f := range []struct {
		name     string
		v        float32
		min, max float64
	}{
		{"temperature", r.GetTemperature(), 0, 100}, {"top_p", r.GetTopP(), 0, 1}, {"min_p", r.GetMinP(), 0, 1},
		{"repetition_penalty", r.GetRepetitionPenalty(), 0, 100},
		{"frequency_penalty", r.GetFrequencyPenalty(), -100, 100}, {"presence_penalty", r.GetPresencePenalty(), -100, 100},
		{"advanced.typical_p", a.GetTypicalP(), 0, 1}, {"advanced.top_n_sigma", a.GetTopNSigma(), 0, 100},
		{"advanced.epsilon_cutoff", a.GetEpsilonCutoff(), 0, 1}, {"advanced.eta_cutoff", a.GetEtaCutoff(), 0, 1},
		{"advanced.xtc_probability", a.GetXtcProbability(), 0, 1}, {"advanced.xtc_threshold", a.GetXtcThreshold(), 0, 1},
		{"advanced.dynamic_range", a.GetDynamicRange(), 0, 100}, {"advanced.dynamic_exponent", a.GetDynamicExponent(), 0, 100},
		{"advanced.dry_multiplier", a.GetDryMultiplier(), 0, 100}, {"advanced.dry_base", a.GetDryBase(), 0, 100},
		{"advanced.mirostat", float32(a.GetMirostat()), 0, 2},
		{"advanced.mirostat_tau", a.GetMirostatTau(), 0, 100}, {"advanced.mirostat_eta", a.GetMirostatEta(), 0, 1},
	} {
		if v := float64(f.v); !(v >= f.min && v <= f.max) {
			return sample.Rules{}, fault.Field(prefix+f.name, "%v is not within %v..%v", f.v, f.min, f.max)
		}
	}
	for _, f := range []struct {
		name   string
		n, max uint64
	}{
		{"top_logprobs", uint64(r.GetTopLogprobs()), MaxTop}, {"top_k", uint64(r.GetTopK()), maxVocab}, {"max_tokens", uint64(r.GetMaxTokens()), math.MaxInt32},
		{"logit_bias", uint64(len(r.GetLogitBias())), maxBiases}, {"advanced.bad_words", uint64(len(a.GetBadWords())), maxPhrases},
		{"advanced.dry_breakers", uint64(len(a.GetDryBreakers())), maxPhrases}, {"advanced.no_repeat_ngram", uint64(a.GetNoRepeatNgram()), math.MaxInt32},
		{"advanced.dry_allowed_length", uint64(a.GetDryAllowedLength()), math.MaxInt32}, {"advanced.dry_last_n", uint64(a.GetDryLastN()), math.MaxInt32},
		{"advanced.min_tokens", uint64(a.GetMinTokens()), math.MaxInt32}, {"advanced.penalty_last_n", uint64(a.GetPenaltyLastN()), math.MaxInt32},
	} {
		if f.n > f.max {
			return sample.Rules{}, fault.Field(prefix+f.name, "%d is more than %d", f.n, f.max)
		}
	}
	out := sample.Rules{
		Temperature: wide(r.GetTemperature()), TopK: int(r.GetTopK()), TopP: wide(r.GetTopP()), MinP: wide(r.GetMinP()), Seed: r.GetSeed(),
		RepetitionPenalty: wide(r.GetRepetitionPenalty()), FrequencyPenalty: wide(r.GetFrequencyPenalty()),
		PresencePenalty: wide(r.GetPresencePenalty()), TopLogprobs: int(r.GetTopLogprobs()), Choice: r.GetChoice(),

		TypicalP: wide(a.GetTypicalP()), TopNSigma: wide(a.GetTopNSigma()), EpsilonCutoff: wide(a.GetEpsilonCutoff()), EtaCutoff: wide(a.GetEtaCutoff()),
		XTC:          sample.XTC{Probability: wide(a.GetXtcProbability()), Threshold: cmp.Or(wide(a.GetXtcThreshold()), 0.1)},
		DynamicRange: wide(a.GetDynamicRange()), DynamicExponent: wide(a.GetDynamicExponent()),
		NoRepeatNGram: int(a.GetNoRepeatNgram()), PenaltyLastN: int(a.GetPenaltyLastN()), Order: a.GetOrder(),
		DRY: sample.DRY{
			Multiplier: wide(a.GetDryMultiplier()), Base: cmp.Or(wide(a.GetDryBase()), 1.75),
			AllowedLength: int(cmp.Or(a.GetDryAllowedLength(), 2)), LastN: cmp.Or(int(a.GetDryLastN()), -1),
		},
		Mirostat: sample.Mirostat{Version: int(a.GetMirostat()), Tau: cmp.Or(wide(a.GetMirostatTau()), 5), Eta: cmp.Or(wide(a.GetMirostatEta()), 0.1)},
		Masked:   r.GetGrammar() != nil,
		Min:      sample.MinTokens{N: int(a.GetMinTokens()), Ends: ids(r.GetEndIds())},
	}
	var err error
	if out.DRY.Breakers, err = phrases(prefix+"advanced.dry_breakers", a.GetDryBreakers()); err != nil {
		return out, err
	}
	words, err := phrases(prefix+"advanced.bad_words", a.GetBadWords())
	if err != nil {
		return out, err
	}
	out.BadWords = sample.BadWords(words).Without(out.Min.Ends)
	for id, bias := range r.GetLogitBias() {
		if v := float64(bias); math.IsNaN(v) || math.IsInf(v, 1) {
			return out, fault.Field(prefix+"logit_bias", "%v of id %d is no bias", bias, id)
		}
		if out.LogitBias == nil {
			out.LogitBias = sample.LogitBias{}
		}
		out.LogitBias[int32(id)] = float64(bias)
	}
	if _, err := out.Chain(); err != nil {
		return out, fault.Field(prefix+"advanced.order", "%v", err)
	}
	return out, nil
}

// wide is a request's number.
func wide(v float32) float64 { return float64(v) }

// Grammar reads what a text is held to, nil for nothing. What cannot be honoured is an
// error that names it.
func Grammar(field string, g *samplerv1.Grammar) (*grammar.Grammar, error) {
	if g == nil {
		return nil, nil
	}
	if len(g.GetSource()) > maxGrammar {
		return nil, fault.Field(field+".source", "%d bytes are more than %d", len(g.GetSource()), maxGrammar)
	}
	var out *grammar.Grammar
	var err error
	switch g.GetKind() {
	case samplerv1.GrammarKind_GRAMMAR_KIND_GBNF:
		out, err = grammar.GBNF(g.GetSource())
	case samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA:
		out, err = grammar.Schema([]byte(g.GetSource()))
	case samplerv1.GrammarKind_GRAMMAR_KIND_REGEX:
		out, err = grammar.Regex(g.GetSource())
	case samplerv1.GrammarKind_GRAMMAR_KIND_TAGS:
		out, err = grammar.Structure([]byte(g.GetSource()))
	default:
		return nil, fault.Field(field+".kind", "%v is no kind of grammar", g.GetKind())
	}
	if err != nil {
		return nil, fault.Field(field+".source", "%v", err)
	}
	return out, nil
}

func ids(wire []uint32) []int32 {
	out := make([]int32, len(wire))
	for i, id := range wire {
		out[i] = int32(id)
	}
	return out
}

func phrases(field string, wire []*samplerv1.Ids) ([][]int32, error) {
	var out [][]int32
	for i, p := range wire {
		if n := len(p.GetIds()); n == 0 || n > maxPhrase {
			return nil, fault.Field(fmt.Sprintf("%s[%d]", field, i), "%d ids are not within 1..%d", n, maxPhrase)
		}
		out = append(out, ids(p.GetIds()))
	}
	return out, nil
}
