package router

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// Bounds of a request's numbers.
const (
	maxStops     = 16
	maxStopLen   = 1024
	maxTop       = 20
	maxBiases    = 1024
	maxTokensCap = 1 << 24
	maxTopK      = 1 << 24
	maxBadWords  = 256
	maxBadText   = 256 // bytes of one
	maxBadIDs    = 64  // ids of one
)

// bounds checks every number of a request and names the field that is out of them.
func (q *request) bounds() error {
	s := q.sampling
	for _, f := range []struct {
		name     string
		v        float32
		min, max float64
	}{
		{"sampling.temperature", s.GetTemperature(), 0, 100}, {"sampling.top_p", s.GetTopP(), 0, 1}, {"sampling.min_p", s.GetMinP(), 0, 1},
		{"sampling.repetition_penalty", s.GetRepetitionPenalty(), 0, 100},
		{"sampling.frequency_penalty", s.GetFrequencyPenalty(), -2, 2}, {"sampling.presence_penalty", s.GetPresencePenalty(), -2, 2},
	} {
		if v := float64(f.v); !(v >= f.min && v <= f.max) {
			return fault.Field(f.name, "%v is not within %v..%v", f.v, f.min, f.max)
		}
	}
	switch {
	case s != nil && s.RepetitionPenalty != nil && s.GetRepetitionPenalty() == 0:
		return fault.Field("sampling.repetition_penalty", "0 divides nothing; 1 is off")
	case q.maxTokens > maxTokensCap:
		return fault.Field("max_tokens", "%d is more than %d", q.maxTokens, maxTokensCap)
	case s.GetTopK() > maxTopK:
		return fault.Field("sampling.top_k", "%d is more than %d", s.GetTopK(), maxTopK)
	case q.top > maxTop:
		return fault.Field("top_logprobs", "%d is more than %d", q.top, maxTop)
	case len(q.stop) > maxStops:
		return fault.Field("stop", "%d texts are more than %d", len(q.stop), maxStops)
	case len(s.GetLogitBias()) > maxBiases:
		return fault.Field("sampling.logit_bias", "%d entries are more than %d", len(s.GetLogitBias()), maxBiases)
	}
	if n := len(s.GetBadWords()); n > maxBadWords {
		return fault.Field("sampling.bad_words", "%d texts are more than %d", n, maxBadWords)
	}
	for i, word := range s.GetBadWords() {
		if word == "" || len(word) > maxBadText {
			return fault.Field(fmt.Sprintf("sampling.bad_words[%d]", i), "%d bytes are not within 1..%d", len(word), maxBadText)
		}
	}
	for i, stop := range q.stop {
		if stop == "" || len(stop) > maxStopLen {
			return fault.Field(fmt.Sprintf("stop[%d]", i), "%d bytes are not within 1..%d", len(stop), maxStopLen)
		}
	}
	if _, err := samplerules.Grammar("sampling.grammar", s.GetGrammar()); err != nil {
		return err
	}
	for id, bias := range s.GetLogitBias() {
		if !(bias >= -100 && bias <= 100) {
			return fault.Field("sampling.logit_bias", "%v of id %d is not within -100..100", bias, id)
		}
	}
	return nil
}

// encodeBadWords finds the ids of the bad words that are texts, as they are at the
// start of a word and within one.
func (q *request) encodeBadWords(ctx context.Context, t tokenizerv1.TokenizerServiceClient) error {
	words := q.sampling.GetBadWords()
	if len(words) == 0 {
		return nil
	}
	var texts []string
	var of []int // the word of each
	for i, word := range words {
		forms := []string{word}
		if bare := strings.TrimLeft(word, " "); bare != "" {
			forms = []string{bare, " " + bare}
		}
		for _, form := range forms {
			texts, of = append(texts, form), append(of, i)
		}
	}
	resp, err := t.EncodeBatch(ctx, &tokenizerv1.EncodeBatchRequest{Model: q.digest, Texts: texts, NoBos: true})
	if err != nil {
		return rpc.FromStatus(err)
	}
	if len(resp.GetEncodings()) != len(texts) {
		return fault.New(fault.Internal, "encode bad words: %d encodings of %d texts", len(resp.GetEncodings()), len(texts))
	}
	q.badWords = nil
	for i, e := range resp.GetEncodings() {
		ids := e.GetIds()
		if len(ids) == 0 || len(ids) > maxBadIDs {
			return fault.Field(fmt.Sprintf("sampling.bad_words[%d]", of[i]), "%q is %d ids, not within 1..%d", texts[i], len(ids), maxBadIDs)
		}
		same := func(w *samplerv1.Ids) bool { return slices.Equal(w.GetIds(), ids) }
		if !slices.ContainsFunc(q.badWords, same) {
			q.badWords = append(q.badWords, &samplerv1.Ids{Ids: ids})
		}
	}
	return nil
}

// samplerRules fills in the defaults.
func (q *request) samplerRules(info *modelInfo) *samplerv1.Rules {
	s := q.sampling
	r := &samplerv1.Rules{
		Temperature: 1, TopK: s.GetTopK(), TopP: s.GetTopP(), MinP: s.GetMinP(), RepetitionPenalty: s.GetRepetitionPenalty(),
		FrequencyPenalty: s.GetFrequencyPenalty(), PresencePenalty: s.GetPresencePenalty(), LogitBias: s.GetLogitBias(),
		MaxTokens: q.maxTokens, TopLogprobs: q.top, Advanced: s.GetAdvanced(), Choice: s.GetChoice(), Grammar: s.GetGrammar(),
	}
	if len(q.badWords) > 0 {
		r.Advanced = &samplerv1.Advanced{}
		proto.Merge(r.GetAdvanced(), s.GetAdvanced())
		r.Advanced.BadWords = append(r.Advanced.BadWords, q.badWords...)
	}
	if s != nil && s.Temperature != nil {
		r.Temperature = s.GetTemperature()
	}
	if s != nil && s.TopP != nil && s.GetTopP() == 0 {
		r.TopP = math.SmallestNonzeroFloat32 // the fewest that reach nothing: the best alone; the sampler reads 0 as all
	}
	if s != nil && s.Seed != nil {
		r.Seed = s.GetSeed()
	} else {
		r.Seed = drawSeed()
	}
	if !q.ignoreEnd {
		r.EndIds = info.vocabulary.GetEndIds()
	}
	return r
}

// picker checks the rules as the sampler will, and knows how many candidates they need.
func picker(r *samplerv1.Rules) (*sample.Picker, error) {
	rules, err := samplerules.Read("sampling.", r)
	if err != nil {
		return nil, err
	}
	return sample.NewPicker(rules)
}
