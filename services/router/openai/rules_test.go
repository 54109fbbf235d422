package openai

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

func TestRules_AreConvertedToTheWireFormat(t *testing.T) {
	var r rules
	err := json.Unmarshal(
		[]byte(
			`{"typical_p":0.5,"top_n_sigma":1,"epsilon_cutoff":0.25,"eta_cutoff":0.125,"xtc_probability":0.5,"xtc_threshold":0.25,
		"dynatemp_range":0.5,"dynatemp_exponent":2,"no_repeat_ngram_size":3,"bad_words_ids":[[1]],"bad_words":["x",[2,3]],"dry_multiplier":0.5,"dry_base":2,"dry_allowed_length":4,
		"dry_penalty_last_n":-1,"dry_sequence_breakers":[[9]],"mirostat":2,"mirostat_tau":4,"mirostat_eta":0.5,"min_tokens":7,"repeat_last_n":64,
		"samplers":["penalties","top_k","temp","typ_p"]}`,
		),
		&r,
	)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.advanced()
	if err != nil {
		t.Fatal(err)
	}
	want := &samplerv1.Advanced{
		TypicalP: 0.5, TopNSigma: 1, EpsilonCutoff: 0.25, EtaCutoff: 0.125, XtcProbability: 0.5, XtcThreshold: 0.25,
		DynamicRange: 0.5, DynamicExponent: 2,
		NoRepeatNgram: 3, BadWords: []*samplerv1.Ids{{Ids: []uint32{1}}, {Ids: []uint32{2, 3}}}, DryMultiplier: 0.5,
		DryBase: 2, DryAllowedLength: 4,
		DryBreakers: []*samplerv1.Ids{{Ids: []uint32{9}}}, Mirostat: 2, MirostatTau: 4, MirostatEta: 0.5, MinTokens: 7,
		PenaltyLastN: 64,
		Order: []string{"min_tokens", "logit_bias", "bad_words", "no_repeat_ngram", "repetition_penalty", "penalties",
			"top_k", "temperature", "typical_p", "mirostat"},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRules_RefusedByName(t *testing.T) {
	for text, field := range map[string]string{
		`{"min_tokens":-1}`: "min_tokens", `{"mirostat":-1}`: "mirostat",
		`{"dry_penalty_last_n":-2}`:      "dry_penalty_last_n",
		`{"samplers":["top_k","top-k"]}`: "samplers[1]", `{"samplers":["top_k","infill"]}`: "samplers[1]",
		`{"bad_words":["x",5]}`: "bad_words[1]", `{"dry_sequence_breakers":[[1],"x"]}`: "dry_sequence_breakers[1]",
	} {
		var r rules
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		if _, err := r.advanced(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestBestOf_RanksEachPromptsAnswers(t *testing.T) {
	answers := make([]answer, 6)
	for i, logprobs := range [][]float32{{-2, -2}, {-1, -3, -1}, {-5}, {-1}, {-1}, {-0.5, -2.5}} {
		for _, v := range logprobs {
			answers[i].tokens = append(answers[i].tokens, &routerv1.TokenEvent{Logprob: v})
		}
	}
	if got := bestOf(answers, 3, 2); !slices.Equal(got, []int{1, 0, 3, 4}) {
		t.Errorf("the best two of three are %v", got)
	}
}

func TestAPIField_ErrorsNameTheFieldsOfTheAPI(t *testing.T) {
	for field, want := range map[string]string{
		"sampling.top_p": "top_p", "sampling.advanced.order": "samplers",
		"sampling.advanced.bad_words[3]":    "bad_words[3]",
		"sampling.advanced.dry_breakers[0]": "dry_sequence_breakers[0]", "messages[1].role": "messages[1].role", "": "",
	} {
		if got := apiField(field); got != want {
			t.Errorf("%q is named %q, want %q", field, got, want)
		}
	}
}
