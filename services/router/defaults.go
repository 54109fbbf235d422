package router

import (
	"slices"

	"google.golang.org/protobuf/proto"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

// withDefaults returns a request's sampling parameters and fills those that the request leaves out
// with the model's defaults. It changes neither argument. An advanced parameter of 0 counts as left
// out. If the request gives the order of its samplers, defaults of samplers outside that order are
// not applied, because a sampler that is on must be in the order.
func withDefaults(s *routerv1.Sampling, d *tokenizerv1.GenerationDefaults) *routerv1.Sampling {
	out := &routerv1.Sampling{}
	if s != nil {
		out = proto.CloneOf(s)
	}
	if d == nil {
		return out
	}
	order := out.GetAdvanced().GetOrder()
	runs := func(rule string) bool { return len(order) == 0 || slices.Contains(order, rule) }
	for _, f := range []struct {
		rule string
		to   **float32
		from *float32
	}{
		{"temperature", &out.Temperature, d.Temperature}, {"top_p", &out.TopP, d.TopP}, {"min_p", &out.MinP, d.MinP},
		{"repetition_penalty", &out.RepetitionPenalty, d.RepetitionPenalty},
	} {
		if *f.to == nil && runs(f.rule) {
			*f.to = f.from
		}
	}
	if out.TopK == nil && runs("top_k") {
		out.TopK = d.TopK
	}
	a := &samplerv1.Advanced{}
	if out.Advanced != nil {
		a = out.GetAdvanced()
	}
	for _, f := range []struct {
		rule string
		to   *float32
		from *float32
	}{
		{"typical_p", &a.TypicalP, d.TypicalP}, {"epsilon_cutoff", &a.EpsilonCutoff, d.EpsilonCutoff},
		{"eta_cutoff", &a.EtaCutoff, d.EtaCutoff},
	} {
		if *f.to == 0 && f.from != nil && runs(f.rule) {
			*f.to = *f.from
		}
	}
	if a.GetNoRepeatNgram() == 0 && runs("no_repeat_ngram") {
		a.NoRepeatNgram = d.GetNoRepeatNgram()
	}
	if a.GetMinTokens() == 0 && runs("min_tokens") {
		a.MinTokens = d.GetMinTokens()
	}
	if proto.Size(a) > 0 {
		out.Advanced = a
	}
	return out
}
