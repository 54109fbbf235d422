package trainer

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// LearningRate holds the settings of the learning rate schedule.
type LearningRate struct {
	Type   string  `json:"type"` // "cosine" (default), "linear", "constant" or "wsd" (warmup-stable-decay)
	Max    float64 `json:"max"`
	Min    float64 `json:"min"`
	Warmup int     `json:"warmup"` // steps
	Decay  int     `json:"decay"`  // steps of wsd's decay, at the end; a tenth of all when absent
}

// Optimizer holds the settings of the optimizer. AdamW's own are fields of the manifest.
type Optimizer struct {
	// Type is "adamw" (default), "muon" (for the layers' matrices; AdamW steps the rest) or "sgd".
	Type     string   `json:"type"`
	Momentum *float64 `json:"momentum"` // of muon (0.95 when absent) and sgd (0.9)
	Nesterov *bool    `json:"nesterov"` // of muon (true when absent) and sgd (false)
	// Iterations is the number of steps of Muon's Newton-Schulz iteration; 5 when absent.
	Iterations int `json:"iterations"`
	// Scale is "adamw" (default) or "original". With "adamw" Muon's steps are as large as AdamW's, so that
	// both take the same learning rate.
	Scale string `json:"scale"`
}

// ParameterRule changes how the parameters that a pattern matches are stepped. Absent fields change
// nothing. A tied head goes by the name of the embedding.
type ParameterRule struct {
	Match        string   `json:"match"`                   // * stands for any characters and ? for one
	Optimizer    string   `json:"optimizer,omitempty"`     // "adamw", "muon" or "sgd"
	LearningRate *float64 `json:"learning_rate,omitempty"` // multiplies the learning rate
	Decay        *float64 `json:"decay,omitempty"`         // replaces the weight decay
	Trainable    *bool    `json:"trainable,omitempty"`     // false freezes the parameters
}

// The names of the sizes of Muon's steps.
const (
	scaleAdamW    = "adamw"
	scaleOriginal = "original"
)

// optim returns how the parameters are stepped.
func (m *Manifest) optim() optim.Config {
	o := &m.Optimizer
	out := optim.Config{
		Name:  o.Type,
		AdamW: optim.AdamW{Beta1: m.Betas[0], Beta2: m.Betas[1], Epsilon: m.Epsilon},
		Muon: optim.Muon{Momentum: *o.Momentum, Nesterov: *o.Nesterov, Iterations: o.Iterations,
			MatchAdamW: o.Scale == scaleAdamW},
		SGD:   optim.SGD{Momentum: *o.Momentum, Nesterov: *o.Nesterov},
		Decay: m.Decay, DecayMatricesOnly: m.DecayMatricesOnly,
	}
	for _, r := range m.Parameters {
		out.Rules = append(out.Rules, optim.Rule{Match: r.Match, Optimizer: r.Optimizer, Rate: r.LearningRate,
			Decay: r.Decay, Trainable: r.Trainable})
	}
	return out
}

// rate returns the learning-rate schedule.
func (m *Manifest) rate() optim.Rate {
	r := &m.LearningRate
	return optim.Rate{Name: r.Type, Max: r.Max, Min: r.Min, Warmup: r.Warmup, Decay: r.Decay, Total: m.Steps}
}

// checkOptimizer checks the optimizer, the learning rate and the rules for parameters.
func (m *Manifest) checkOptimizer() error {
	if err := m.rate().Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "learning_rate")
	}
	if s := m.Optimizer.Scale; s != scaleAdamW && s != scaleOriginal {
		return fault.Field("optimizer.scale", "%q is neither %s nor %s", s, scaleAdamW, scaleOriginal)
	}
	if m.MixClasses {
		// Both copies of a tied weight have to stay equal. AdamW and SGD round alike in all classes; Muon does not.
		for i, r := range m.Parameters {
			if r.Optimizer == optim.NameMuon {
				return fault.Field(fmt.Sprintf("parameters[%d].optimizer", i), "mix_classes excludes rules with %s",
					optim.NameMuon)
			}
		}
	}
	config := m.optim()
	return config.Check()
}

// checkParameters checks the rules for parameters.
func (m *Manifest) checkParameters(spec *model.Spec, low *lowRank) error {
	config := m.optim()
	if low != nil {
		return config.CheckNames(low.names)
	}
	params, err := spec.Parameters()
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "model")
	}
	var all []optim.Parameter
	for _, p := range params {
		all = append(all, optim.Parameter{Name: p.Owner(), Shape: p.Shape, Hidden: spec.Hidden(p.Name)})
	}
	return config.CheckNames(all)
}
