package trainer

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// objectiveDPO is the value of Manifest.Objective for direct preference optimization.
const objectiveDPO = "dpo"

// DPO holds the settings of direct preference optimization (Rafailov et al., arXiv 2305.18290).
type DPO struct {
	Beta float64 `json:"beta,omitempty"` // how strongly the policy is held to the reference; 0.1 when absent
	// LabelSmoothing is the probability that the answers of a pair are the wrong way round, from 0 to below 0.5.
	LabelSmoothing float64 `json:"label_smoothing,omitempty"`
}

// defaultBeta is the beta of DPO unless the manifest has one.
const defaultBeta = 0.1

// checkObjective checks what is minimized, and that the data go with it.
func (m *Manifest) checkObjective() error {
	switch {
	case m.Objective != "" && m.Objective != objectiveDPO:
		return fault.Field("objective", "%q is not %s", m.Objective, objectiveDPO)
	case m.Objective != objectiveDPO && m.DPO != nil:
		return fault.Field("dpo", "is for the objective %s", objectiveDPO)
	case m.Objective != objectiveDPO && m.Data.Pairs != "":
		return fault.Field("data.pairs", "are for the objective %s", objectiveDPO)
	case m.Objective == "":
		return nil
	case m.Data.Pairs == "":
		return fault.Field("data.pairs", "want the name of a file of pairs for the objective %s", objectiveDPO)
	case m.DiLoCo != nil:
		return fault.Field("objective", "excludes diloco")
	case m.ZLoss != 0:
		return fault.Field("z_loss", "the objective %s excludes it", m.Objective)
	case !(m.DPO.Beta > 0 && m.DPO.Beta <= 1e6):
		return fault.Field("dpo.beta", "want a positive number, got %v", m.DPO.Beta)
	case !(m.DPO.LabelSmoothing >= 0 && m.DPO.LabelSmoothing < 0.5):
		return fault.Field("dpo.label_smoothing", "want a number from 0 to below 0.5, got %v", m.DPO.LabelSmoothing)
	}
	return nil
}

// setObjectiveDefaults sets the defaults of the objective's section.
func (m *Manifest) setObjectiveDefaults() {
	if m.Objective != objectiveDPO {
		return
	}
	if m.DPO == nil {
		m.DPO = &DPO{}
	}
	if m.DPO.Beta == 0 {
		m.DPO.Beta = defaultBeta
	}
}

// objective returns the objective as stages are told; nil for the negative log-likelihood.
func (m *Manifest) objective() *shardv1.Objective {
	if m.Objective != objectiveDPO {
		return nil
	}
	return &shardv1.Objective{Kind: &shardv1.Objective_Dpo{Dpo: &shardv1.DPO{Beta: m.DPO.Beta,
		Smoothing: m.DPO.LabelSmoothing}}}
}
