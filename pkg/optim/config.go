package optim

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// The names of the optimizers.
const (
	NameAdamW = "adamw"
	NameMuon  = "muon"
	NameSGD   = "sgd"
)

// Names lists the optimizers.
func Names() []string { return []string{NameAdamW, NameMuon, NameSGD} }

// Config says how the parameters of a run are stepped.
type Config struct {
	// Name is the optimizer of parameters to which no rule gives another one. Muon steps the matrices
	// of the layers only, as published: embeddings, the head, gains and biases are left to AdamW.
	Name  string
	AdamW AdamW // Decay is not used
	Muon  Muon
	SGD   SGD

	Decay             float64 // decoupled weight decay, times the learning rate
	DecayMatricesOnly bool    // gains and biases do not decay
	Rules             []Rule
}

// Rule changes how some parameters are stepped. Of several rules that set something for a parameter,
// the last one counts.
type Rule struct {
	Match     string   // a pattern of names, in which * stands for any characters and ? for one
	Optimizer string   // its name, or empty
	Rate      *float64 // multiplies the learning rate
	Decay     *float64 // replaces the weight decay
	Trainable *bool
}

// Check returns an error that names the field that is out of range.
func (c *Config) Check() error {
	if !slices.Contains(Names(), c.Name) {
		return fault.Field("optimizer.type", "%q is not one of %v", c.Name, Names())
	}
	for _, f := range []struct {
		name     string
		v        float64
		min, max float64
	}{
		{"betas[0]", c.AdamW.Beta1, 0, 0.9999999}, {"betas[1]", c.AdamW.Beta2, 0, 0.9999999},
		{"epsilon", c.AdamW.Epsilon, 0, 1}, {"decay", c.Decay, 0, 100},
		{"optimizer.momentum", c.Muon.Momentum, 0, 0.9999999}, {"optimizer.momentum", c.SGD.Momentum, 0, 0.9999999},
		{"optimizer.iterations", float64(c.Muon.Iterations), 0, 100},
	} {
		if !(f.v >= f.min && f.v <= f.max) {
			return fault.Field(f.name, "%v is not within %v..%v", f.v, f.min, f.max)
		}
	}
	for i, r := range c.Rules {
		if err := r.check(); err != nil {
			return fault.Wrap(fault.Invalid, err, "parameters[%d]", i)
		}
	}
	return nil
}

// maxPattern bounds a pattern in bytes.
const maxPattern = 256

func (r *Rule) check() error {
	if r.Match == "" || len(r.Match) > maxPattern {
		return fault.Field("match", "want a pattern of 1..%d bytes, got %d", maxPattern, len(r.Match))
	}
	if r.Optimizer != "" && !slices.Contains(Names(), r.Optimizer) {
		return fault.Field("optimizer", "%q is not one of %v", r.Optimizer, Names())
	}
	if r.Rate != nil && !(*r.Rate >= 0 && *r.Rate <= 1e6) {
		return fault.Field("learning_rate", "%v is not within 0..1e6", *r.Rate)
	}
	if r.Decay != nil && !(*r.Decay >= 0 && *r.Decay <= 100) {
		return fault.Field("decay", "%v is not within 0..100", *r.Decay)
	}
	return nil
}

// Parameter is what the choice of an optimizer depends on.
type Parameter struct {
	Name   string // that of the weight: a tied head has the name of the embedding
	Shape  []int
	Hidden bool // belongs to a layer, rather than to an embedding or the head
}

// CheckNames returns an error if a rule matches none of a model's parameters, or if none is left to
// train.
func (c *Config) CheckNames(params []Parameter) error {
	for i, r := range c.Rules {
		if !slices.ContainsFunc(params, func(p Parameter) bool { return Match(r.Match, p.Name) }) {
			return fault.Field("match", "parameters[%d]: %q matches no parameter of the model", i, r.Match)
		}
	}
	if !slices.ContainsFunc(params, func(p Parameter) bool { return c.For(p).Trainable }) {
		return fault.Field("parameters", "no parameter is trainable")
	}
	return nil
}

