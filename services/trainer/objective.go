package trainer

import (
	"cmp"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// The values of Manifest.Objective.
const (
	objectiveDPO  = "dpo"  // direct preference optimization
	objectiveGRPO = "grpo" // group relative policy optimization
)

// DPO holds the settings of direct preference optimization (Rafailov et al., arXiv 2305.18290).
type DPO struct {
	Beta float64 `json:"beta,omitempty"` // how strongly the policy is held to the reference; 0.1 when absent
	// LabelSmoothing is the probability that the answers of a pair are the wrong way round, from 0 to below 0.5.
	LabelSmoothing float64 `json:"label_smoothing,omitempty"`
}

// GRPO holds the settings of group relative policy optimization (Shao et al., arXiv 2402.03300). Every step samples
// new answers from the adapter as it is: slots times slot_sequences prompts, each with a group of answers.
type GRPO struct {
	Group     int           `json:"group,omitempty"`      // answers to a prompt; 8 when absent
	MaxTokens int           `json:"max_tokens,omitempty"` // of an answer; 64 when absent
	Reward    []reward.Rule `json:"reward"`               // the reward is their mean by weight
	ClipLow   float64       `json:"clip_low,omitempty"`   // how far a token's ratio may fall below 1; 0.2 when absent
	ClipHigh  float64       `json:"clip_high,omitempty"`  // how far it may rise above 1; clip_low when absent
	KL        float64       `json:"kl,omitempty"`         // weight of the divergence from the base; 0 for none
}

// Defaults of objectives.
const (
	defaultBeta   = 0.1
	defaultGroup  = 8
	defaultAnswer = 64
	defaultClip   = 0.2
)

// Limits of groups.
const (
	maxGroup  = 1024
	maxAnswer = 1 << 15
)

// checkObjective checks what is minimized, and that the data go with it.
func (m *Manifest) checkObjective() error {
	switch m.Objective {
	case "", objectiveDPO, objectiveGRPO:
	default:
		return fault.Field("objective", "%q is neither %s nor %s", m.Objective, objectiveDPO, objectiveGRPO)
	}
	for _, f := range []struct {
		field, objective string
		set              bool
	}{
		{"dpo", objectiveDPO, m.DPO != nil}, {"data.pairs", objectiveDPO, m.Data.Pairs != ""},
		{"grpo", objectiveGRPO, m.GRPO != nil}, {"data.prompts", objectiveGRPO, m.Data.Prompts != ""},
	} {
		if f.set != (m.Objective == f.objective) {
			return fault.Field(f.field, "goes with the objective %s, which is %q", f.objective, m.Objective)
		}
	}
	switch {
	case m.Objective == "":
		return nil
	case m.DiLoCo != nil:
		return fault.Field("objective", "excludes diloco")
	case m.ZLoss != 0:
		return fault.Field("z_loss", "the objective %s excludes it", m.Objective)
	case m.Objective == objectiveGRPO:
		return m.checkGRPO()
	case !(m.DPO.Beta > 0 && m.DPO.Beta <= 1e6):
		return fault.Field("dpo.beta", "want a positive number, got %v", m.DPO.Beta)
	case !(m.DPO.LabelSmoothing >= 0 && m.DPO.LabelSmoothing < 0.5):
		return fault.Field("dpo.label_smoothing", "want a number from 0 to below 0.5, got %v", m.DPO.LabelSmoothing)
	}
	return nil
}

// checkGRPO checks the section. Rewards are compiled by blueprint.
func (m *Manifest) checkGRPO() error {
	g := m.GRPO
	switch {
	case g.Group < 2 || g.Group > maxGroup:
		return fault.Field("grpo.group", "%d is not within 2..%d", g.Group, maxGroup)
	case g.MaxTokens < 1 || g.MaxTokens > maxAnswer:
		return fault.Field("grpo.max_tokens", "%d is not within 1..%d", g.MaxTokens, maxAnswer)
	case !(g.ClipLow > 0 && g.ClipLow <= 1):
		return fault.Field("grpo.clip_low", "want a number above 0 up to 1, got %v", g.ClipLow)
	case !(g.ClipHigh > 0 && g.ClipHigh <= 100):
		return fault.Field("grpo.clip_high", "want a positive number up to 100, got %v", g.ClipHigh)
	case !(g.KL >= 0 && g.KL <= 1e6):
		return fault.Field("grpo.kl", "want a number from 0, got %v", g.KL)
	case m.Adapter == nil:
		return fault.Field("adapter", "the objective %s trains an adapter, which a router serves", objectiveGRPO)
	case m.Adapter.DoRA:
		return fault.Field("adapter.dora", "the objective %s excludes it", objectiveGRPO)
	case m.Adapter.Base == baseF32:
		return fault.Field("adapter.base", "the objective %s uses the base as it is served: want %s", objectiveGRPO,
			baseStored)
	case m.Adapter.Dropout != 0 || m.Dropout != (Dropout{}):
		return fault.Field("dropout", "the objective %s excludes it", objectiveGRPO)
	case m.Precision != tensor.F32.String():
		return fault.Field("precision", "the objective %s computes as a router serves: want F32, got %q", objectiveGRPO,
			m.Precision)
	case m.Spikes != nil:
		return fault.Field("spikes", "the objective %s excludes them", objectiveGRPO)
	case m.Data.ValidationFraction != 0 || len(m.Data.Validation) > 0:
		return fault.Field("data.validation", "the objective %s measures the reward of each step instead", objectiveGRPO)
	}
	return nil
}

// setObjectiveDefaults sets the defaults of the objective's section.
func (m *Manifest) setObjectiveDefaults() {
	switch m.Objective {
	case objectiveDPO:
		if m.DPO == nil {
			m.DPO = &DPO{}
		}
		m.DPO.Beta = cmp.Or(m.DPO.Beta, defaultBeta)
	case objectiveGRPO:
		if m.GRPO == nil {
			m.GRPO = &GRPO{}
		}
		g := m.GRPO
		g.Group, g.MaxTokens = cmp.Or(g.Group, defaultGroup), cmp.Or(g.MaxTokens, defaultAnswer)
		g.ClipLow = cmp.Or(g.ClipLow, defaultClip)
		g.ClipHigh = cmp.Or(g.ClipHigh, g.ClipLow)
		if m.Adapter != nil {
			m.Adapter.Base = cmp.Or(m.Adapter.Base, baseStored)
		}
	}
}

// objective returns the objective as stages are told; nil for the negative log-likelihood.
func (m *Manifest) objective() *shardv1.Objective {
	switch m.Objective {
	case objectiveDPO:
		return &shardv1.Objective{Kind: &shardv1.Objective_Dpo{Dpo: &shardv1.DPO{Beta: m.DPO.Beta,
			Smoothing: m.DPO.LabelSmoothing}}}
	case objectiveGRPO:
		return &shardv1.Objective{Kind: &shardv1.Objective_Grpo{Grpo: &shardv1.GRPO{ClipLow: m.GRPO.ClipLow,
			ClipHigh: m.GRPO.ClipHigh, Kl: m.GRPO.KL}}}
	}
	return nil
}

// openReward compiles the rewards of the manifest. runner runs programs; nil refuses them.
func (b *blueprint) openReward(runner reward.Runner) error {
	g := b.manifest.GRPO
	if g == nil {
		return nil
	}
	for i, r := range g.Reward {
		if len(r.Command) > 0 && runner == nil {
			return fault.Field(fmt.Sprintf("grpo.reward[%d].command", i), "this trainer runs no programs")
		}
	}
	var err error
	if b.reward, err = reward.Compile(g.Reward, runner); err != nil {
		return fault.Wrap(fault.Invalid, err, "grpo")
	}
	return nil
}
