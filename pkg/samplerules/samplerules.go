package samplerules

import (
	"cmp"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

// Read checks rules against the table of bounds and converts them to the Rules of pkg/sample. An
// error names the field, after prefix.
func Read(prefix string, r *samplerv1.Rules) (sample.Rules, error) {
	if err := check(prefix, r); err != nil {
		return sample.Rules{}, err
	}
	a := r.GetAdvanced()
	out := sample.Rules{
		Temperature: wide(r.GetTemperature()), TopK: int(r.GetTopK()), TopP: wide(r.GetTopP()), MinP: wide(r.GetMinP()),
		Seed:              r.GetSeed(),
		RepetitionPenalty: wide(r.GetRepetitionPenalty()), FrequencyPenalty: wide(r.GetFrequencyPenalty()),
		PresencePenalty: wide(r.GetPresencePenalty()), TopLogprobs: int(r.GetTopLogprobs()), Choice: r.GetChoice(),

		TypicalP: wide(a.GetTypicalP()), TopNSigma: wide(a.GetTopNSigma()), EpsilonCutoff: wide(a.GetEpsilonCutoff()),
		EtaCutoff: wide(a.GetEtaCutoff()),
		XTC: sample.XTC{Probability: wide(a.GetXtcProbability()),
			Threshold: cmp.Or(wide(a.GetXtcThreshold()), 0.1)},
		DynamicRange: wide(a.GetDynamicRange()), DynamicExponent: wide(a.GetDynamicExponent()),
		NoRepeatNGram: int(a.GetNoRepeatNgram()), PenaltyLastN: int(a.GetPenaltyLastN()), Order: a.GetOrder(),
		DRY: sample.DRY{
			Multiplier: wide(a.GetDryMultiplier()), Base: cmp.Or(wide(a.GetDryBase()), 1.75),
			AllowedLength: int(cmp.Or(a.GetDryAllowedLength(), 2)), LastN: cmp.Or(int(a.GetDryLastN()), -1),
		},
		Mirostat: sample.Mirostat{
			Version: int(a.GetMirostat()), Tau: cmp.Or(wide(a.GetMirostatTau()), 5),
			Eta: cmp.Or(wide(a.GetMirostatEta()), 0.1),
		},
		Masked: r.GetGrammar() != nil,
		Min:    sample.MinTokens{N: int(a.GetMinTokens()), Ends: ids(r.GetEndIds())},
	}
	out.DRY.Breakers = phrases(a.GetDryBreakers())
	out.BadWords = sample.BadWords(phrases(a.GetBadWords())).Without(out.Min.Ends)
	for id, bias := range r.GetLogitBias() {
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

// wide converts a number of a request.
func wide(v float32) float64 { return float64(v) }

func ids(wire []uint32) []int32 {
	out := make([]int32, len(wire))
	for i, id := range wire {
		out[i] = int32(id)
	}
	return out
}

func phrases(wire []*samplerv1.Ids) [][]int32 {
	var out [][]int32
	for _, p := range wire {
		out = append(out, ids(p.GetIds()))
	}
	return out
}
