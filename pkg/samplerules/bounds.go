package samplerules

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// These are the bounds of counts and lists, including those of the router's own fields.
const (
	MaxTopLogprobs = 20      // top_logprobs
	MaxTokens      = 1 << 24 // max_tokens
	MaxVocab       = 1 << 24 // ids of a vocabulary, and so top_k
	MaxBiases      = 1024    // entries of logit_bias
	MaxPhrases     = 4096    // bad_words and dry_breakers, as lists of ids
	MaxPhraseIDs   = 64      // ids of one of those
	MaxEndIDs      = 1024    // end_ids
	MaxGrammar     = 1 << 20 // bytes of a grammar's source
	MaxStops       = 16      // stop
	MaxStopBytes   = 1024    // bytes of one stop string
	MaxBadTexts    = 256     // bad_words, as texts
	MaxBadBytes    = 256     // bytes of one of those
	MaxTools       = 512     // tools_json
)

// number is a field with its bounds, both inclusive.
type number struct {
	name     string
	value    float32
	min, max float64
}

// count is a field that counts something, from 0 to a bound.
type count struct {
	name  string
	value uint64
	max   uint64
}

// numbers is the table of bounds on real-valued sampling parameters.
func numbers(r *samplerv1.Rules) []number {
	a := r.GetAdvanced()
	return []number{
		{"temperature", r.GetTemperature(), 0, 100},
		{"top_p", r.GetTopP(), 0, 1},
		{"min_p", r.GetMinP(), 0, 1},
		{"repetition_penalty", r.GetRepetitionPenalty(), 0, 100},
		{"frequency_penalty", r.GetFrequencyPenalty(), -2, 2},
		{"presence_penalty", r.GetPresencePenalty(), -2, 2},
		{"advanced.typical_p", a.GetTypicalP(), 0, 1},
		{"advanced.top_n_sigma", a.GetTopNSigma(), 0, 100},
		{"advanced.epsilon_cutoff", a.GetEpsilonCutoff(), 0, 1},
		{"advanced.eta_cutoff", a.GetEtaCutoff(), 0, 1},
		{"advanced.xtc_probability", a.GetXtcProbability(), 0, 1},
		{"advanced.xtc_threshold", a.GetXtcThreshold(), 0, 1},
		{"advanced.dynamic_range", a.GetDynamicRange(), 0, 100},
		{"advanced.dynamic_exponent", a.GetDynamicExponent(), 0, 100},
		{"advanced.dry_multiplier", a.GetDryMultiplier(), 0, 100},
		{"advanced.dry_base", a.GetDryBase(), 0, 100},
		{"advanced.mirostat_tau", a.GetMirostatTau(), 0, 100},
		{"advanced.mirostat_eta", a.GetMirostatEta(), 0, 1},
	}
}

// counts is the table of bounds on counts and on the lengths of lists.
func counts(r *samplerv1.Rules) []count {
	a := r.GetAdvanced()
	return []count{
		{"top_logprobs", uint64(r.GetTopLogprobs()), MaxTopLogprobs},
		{"top_k", uint64(r.GetTopK()), MaxVocab},
		{"max_tokens", uint64(r.GetMaxTokens()), MaxTokens},
		{"choice", uint64(r.GetChoice()), math.MaxInt32},
		{"logit_bias", uint64(len(r.GetLogitBias())), MaxBiases},
		{"end_ids", uint64(len(r.GetEndIds())), MaxEndIDs},
		{"advanced.mirostat", uint64(a.GetMirostat()), 2},
		{"advanced.bad_words", uint64(len(a.GetBadWords())), MaxPhrases},
		{"advanced.dry_breakers", uint64(len(a.GetDryBreakers())), MaxPhrases},
		{"advanced.no_repeat_ngram", uint64(a.GetNoRepeatNgram()), math.MaxInt32},
		{"advanced.dry_allowed_length", uint64(a.GetDryAllowedLength()), math.MaxInt32},
		{"advanced.dry_last_n", uint64(a.GetDryLastN()), math.MaxInt32},
		{"advanced.min_tokens", uint64(a.GetMinTokens()), math.MaxInt32},
		{"advanced.penalty_last_n", uint64(a.GetPenaltyLastN()), math.MaxInt32},
	}
}

// maxBias is the largest absolute value of a logit_bias.
const maxBias = 100

// check compares rules with the tables. The error names the first field that is out of its bounds,
// after prefix. The condition is written so that NaN is refused.
func check(prefix string, r *samplerv1.Rules) error {
	for _, f := range numbers(r) {
		if v := float64(f.value); !(v >= f.min && v <= f.max) {
			return fault.Field(prefix+f.name, "%v is not within %v..%v", f.value, f.min, f.max)
		}
	}
	for _, f := range counts(r) {
		if f.value > f.max {
			return fault.Field(prefix+f.name, "%d is more than %d", f.value, f.max)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.GetLogitBias())) {
		if bias := float64(r.GetLogitBias()[id]); !(bias >= -maxBias && bias <= maxBias) {
			return fault.Field(prefix+"logit_bias", "%v of id %d is not within %d..%d", bias, id, -maxBias, maxBias)
		}
	}
	for _, list := range phraseLists(r) {
		for i, p := range list.phrases {
			if n := len(p.GetIds()); n == 0 || n > MaxPhraseIDs {
				return fault.Field(fmt.Sprintf("%s%s[%d]", prefix, list.name, i), "%d ids are not within 1..%d", n,
					MaxPhraseIDs)
			}
		}
	}
	return checkIDs(prefix, r, MaxVocab)
}

type phraseList struct {
	name    string
	phrases []*samplerv1.Ids
}

func phraseLists(r *samplerv1.Rules) []phraseList {
	a := r.GetAdvanced()
	return []phraseList{{"advanced.bad_words", a.GetBadWords()}, {"advanced.dry_breakers", a.GetDryBreakers()}}
}

// CheckIDs returns an error if rules name an id outside a vocabulary of the given size. The error
// names the field, after prefix.
func CheckIDs(prefix string, r *samplerv1.Rules, vocab int) error {
	return checkIDs(prefix, r, min(vocab, MaxVocab))
}

func checkIDs(prefix string, r *samplerv1.Rules, vocab int) error {
	outside := func(field string, id uint32) error {
		return fault.Field(prefix+field, "id %d is outside the vocabulary of %d", id, vocab)
	}
	for _, id := range slices.Sorted(maps.Keys(r.GetLogitBias())) {
		if int64(id) >= int64(vocab) {
			return outside("logit_bias", id)
		}
	}
	for _, id := range r.GetEndIds() {
		if int64(id) >= int64(vocab) {
			return outside("end_ids", id)
		}
	}
	for _, list := range phraseLists(r) {
		for i, p := range list.phrases {
			for _, id := range p.GetIds() {
				if int64(id) >= int64(vocab) {
					return outside(fmt.Sprintf("%s[%d]", list.name, i), id)
				}
			}
		}
	}
	return nil
}
