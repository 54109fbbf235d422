package openai

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// rules holds the sampling fields beyond OpenAI's, as llama.cpp's and vLLM's servers spell
// them.
type rules struct {
	TypicalP         float32           `json:"typical_p"`
	TopNSigma        float32           `json:"top_n_sigma"`
	EpsilonCutoff    float32           `json:"epsilon_cutoff"`
	EtaCutoff        float32           `json:"eta_cutoff"`
	XTCProbability   float32           `json:"xtc_probability"`
	XTCThreshold     float32           `json:"xtc_threshold"`
	DynamicRange     float32           `json:"dynatemp_range"`
	DynamicExponent  float32           `json:"dynatemp_exponent"`
	NoRepeatNGram    *int64            `json:"no_repeat_ngram_size"`
	BadWords         []json.RawMessage `json:"bad_words"` // texts or lists of ids
	BadWordIDs       [][]uint32        `json:"bad_words_ids"`
	DRYMultiplier    float32           `json:"dry_multiplier"`
	DRYBase          float32           `json:"dry_base"`
	DRYAllowedLength *int64            `json:"dry_allowed_length"`
	DRYLastN         *int64            `json:"dry_penalty_last_n"` // -1: all; 0: off
	// ids only: the tokens of a text depend on its context
	DRYBreakers   []json.RawMessage `json:"dry_sequence_breakers"`
	Mirostat      *int64            `json:"mirostat"`
	MirostatTau   float32           `json:"mirostat_tau"`
	MirostatEta   float32           `json:"mirostat_eta"`
	MinTokens     *int64            `json:"min_tokens"`
	RepeatLastN   *int64            `json:"repeat_last_n"` // -1: all
	RepeatPenalty *float32          `json:"repeat_penalty"`
	Samplers      []string          `json:"samplers"`
}

// count reads an integer; -1 means all, which is 0 on the wire.
func count(field string, v *int64, least int64) (uint32, error) {
	if v == nil {
		return 0, nil
	}
	if *v < least || *v > httpapi.MaxInteger {
		return 0, fault.Field(field, "%d is not within %d..%d", *v, least, httpapi.MaxInteger)
	}
	return uint32(max(*v, 0)), nil
}

// advanced converts the fields to the wire format. It returns nil if none is given.
func (r *rules) advanced() (*samplerv1.Advanced, error) {
	for _, f := range []struct {
		name string
		n    int
	}{
		{"bad_words_ids", len(r.BadWordIDs)}, {"bad_words", len(r.BadWords)},
		{"dry_sequence_breakers", len(r.DRYBreakers)},
	} {
		if f.n > samplerules.MaxPhrases {
			return nil, fault.Field(f.name, "%d is more than %d", f.n, samplerules.MaxPhrases)
		}
	}
	out := &samplerv1.Advanced{
		TypicalP: r.TypicalP, TopNSigma: r.TopNSigma, EpsilonCutoff: r.EpsilonCutoff, EtaCutoff: r.EtaCutoff,
		XtcProbability: r.XTCProbability, XtcThreshold: r.XTCThreshold, DynamicRange: r.DynamicRange,
		DynamicExponent: r.DynamicExponent,
		BadWords:        phrases(r.BadWordIDs), DryMultiplier: r.DRYMultiplier, DryBase: r.DRYBase,
		MirostatTau: r.MirostatTau, MirostatEta: r.MirostatEta,
	}
	for _, f := range []struct {
		name  string
		v     *int64
		least int64
		to    *uint32
	}{
		{"no_repeat_ngram_size", r.NoRepeatNGram, 0, &out.NoRepeatNgram},
		{"dry_allowed_length", r.DRYAllowedLength, 0, &out.DryAllowedLength},
		{"dry_penalty_last_n", r.DRYLastN, -1, &out.DryLastN}, {"mirostat", r.Mirostat, 0, &out.Mirostat},
		{"min_tokens", r.MinTokens, 0, &out.MinTokens}, {"repeat_last_n", r.RepeatLastN, -1, &out.PenaltyLastN},
	} {
		n, err := count(f.name, f.v, f.least)
		if err != nil {
			return nil, err
		}
		*f.to = n
	}
	if r.DRYLastN != nil && *r.DRYLastN == 0 {
		out.DryMultiplier = 0
	}
	for i, raw := range r.BadWords {
		var text string
		if given(raw) && json.Unmarshal(raw, &text) == nil {
			continue // the backend encodes it
		}
		var ids []uint32
		if json.Unmarshal(raw, &ids) != nil || len(ids) == 0 {
			return nil, fault.Field(fmt.Sprintf("bad_words[%d]", i), "want a string or a list of ids")
		}
		out.BadWords = append(out.BadWords, &samplerv1.Ids{Ids: ids})
	}
	for i, raw := range r.DRYBreakers {
		var ids []uint32
		if json.Unmarshal(raw, &ids) != nil || len(ids) == 0 {
			return nil, fault.Field(fmt.Sprintf("dry_sequence_breakers[%d]", i),
				"want a list of ids: strings are not supported")
		}
		out.DryBreakers = append(out.DryBreakers, &samplerv1.Ids{Ids: ids})
	}
	var err error
	if out.Order, err = order(r.Samplers, out.GetMirostat() != 0); err != nil {
		return nil, err
	}
	if proto.Equal(out, &samplerv1.Advanced{}) {
		return nil, nil
	}
	return out, nil
}

