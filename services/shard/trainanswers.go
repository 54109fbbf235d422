package shard

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// answers are the answers of a slot, which an objective compares or has rewards for.
type answers interface {
	// weigh takes the negative log-likelihoods of all rows, and returns the derivative of the slot's loss with
	// respect to each.
	weigh(loss []float64) []float64
	// report adds the results to a slot's loss.
	report(out *shardv1.Loss)
}

// checkObjective checks what a run minimizes.
func checkObjective(o *shardv1.TrainOpen) error {
	if o.GetObjective() == nil {
		return nil
	}
	if !o.GetIsolateDocuments() || o.GetZLoss() != 0 || o.GetDiloco() != nil {
		return fault.Field("open.objective", "needs isolate_documents and excludes z_loss and diloco")
	}
	d, g := o.GetObjective().GetDpo(), o.GetObjective().GetGrpo()
	switch {
	case d != nil:
		switch {
		case !(d.GetBeta() > 0 && d.GetBeta() <= 1e6):
			return fault.Field("open.objective.dpo.beta", "%v is not a positive number", d.GetBeta())
		case !(d.GetSmoothing() >= 0 && d.GetSmoothing() < 0.5):
			return fault.Field("open.objective.dpo.smoothing", "%v is not within 0..0.5", d.GetSmoothing())
		}
	case g != nil:
		switch {
		case !(g.GetClipLow() > 0 && g.GetClipLow() <= 1):
			return fault.Field("open.objective.grpo.clip_low", "%v is not within 0..1", g.GetClipLow())
		case !(g.GetClipHigh() > 0 && g.GetClipHigh() <= 100):
			return fault.Field("open.objective.grpo.clip_high", "%v is not within 0..100", g.GetClipHigh())
		case !(g.GetKl() >= 0 && g.GetKl() <= 1e6):
			return fault.Field("open.objective.grpo.kl", "%v is not a number from 0", g.GetKl())
		case o.GetDropout() != nil || o.GetPrecision() == shardv1.Precision_PRECISION_BFLOAT16:
			return fault.Field("open.objective.grpo", "excludes dropout and bfloat16")
		}
	default:
		return fault.Field("open.objective", "want dpo or grpo")
	}
	return nil
}

// answersOf returns the answers of a microbatch, or nil if the run minimizes the negative log-likelihood.
func (s *stepRun) answersOf(m *shardv1.Microbatch, in *model.Micro[float32]) (answers, error) {
	o := s.open.GetObjective()
	if len(in.Picks) > 0 {
		o = nil
	}
	switch {
	case o.GetDpo() == nil && len(m.GetPairs()) > 0:
		return nil, fault.Field("microbatch.pairs", "%d pairs, but nothing compares them", len(m.GetPairs()))
	case o.GetGrpo() == nil && len(m.GetRollouts()) > 0:
		return nil, fault.Field("microbatch.rollouts", "%d rollouts, but nothing learns from them", len(m.GetRollouts()))
	case o.GetDpo() != nil:
		return newPairSlot(o.GetDpo(), m, in)
	case o.GetGrpo() != nil:
		return newRolloutSlot(o.GetGrpo(), m, in, s.step.GetBase())
	}
	return nil, nil
}

// answerRows returns the rows of all documents, after checking that each answer is a document of its own with
// targets, and that there are no other targets.
func answerRows(field string, answers []uint32, in *model.Micro[float32]) ([][2]int, error) {
	var rows [][2]int
	at := 0
	for _, n := range in.Documents {
		rows, at = append(rows, [2]int{at, at + n}), at+n
	}
	if at != len(in.Targets) || len(answers) == 0 {
		return nil, fault.Field(field, "%d answers in documents of %d rows, with %d targets", len(answers), at,
			len(in.Targets))
	}
	left := countTargets(in.Targets)
	used := make([]bool, len(rows))
	for i, doc := range answers {
		if int64(doc) >= int64(len(rows)) || used[doc] {
			return nil, fault.Field(field, "document %d of answer %d is not one of %d, or has been used", doc, i,
				len(rows))
		}
		used[doc] = true
		n := countTargets(in.Targets[rows[doc][0]:rows[doc][1]])
		if n == 0 {
			return nil, fault.Field(field, "document %d of answer %d has no targets", doc, i)
		}
		left -= n
	}
	if left != 0 {
		return nil, fault.Field(field, "%d targets belong to no answer", left)
	}
	return rows, nil
}

func countTargets(targets []int32) int {
	n := 0
	for _, id := range targets {
		if id >= 0 {
			n++
		}
	}
	return n
}
