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

// checkObjective checks what a run minimizes.
func checkObjective(o *shardv1.TrainOpen) error {
	if o.GetObjective() == nil {
		return nil
	}
	d := o.GetObjective().GetDpo()
	switch {
	case d == nil:
		return fault.Field("open.objective", "want dpo")
	case !o.GetIsolateDocuments() || o.GetZLoss() != 0 || o.GetDiloco() != nil:
		return fault.Field("open.objective", "needs isolate_documents and excludes z_loss and diloco")
	case !(d.GetBeta() > 0 && d.GetBeta() <= 1e6):
		return fault.Field("open.objective.dpo.beta", "%v is not a positive number", d.GetBeta())
	case !(d.GetSmoothing() >= 0 && d.GetSmoothing() < 0.5):
		return fault.Field("open.objective.dpo.smoothing", "%v is not within 0..0.5", d.GetSmoothing())
	}
	return nil
}

// pairSlot computes the losses of the pairs of a slot.
type pairSlot struct {
	dpo     *shardv1.DPO
	pairs   []*shardv1.Pair
	rows    [][2]int // of each document
	losses  []*shardv1.PairLoss
	targets []int32
}

// pairsOf returns the pairs of a microbatch, or nil if the run minimizes the negative log-likelihood. Every target
// must belong to one answer.
func (s *stepRun) pairsOf(m *shardv1.Microbatch, in *model.Micro[float32]) (*pairSlot, error) {
	d := s.open.GetObjective().GetDpo()
	if d == nil || len(in.Picks) > 0 {
		if len(m.GetPairs()) > 0 {
			return nil, fault.Field("microbatch.pairs", "%d pairs, but nothing compares them", len(m.GetPairs()))
		}
		return nil, nil
	}
	p := &pairSlot{dpo: d, pairs: m.GetPairs(), targets: in.Targets}
	at := 0
	for _, n := range in.Documents {
		p.rows, at = append(p.rows, [2]int{at, at + n}), at+n
	}
	if at != len(in.Targets) || len(p.pairs) == 0 {
		return nil, fault.Field("microbatch.pairs", "%d pairs in documents of %d rows, with %d targets", len(p.pairs), at,
			len(in.Targets))
	}
	left := 0
	for _, id := range in.Targets {
		if id >= 0 {
			left++
		}
	}
	used := make([]bool, len(p.rows))
	for i, pair := range p.pairs {
		for _, doc := range []uint32{pair.GetChosen(), pair.GetRejected()} {
			if int64(doc) >= int64(len(p.rows)) || used[doc] {
				return nil, fault.Field("microbatch.pairs", "document %d of pair %d is not one of %d, or has been used", doc,
					i, len(p.rows))
			}
			used[doc] = true
			n := p.count(doc)
			if n == 0 {
				return nil, fault.Field("microbatch.pairs", "document %d of pair %d has no targets", doc, i)
			}
			left -= n
		}
	}
	if left != 0 {
		return nil, fault.Field("microbatch.pairs", "%d targets belong to no answer", left)
	}
	return p, nil
}

// count counts the targets of a document.
func (p *pairSlot) count(document uint32) int {
	n, rows := 0, p.rows[document]
	for _, id := range p.targets[rows[0]:rows[1]] {
		if id >= 0 {
			n++
		}
	}
	return n
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

// reportPairs reports the losses of a slot, summed in the order of the pairs.
func (s *stepRun) reportPairs(slot int, p *pairSlot) error {
	out := &shardv1.Loss{Step: s.step.GetStep(), Slot: uint32(slot), Targets: uint64(len(p.losses)), Pairs: p.losses}
	for _, l := range p.losses {
		out.Sum += l.GetLoss()
	}
	return s.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Loss{Loss: out}})
}