// badWordsName returns the request's name of the i-th list of ids that advanced returned.
func (r *rules) badWordsName(i int) string {
	if i < len(r.BadWordIDs) {
		return fmt.Sprintf("bad_words_ids[%d]", i)
	}
	i -= len(r.BadWordIDs)
	for at, raw := range r.BadWords {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			continue
		}
		if i == 0 {
			return fmt.Sprintf("bad_words[%d]", at)
		}
		i--
	}
	return "bad_words"
}

// badTexts returns the bad words that are given as texts.
func (r *rules) badTexts() []string {
	var out []string
	for _, raw := range r.BadWords {
		var text string
		if given(raw) && json.Unmarshal(raw, &text) == nil {
			out = append(out, text)
		}
	}
	return out
}

func phrases(lists [][]uint32) []*samplerv1.Ids {
	var out []*samplerv1.Ids
	for _, ids := range lists {
		out = append(out, &samplerv1.Ids{Ids: ids})
	}
	return out
}

// order translates the names of samplers. Unless the list contains them, samplers that change
// single ids come first, and mirostat, which llama.cpp's lists do not have, comes last.
func order(samplers []string, mirostat bool) ([]string, error) {
	if len(samplers) == 0 {
		return nil, nil
	}
	var out []string
	for i, name := range samplers {
		names := []string{strings.ReplaceAll(name, "-", "_")}
		switch names[0] {
		case "penalties":
			names = []string{"repetition_penalty", "penalties"}
		case "typ_p", "typical", "typ":
			names = []string{"typical_p"}
		case "nucleus":
			names = []string{"top_p"}
		case "temp", "dynatemp":
			names = []string{"temperature"}
		}
		for _, n := range names {
			switch {
			case !slices.Contains(sample.DefaultOrder(), n):
				return nil, fault.Field(fmt.Sprintf("samplers[%d]", i), "unknown sampler %q", name)
			case slices.Contains(out, n):
				return nil, fault.Field(fmt.Sprintf("samplers[%d]", i), "%s is listed twice", n)
			}
			out = append(out, n)
		}
	}
	var first []string
	for _, name := range []string{"min_tokens", "logit_bias", "bad_words", "no_repeat_ngram"} {
		if !slices.Contains(out, name) {
			first = append(first, name)
		}
	}
	if mirostat && !slices.Contains(out, "mirostat") {
		out = append(out, "mirostat")
	}
	return append(first, out...), nil
}

// apiField returns this API's name of a field of the backend.
func apiField(field string) string {
	field, ok := strings.CutPrefix(strings.TrimPrefix(field, "sampling."), "advanced.")
	if !ok {
		for _, name := range [][2]string{{"tools_json", "tools"}, {"inputs", "input"}} {
			if rest, has := strings.CutPrefix(field, name[0]); has {
				return name[1] + rest
			}
		}
		return field
	}
	name, index, list := strings.Cut(field, "[")
	switch name {
	case "dynamic_range":
		name = "dynatemp_range"
	case "dynamic_exponent":
		name = "dynatemp_exponent"
	case "no_repeat_ngram":
		name = "no_repeat_ngram_size"
	case "dry_breakers":
		name = "dry_sequence_breakers"
	case "dry_last_n":
		name = "dry_penalty_last_n"
	case "penalty_last_n":
		name = "repeat_last_n"
	case "order":
		name = "samplers"
	}
	if list {
		name += "[" + index
	}
	return name
}

// bestOf ranks the m answers of each prompt by the mean log-probability of their tokens and returns
// the indices of the n best answers of each prompt.
func bestOf(answers []answer, m, n int) []int {
	mean := func(i int) float64 {
		var sum float64
		for _, t := range answers[i].tokens {
			sum += float64(t.GetLogprob())
		}
		return sum / float64(max(1, len(answers[i].tokens)))
	}
	var out []int
	for from := 0; from < len(answers); from += m {
		places := make([]int, m)
		for i := range places {
			places[i] = from + i
		}
		slices.SortStableFunc(places, func(a, b int) int {
			switch x, y := mean(a), mean(b); {
			case x > y:
				return -1
			case x < y:
				return 1
			}
			return 0
		})
		out = append(out, places[:n]...)
	}
	return out
}
