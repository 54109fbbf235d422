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

// bounds checks everything in a request that does not depend on its model: every number, list and
// text, by the table in pkg/samplerules. An error names the field.
func (q *request) bounds() error {
	if err := q.checkPolicy(); err != nil {
		return err
	}
	s := q.sampling
	switch {
	case s != nil && s.RepetitionPenalty != nil && s.GetRepetitionPenalty() == 0:
		return fault.Field("sampling.repetition_penalty", "0 cannot divide a logit; 1 turns the penalty off")
	case q.maxTokens > samplerules.MaxTokens:
		return fault.Field("max_tokens", "%d is more than %d", q.maxTokens, samplerules.MaxTokens)
	case q.top > samplerules.MaxTopLogprobs:
		return fault.Field("top_logprobs", "%d is more than %d", q.top, samplerules.MaxTopLogprobs)
	case len(q.stop) > samplerules.MaxStops:
		return fault.Field("stop", "%d texts are more than %d", len(q.stop), samplerules.MaxStops)
	case len(s.GetBadWords()) > samplerules.MaxBadTexts:
		return fault.Field("sampling.bad_words", "%d texts are more than %d", len(s.GetBadWords()),
			samplerules.MaxBadTexts)
	}
	for i, word := range s.GetBadWords() {
		if word == "" || len(word) > samplerules.MaxBadBytes {
			return fault.Field(
				fmt.Sprintf("sampling.bad_words[%d]", i), "%d bytes are not within 1..%d", len(word),
				samplerules.MaxBadBytes,
			)
		}
	}
	for i, stop := range q.stop {
		if stop == "" || len(stop) > samplerules.MaxStopBytes {
			return fault.Field(fmt.Sprintf("stop[%d]", i), "%d bytes are not within 1..%d", len(stop),
				samplerules.MaxStopBytes)
		}
	}
	_, err := picker(q.samplerRules(&modelInfo{}))
	return err
}

// encodeBadWords encodes the bad words that were given as texts. Each is encoded twice: as the
// start of a word and as a part of one.
func (q *request) encodeBadWords(ctx context.Context, t tokenizerv1.TokenizerServiceClient) error {
	words := q.sampling.GetBadWords()
	if len(words) == 0 {
		return nil
	}
	var texts []string
	var of []int // the index of each text's word
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
		return fault.New(fault.Internal, "encode bad words: %d encodings of %d texts", len(resp.GetEncodings()),
			len(texts))
	}
	q.badWords = nil
	for i, e := range resp.GetEncodings() {
		ids := e.GetIds()
		if len(ids) == 0 || len(ids) > samplerules.MaxPhraseIDs {
			return fault.Field(
				fmt.Sprintf("sampling.bad_words[%d]", of[i]), "%q is encoded as %d ids, which is not within 1..%d",
				texts[i],
				len(ids), samplerules.MaxPhraseIDs,
			)
		}
		same := func(w *samplerv1.Ids) bool { return slices.Equal(w.GetIds(), ids) }
		if !slices.ContainsFunc(q.badWords, same) {
			q.badWords = append(q.badWords, &samplerv1.Ids{Ids: ids})
		}
	}
	return nil
}

// samplerRules returns the sampling parameters with their defaults.
func (q *request) samplerRules(info *modelInfo) *samplerv1.Rules {
	s := withDefaults(q.sampling, info.vocabulary.GetDefaults())
	r := &samplerv1.Rules{
		Temperature: 1, TopK: s.GetTopK(), TopP: s.GetTopP(), MinP: s.GetMinP(),
		RepetitionPenalty: s.GetRepetitionPenalty(),
		FrequencyPenalty:  s.GetFrequencyPenalty(), PresencePenalty: s.GetPresencePenalty(),
		LogitBias: s.GetLogitBias(),
		MaxTokens: q.maxTokens, TopLogprobs: q.top, Advanced: s.GetAdvanced(), Choice: s.GetChoice(),
		Grammar: s.GetGrammar(),
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
		r.TopP = math.SmallestNonzeroFloat32 // keeps only the best id; to the sampler 0 would mean all
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

// picker checks the sampling parameters as the sampler does. The Picker knows how many candidates
// they need.
func picker(r *samplerv1.Rules) (*sample.Picker, error) {
	rules, err := samplerules.Read("sampling.", r)
	if err != nil {
		return nil, err
	}
	return sample.NewPicker(rules)
}