// Group is how one parameter is stepped.
type Group struct {
	Optimizer string
	Rate      float64 // multiplies the learning rate
	Decay     float64
	Trainable bool
	matrices  [3]int // of a parameter that Muon steps: their number, rows and columns
}

// For returns how a parameter is stepped.
func (c *Config) For(p Parameter) Group {
	g := Group{Optimizer: c.Name, Rate: 1, Decay: c.Decay, Trainable: true}
	matrix := len(p.Shape) > 1
	if c.DecayMatricesOnly && !matrix {
		g.Decay = 0
	}
	if g.Optimizer == NameMuon && !p.Hidden {
		g.Optimizer = NameAdamW
	}
	for _, r := range c.Rules {
		if !Match(r.Match, p.Name) {
			continue
		}
		if r.Optimizer != "" {
			g.Optimizer = r.Optimizer
		}
		if r.Rate != nil {
			g.Rate = *r.Rate
		}
		if r.Decay != nil {
			g.Decay = *r.Decay
		}
		if r.Trainable != nil {
			g.Trainable = *r.Trainable
		}
	}
	if g.Optimizer != NameMuon {
		return g
	}
	if !matrix {
		g.Optimizer = NameAdamW
		return g
	}
	// The matrices of experts are stacked, and each is made orthogonal by itself.
	rows, cols := p.Shape[len(p.Shape)-2], p.Shape[len(p.Shape)-1]
	g.matrices = [3]int{1, rows, cols}
	for _, n := range p.Shape[:len(p.Shape)-2] {
		g.matrices[0] *= n
	}
	return g
}

// Moments returns how many moments the optimizer of a group keeps.
func (c *Config) Moments(g Group) int {
	switch {
	case !g.Trainable, g.Optimizer == NameSGD && c.SGD.Momentum == 0:
		return 0
	case g.Optimizer == NameAdamW:
		return 2
	}
	return 1
}

// Needs returns how many values the step of a parameter of so many values takes of each buffer of a Scratch.
func (c *Config) Needs(g Group, values int) (out [scratchBuffers]int) {
	switch {
	case !g.Trainable:
	case g.Optimizer == NameMuon:
		n, square := g.matrices[1]*g.matrices[2], min(g.matrices[1], g.matrices[2])
		out = [scratchBuffers]int{n, n, square * square, square * square}
	case g.Optimizer == NameSGD:
		out[0] = values
		if c.SGD.Momentum != 0 && c.SGD.Nesterov {
			out[1] = values
		}
	}
	return out
}

// Step updates the weights p of a parameter and its moments m and v by the gradient g times scale.
// Moments that the group does not keep are nil. t is the number of the optimizer step, from 1, and lr
// the learning rate of the run at that step.
func (c *Config) Step(s *Scratch, group Group, p, m, v, g kernel.Buffer[float32], scale, lr float64, t int) {
	if !group.Trainable {
		return
	}
	lr *= group.Rate
	switch group.Optimizer {
	case NameMuon:
		count, rows, cols := group.matrices[0], group.matrices[1], group.matrices[2]
		for i := range count {
			lo, hi := i*rows*cols, (i+1)*rows*cols
			c.Muon.Step(s, p[lo:hi], m[lo:hi], g[lo:hi], rows, cols, scale, lr, group.Decay)
		}
	case NameSGD:
		c.SGD.Step(s, p, m, g, scale, lr, group.Decay)
	default:
		a := c.AdamW
		a.Decay = group.Decay
		a.Step(s.set, p, m, v, g, scale, lr, t, group.Decay != 0)
	}
}

// Match reports whether a name matches a pattern as a whole. In the pattern * stands for any
// characters and ? for one byte. The time is at most the product of both lengths.
func Match(pattern, name string) bool {
	// star and from are where to go on if the rest does not match: behind the last *, with the name's
	// next byte taken by it.
	p, n, star, from := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// DefaultMuon returns the published constants of Muon, with steps as large as AdamW's.
func DefaultMuon() Muon {
	return Muon{Momentum: 0.95, Nesterov: true, Iterations: 5, MatchAdamW: true}
}
