package shard

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

// A slot has both answers of its pairs, so the last stage computes the losses of pairs on its own, between the
// forward and the backward pass: first the sums of log-probabilities of all answers, and from them the derivative of
// the loss with respect to each sum. It is the same for all tokens of an answer, and their gradients are multiplied
// by it. Nothing depends on other slots, so layouts do not change a bit.

// pairSlot computes the losses of the pairs of a slot.
type pairSlot struct {
	dpo    *shardv1.DPO
	pairs  []*shardv1.Pair
	rows   [][2]int // of each document
	losses []*shardv1.PairLoss
}

// newPairSlot checks the pairs of a microbatch.
func newPairSlot(dpo *shardv1.DPO, m *shardv1.Microbatch, in *model.Micro[float32]) (*pairSlot, error) {
	p := &pairSlot{dpo: dpo, pairs: m.GetPairs()}
	var answers []uint32
	for i, pair := range p.pairs {
		answers = append(answers, pair.GetChosen(), pair.GetRejected())
		if !finite(pair.GetReferenceChosen()) || !finite(pair.GetReferenceRejected()) {
			return nil, fault.Field("microbatch.pairs", "the reference of pair %d has the sums %v and %v", i,
				pair.GetReferenceChosen(), pair.GetReferenceRejected())
		}
	}
	var err error
	p.rows, err = answerRows("microbatch.pairs", answers, in)
	return p, err
}

// weigh computes the losses of the pairs, given the negative log-likelihoods of all rows, and returns the derivative
// of their sum with respect to each of these.
func (p *pairSlot) weigh(loss []float64) []float64 {
	weights := make([]float64, len(loss))
	sum := func(document uint32) (sum float64) {
		rows := p.rows[document]
		for _, l := range loss[rows[0]:rows[1]] { // masked rows have none
			sum -= l
		}
		return sum
	}
	set := func(document uint32, w float64) {
		for r := p.rows[document][0]; r < p.rows[document][1]; r++ {
			weights[r] = w
		}
	}
	for _, pair := range p.pairs {
		policy := tuning.Sums{Chosen: sum(pair.GetChosen()), Rejected: sum(pair.GetRejected())}
		l := tuning.DPOPair(policy, tuning.Sums{Chosen: pair.GetReferenceChosen(),
			Rejected: pair.GetReferenceRejected()}, p.dpo.GetBeta(), p.dpo.GetSmoothing())
		set(pair.GetChosen(), -l.Slopes.Chosen)
		set(pair.GetRejected(), -l.Slopes.Rejected)
		p.losses = append(p.losses, &shardv1.PairLoss{Chosen: policy.Chosen, Rejected: policy.Rejected,
			Margin: l.Margin, Loss: l.Loss})
	}
	return weights
}

// report adds the losses, summed in the order of the pairs.
func (p *pairSlot) report(out *shardv1.Loss) {
	out.Targets, out.Pairs = uint64(len(p.losses)), p.losses
	for _, l := range p.losses {
		out.Sum += l.GetLoss()
	}
}
