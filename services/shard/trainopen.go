package shard

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

func checkTrainOpen(o *shardv1.TrainOpen) error {
	switch {
	case o == nil:
		return fault.Field("open", "must be the first frame")
	case o.GetRun() == "" || len(o.GetRun()) > 128:
		return fault.Field("open.run", "must be a name of at most 128 bytes")
	case len(o.GetChain()) != idLen:
		return fault.Field("open.chain", "%d bytes, want %d", len(o.GetChain()), idLen)
	case o.GetStages() == 0 || o.GetStages() > maxStages || o.GetStage() >= o.GetStages():
		return fault.Field("open.stage", "%d of %d stages", o.GetStage(), o.GetStages())
	case o.GetSlots() == 0 || o.GetSlots() > maxSlots:
		return fault.Field("open.slots", "%d are not within 1..%d", o.GetSlots(), maxSlots)
	case o.GetReplicas() == 0 || o.GetReplicas() > o.GetSlots() || o.GetReplica() >= o.GetReplicas():
		return fault.Field("open.replica", "%d of %d replicas, %d slots", o.GetReplica(), o.GetReplicas(), o.GetSlots())
	case o.GetSlotSequences() == 0 || o.GetSequenceLen() == 0 || o.GetSequenceLen() > maxPosition ||
		uint64(o.GetSlotSequences())*uint64(o.GetSequenceLen()) > 1<<22:
		return fault.Field("open.slot_sequences", "%d sequences of %d tokens", o.GetSlotSequences(), o.GetSequenceLen())
	case !(o.GetZLoss() >= 0 && o.GetZLoss() <= 1):
		return fault.Field("open.z_loss", "%v is not within 0..1", o.GetZLoss())
	case o.GetPrecision() > shardv1.Precision_PRECISION_BFLOAT16 || o.GetPrecision() < 0:
		return fault.Field("open.precision", "unknown precision %d", o.GetPrecision())
	case len(o.GetSpans()) == 0 || len(o.GetSpans()) > schedule.MaxSpans || len(o.GetSpans()) > 1 && o.GetStages() == 1:
		return fault.Field("open.spans", "%d spans on each of %d stages", len(o.GetSpans()), o.GetStages())
	case (o.GetNext() == "") != (o.GetStage() == o.GetStages()-1 && len(o.GetSpans()) == 1):
		return fault.Field("open.next", "must be set on every stage but the last")
	}
	for name, rate := range map[string]float64{"attention": o.GetDropout().GetAttention(),
		"residual": o.GetDropout().GetResidual(), "embedding": o.GetDropout().GetEmbedding()} {
		if !(rate >= 0 && rate < 1) {
			return fault.Field("open.dropout."+name, "%v is not within 0..1, without 1", rate)
		}
	}
	shape := schedule.Config{Name: o.GetSchedule(), Stages: int(o.GetStages()), Spans: len(o.GetSpans()), Micro: 1}
	if err := shape.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "open")
	}
	if o.GetStorage() > shardv1.Precision_PRECISION_BFLOAT16 || o.GetStorage() < 0 {
		return fault.Field("open.storage", "unknown precision %d", o.GetStorage())
	}
	if o.GetStorage() == shardv1.Precision_PRECISION_BFLOAT16 && o.GetAdapter() != nil {
		return fault.Field("open.storage", "a run of an adapter steps none of the matrices that would be rounded")
	}
	if err := checkShare(o); err != nil {
		return err
	}
	if err := checkObjective(o); err != nil {
		return err
	}
	if o.GetAdapter() != nil && (o.GetInitial() == nil || o.GetDiloco() != nil) {
		return fault.Field("open.adapter", "needs initial weights, and no diloco")
	}
	config := optimizer(o.GetOptimizer())
	if err := config.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "open.optimizer")
	}
	return checkGradients(o)
}

// checkGradients checks how gradients are encoded.
func checkGradients(o *shardv1.TrainOpen) error {
	g := o.GetGradients()
	c := codec(o)
	if err := c.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "open.gradients")
	}
	if !(g.GetMaxNorm() >= 0) {
		return fault.Field("open.gradients.max_norm", "%v is not at least 0", g.GetMaxNorm())
	}
	if c.Exact() || o.GetDiloco() != nil {
		return checkDiloco(o)
	}
	if err := schedule.CheckLevel("open.gradients.nodes", int(o.GetSlots()), int(g.GetNodes())); err != nil {
		return err
	}
	if o.GetReplicas() > g.GetNodes() {
		return fault.Field("open.replicas", "%d replicas for %d nodes", o.GetReplicas(), g.GetNodes())
	}
	return nil
}

// optimizer converts the settings of the optimizer.
func optimizer(o *shardv1.Optimizer) optim.Config {
	a, m, g := o.GetAdamw(), o.GetMuon(), o.GetSgd()
	out := optim.Config{
		Name:  o.GetName(),
		AdamW: optim.AdamW{Beta1: a.GetBeta1(), Beta2: a.GetBeta2(), Epsilon: a.GetEpsilon()},
		Muon: optim.Muon{Momentum: m.GetMomentum(), Nesterov: m.GetNesterov(), Iterations: int(m.GetIterations()),
			MatchAdamW: m.GetMatchAdamw()},
		SGD:   optim.SGD{Momentum: g.GetMomentum(), Nesterov: g.GetNesterov()},
		Decay: o.GetDecay(), DecayMatricesOnly: o.GetDecayMatricesOnly(),
	}
	for _, r := range o.GetRules() {
		out.Rules = append(out.Rules, optim.Rule{Match: r.GetMatch(), Optimizer: r.GetOptimizer(), Rate: r.LearningRate,
			Decay: r.Decay, Trainable: r.Trainable})
	}
	return out
}
