package shard

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

// rolloutSlot computes the losses of the rollouts of a slot. Its pass runs as served, so that the log-probability of a
// token has the bits that the sampler has reported if the weights are those that it was sampled with. Any difference
// is counted.
type rolloutSlot struct {
	loss     tuning.GRPO
	rollouts []*shardv1.Rollout
	rows     [][2]int // of each document
	targets  []int32
	base     bool // only the log-probabilities are wanted
	losses   []*shardv1.RolloutLoss
}

// newRolloutSlot checks the rollouts of a microbatch.
func newRolloutSlot(g *shardv1.GRPO, m *shardv1.Microbatch, in *model.Micro[float32], base bool) (*rolloutSlot, error) {
	const field = "microbatch.rollouts"
	r := &rolloutSlot{loss: tuning.GRPO{ClipLow: g.GetClipLow(), ClipHigh: g.GetClipHigh(), KL: g.GetKl()},
		rollouts: m.GetRollouts(), targets: in.Targets, base: base}
	var answers []uint32
	for _, o := range r.rollouts {
		answers = append(answers, o.GetDocument())
	}
	var err error
	if r.rows, err = answerRows(field, answers, in); err != nil {
		return nil, err
	}
	for i, o := range r.rollouts {
		rows := r.rows[o.GetDocument()]
		n := countTargets(r.targets[rows[0]:rows[1]])
		wantKL := g.GetKl() > 0 && !base
		if len(o.GetLogprobs()) != n || wantKL != (len(o.GetReference()) == n) || !wantKL && len(o.GetReference()) > 0 {
			return nil, fault.Field(field, "rollout %d has %d log-probabilities and %d of the reference for %d tokens", i,
				len(o.GetLogprobs()), len(o.GetReference()), n)
		}
		if a := o.GetAdvantage(); !finite(a) {
			return nil, fault.Field(field, "the advantage of rollout %d is %v", i, a)
		}
		for _, values := range [][]float32{o.GetLogprobs(), o.GetReference()} {
			for k, v := range values {
				if !finite(float64(v)) {
					return nil, fault.Field(field, "a log-probability of token %d of rollout %d is %v", k, i, v)
				}
			}
		}
	}
	return r, nil
}

// finite reports whether v is neither infinite nor NaN.
func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// weigh computes the losses of the tokens.
func (r *rolloutSlot) weigh(loss []float64) []float64 {
	weights := make([]float64, len(loss))
	for _, o := range r.rollouts {
		out := &shardv1.RolloutLoss{}
		rows := r.rows[o.GetDocument()]
		for row := rows[0]; row < rows[1]; row++ {
			if r.targets[row] < 0 {
				continue
			}
			i := int(out.GetTokens())
			out.Tokens++
			got, sampled := float32(-loss[row]), o.GetLogprobs()[i] // in the precision that samplers report
			if r.base {
				out.Logprobs = append(out.Logprobs, got)
				continue
			}
			if got != sampled { // the bits of finite numbers differ, but for zeros
				out.Mismatched++
				out.Difference = max(out.GetDifference(), math.Abs(float64(got)-float64(sampled)))
			}
			reference := 0.0
			if r.loss.KL > 0 {
				reference = float64(o.GetReference()[i])
			}
			l := r.loss.Token(float64(got), float64(sampled), reference, o.GetAdvantage())
			weights[row] = -l.Slope // with respect to the negative log-likelihood
			out.Loss += l.Loss
			out.Kl += l.KL
			if l.Clipped {
				out.Clipped++
			}
		}
		r.losses = append(r.losses, out)
	}
	return weights
}

// report adds the losses, summed in the order of the rollouts.
func (r *rolloutSlot) report(out *shardv1.Loss) {
	out.Rollouts = r.losses
	for _, l := range r.losses {
		out.Sum += l.GetLoss()
		out.Targets += uint64(l.GetTokens())
	}
}
