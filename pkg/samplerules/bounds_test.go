package samplerules_test

import (
	"errors"
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// TestRead_NamesTheFieldOutOfBounds sets one field at a time, on either side of its bound.
func TestRead_NamesTheFieldOutOfBounds(t *testing.T) {
	for _, c := range []struct {
		field     string
		good, bad *samplerv1.Rules
	}{
		{"frequency_penalty", &samplerv1.Rules{FrequencyPenalty: -2}, &samplerv1.Rules{FrequencyPenalty: -2.1}},
		{"presence_penalty", &samplerv1.Rules{PresencePenalty: 2},
			&samplerv1.Rules{PresencePenalty: float32(math.NaN())}},
		{"temperature", &samplerv1.Rules{Temperature: 100}, &samplerv1.Rules{Temperature: float32(math.Inf(1))}},
		{
			"logit_bias", &samplerv1.Rules{LogitBias: map[uint32]float32{1: -100}},
			&samplerv1.Rules{LogitBias: map[uint32]float32{1: 101}},
		},
		{
			"logit_bias", &samplerv1.Rules{LogitBias: map[uint32]float32{1<<24 - 1: 1}},
			&samplerv1.Rules{LogitBias: map[uint32]float32{1 << 24: 1}},
		},
		{"end_ids", &samplerv1.Rules{EndIds: []uint32{7}}, &samplerv1.Rules{EndIds: []uint32{math.MaxUint32}}},
		{"top_logprobs", &samplerv1.Rules{TopLogprobs: 20}, &samplerv1.Rules{TopLogprobs: 21}},
		{"max_tokens", &samplerv1.Rules{MaxTokens: 1 << 24}, &samplerv1.Rules{MaxTokens: 1<<24 + 1}},
		{
			"advanced.bad_words[1]", &samplerv1.Rules{
				Advanced: &samplerv1.Advanced{BadWords: []*samplerv1.Ids{{Ids: []uint32{1}}}},
			},
			&samplerv1.Rules{Advanced: &samplerv1.Advanced{BadWords: []*samplerv1.Ids{{Ids: []uint32{1}}, {}}}},
		},
		{
			"advanced.mirostat", &samplerv1.Rules{Advanced: &samplerv1.Advanced{Mirostat: 2}},
			&samplerv1.Rules{Advanced: &samplerv1.Advanced{Mirostat: 3}},
		},
	} {
		if _, err := samplerules.Read("p.", c.good); err != nil {
			t.Errorf("%s within its bound: %v", c.field, err)
		}
		_, err := samplerules.Read("p.", c.bad)
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.Invalid || f.Field != "p."+c.field {
			t.Errorf("%s out of its bound: %v", c.field, err)
		}
	}
}

// TestCheckIDs_NamesTheFieldOutsideTheVocabulary compares ids with a small vocabulary.
func TestCheckIDs_NamesTheFieldOutsideTheVocabulary(t *testing.T) {
	r := &samplerv1.Rules{LogitBias: map[uint32]float32{9: 1}}
	if err := samplerules.CheckIDs("", r, 10); err != nil {
		t.Error(err)
	}
	var f *fault.Error
	if err := samplerules.CheckIDs("", r, 9); !errors.As(err, &f) || f.Field != "logit_bias" {
		t.Errorf("id 9 of 9: %v", err)
	}
}

// TestCompile_RefusesGrammarWithoutTexts compiles grammars that parse but match no text.
func TestCompile_RefusesGrammarWithoutTexts(t *testing.T) {
	g := &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX, Source: `(a+)+$(a+)+$`}
	var f *fault.Error
	if _, err := samplerules.Compile("g", g, nil); !errors.As(err, &f) || f.Field != "g.source" {
		t.Errorf("compiled: %v", err)
	}
}
