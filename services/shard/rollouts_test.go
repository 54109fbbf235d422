package shard_test

import (
	"math"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// rolloutOpening returns the first frame of a lone stage that trains the adapter of tiny-lora on rollouts.
func rolloutOpening(t *testing.T, kl float64) *shardv1.TrainOpen {
	t.Helper()
	o := pairOpening(t, "llama", 0.1, 1)
	o.Objective = &shardv1.Objective{Kind: &shardv1.Objective_Grpo{Grpo: &shardv1.GRPO{ClipLow: 0.2, ClipHigh: 0.2,
		Kl: kl}}}
	return o
}

// rolloutSlot returns a slot whose rollouts are the answers of a pair.
func rolloutSlot(v *pairVector) *shardv1.Microbatch {
	m := pairSlot(v, 0)
	m.Pairs = nil
	for i, answer := range [][]int32{v.Pairs[0].Chosen, v.Pairs[0].Rejected} {
		r := &shardv1.Rollout{Document: uint32(i), Advantage: 1 - 2*float64(i)}
		for range answer {
			r.Logprobs = append(r.Logprobs, -1)
		}
		m.Rollouts = append(m.Rollouts, r)
	}
	return m
}

// sendRollouts sends a step over one slot.
func (c *conversation) sendRollouts(v *pairVector, m *shardv1.Microbatch) {
	targets := uint64(len(v.Pairs[0].Chosen) + len(v.Pairs[0].Rejected))
	step := &shardv1.Step{Step: 1, Targets: targets, Slots: []uint32{0}}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: step}})
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: m}})
}

// TestTrain_RolloutsAreWeighed has a loss for each rollout, and counts the tokens whose log-probabilities differ from
// those that were sent.
func TestTrain_RolloutsAreWeighed(t *testing.T) {
	v := readPairVectors(t)["llama"]
	m := rolloutSlot(&v)
	tokens := []int{len(m.GetRollouts()[0].GetLogprobs()), len(m.GetRollouts()[1].GetLogprobs())}
	c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(rolloutOpening(t, 0))
	c.sendRollouts(&v, m)
	l := c.next().GetLoss()
	if len(l.GetRollouts()) != 2 || int(l.GetTargets()) != tokens[0]+tokens[1] {
		t.Fatalf("the loss is %v", l)
	}
	for i, r := range l.GetRollouts() {
		if int(r.GetTokens()) != tokens[i] || r.GetMismatched() != r.GetTokens() || !(r.GetDifference() > 0) ||
			math.IsInf(r.GetLoss(), 0) || math.IsNaN(r.GetLoss()) {
			t.Errorf("rollout %d: %v", i, r)
		}
	}
	if norms := c.next().GetFolded().GetNorms(); len(norms) == 0 {
		t.Error("no gradients")
	}
	c.end()
}

// TestTrain_WrongRolloutsNameTheField sends rollouts that do not fit their slot, or whose numbers are none.
func TestTrain_WrongRolloutsNameTheField(t *testing.T) {
	v := readPairVectors(t)["llama"]
	infinite, none := float32(math.Inf(1)), float32(math.NaN())
	for name, tc := range map[string]struct {
		kl     float64
		change func(*shardv1.Microbatch)
	}{
		"no rollouts":      {0, func(m *shardv1.Microbatch) { m.Rollouts = nil }},
		"unknown document": {0, func(m *shardv1.Microbatch) { m.Rollouts[1].Document = 9 }},
		"huge document":    {0, func(m *shardv1.Microbatch) { m.Rollouts[1].Document = math.MaxUint32 }},
		"same document":    {0, func(m *shardv1.Microbatch) { m.Rollouts[1].Document = 0 }},
		"document of padding": {0, func(m *shardv1.Microbatch) {
			m.Rollouts[1].Document = uint32(len(m.Documents) - 1)
		}},
		"target of nothing":  {0, func(m *shardv1.Microbatch) { m.Targets[len(m.Targets)-1] = 3 }},
		"one rollout less":   {0, func(m *shardv1.Microbatch) { m.Rollouts = m.Rollouts[:1] }},
		"short documents":    {0, func(m *shardv1.Microbatch) { m.Documents = m.Documents[:2] }},
		"no log-probability": {0, func(m *shardv1.Microbatch) { m.Rollouts[0].Logprobs = nil }},
		"too few":            {0, func(m *shardv1.Microbatch) { m.Rollouts[0].Logprobs = m.Rollouts[0].Logprobs[1:] }},
		"too many": {0, func(m *shardv1.Microbatch) {
			m.Rollouts[0].Logprobs = append(m.Rollouts[0].Logprobs, -1)
		}},
		"reference without KL": {0, func(m *shardv1.Microbatch) { m.Rollouts[0].Reference = m.Rollouts[0].Logprobs }},
		"no reference":         {0.1, func(*shardv1.Microbatch) {}},
		"short reference": {0.1, func(m *shardv1.Microbatch) {
			for _, r := range m.Rollouts {
				r.Reference = r.Logprobs[1:]
			}
		}},
		"log-probability that is no number": {0, func(m *shardv1.Microbatch) { m.Rollouts[1].Logprobs[0] = none }},
		"infinite log-probability":          {0, func(m *shardv1.Microbatch) { m.Rollouts[1].Logprobs[0] = -infinite }},
		"infinite reference": {0.1, func(m *shardv1.Microbatch) {
			for _, r := range m.Rollouts {
				r.Reference = append([]float32{infinite}, r.Logprobs[1:]...)
			}
		}},
		"advantage that is no number": {0, func(m *shardv1.Microbatch) { m.Rollouts[1].Advantage = math.NaN() }},
		"infinite advantage":          {0, func(m *shardv1.Microbatch) { m.Rollouts[0].Advantage = math.Inf(-1) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(rolloutOpening(t, tc.kl))
			m := rolloutSlot(&v)
			tc.change(m)
			c.sendRollouts(&v, m)
			if err := c.fails(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "rollout") {
				t.Errorf("error %v", err)
			}
		})
	}
}
