package optim_test

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

func config(name string) optim.Config {
	return optim.Config{
		Name:  name,
		AdamW: optim.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8},
		Muon:  optim.DefaultMuon(),
		SGD:   optim.SGD{Momentum: 0.9},
		Decay: 0.1,
	}
}

func parameters() map[string]optim.Parameter {
	out := map[string]optim.Parameter{}
	for _, p := range []optim.Parameter{
		{Name: "model.embed_tokens.weight", Shape: []int{50, 8}},
		{Name: "model.layers.0.self_attn.q_proj.weight", Shape: []int{8, 8}, Hidden: true},
		{Name: "model.layers.0.self_attn.q_proj.bias", Shape: []int{8}, Hidden: true},
		{Name: "model.layers.11.mlp.experts.down_proj", Shape: []int{4, 8, 6}, Hidden: true},
		{Name: "model.norm.weight", Shape: []int{8}},
	} {
		out[p.Name] = p
	}
	return out
}

func TestConfig_MuonStepsTheMatricesOfLayers(t *testing.T) {
	c := config(optim.NameMuon)
	for name, want := range map[string]string{
		"model.embed_tokens.weight":              optim.NameAdamW,
		"model.layers.0.self_attn.q_proj.weight": optim.NameMuon,
		"model.layers.0.self_attn.q_proj.bias":   optim.NameAdamW,
		"model.layers.11.mlp.experts.down_proj":  optim.NameMuon,
		"model.norm.weight":                      optim.NameAdamW,
	} {
		g := c.For(parameters()[name])
		if g.Optimizer != want || c.Moments(g) != map[string]int{optim.NameAdamW: 2, optim.NameMuon: 1}[want] {
			t.Errorf("%s is stepped by %s with %d moments, want %s", name, g.Optimizer, c.Moments(g), want)
		}
	}
}

func TestConfig_TheLastRuleThatSetsSomethingCounts(t *testing.T) {
	c := config(optim.NameMuon)
	c.DecayMatricesOnly = true
	half, none, no, yes := 0.5, 0.0, false, true
	c.Rules = []optim.Rule{
		{Match: "model.layers.*", Rate: &half, Trainable: &no},
		{Match: "model.layers.1?.*", Decay: &none, Optimizer: optim.NameSGD, Trainable: &yes},
		{Match: "*norm*", Decay: &half, Optimizer: optim.NameMuon},
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"model.embed_tokens.weight":              "adamw 1 0.1 true",
		"model.layers.0.self_attn.q_proj.weight": "muon 0.5 0.1 false",
		"model.layers.0.self_attn.q_proj.bias":   "adamw 0.5 0 false",
		"model.layers.11.mlp.experts.down_proj":  "sgd 0.5 0 true",
		"model.norm.weight":                      "adamw 1 0.5 true", // no matrix, so not Muon
	} {
		g := c.For(parameters()[name])
		if got := fmt.Sprint(g.Optimizer, " ", g.Rate, " ", g.Decay, " ", g.Trainable); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestConfig_StepChoosesTheOptimizer(t *testing.T) {
	half, no := 0.5, false
	for _, want := range optim.Names() {
		c := config(want)
		c.Rules = []optim.Rule{{Match: "*experts*", Rate: &half, Decay: &half}, {Match: "*q_proj*", Trainable: &no}}
		r := rand.New(rand.NewPCG(1, 2))
		scratch := optim.NewScratch(ref.New[float32]())
		shape := parameters()["model.layers.11.mlp.experts.down_proj"]
		n := 4 * 8 * 6
		p, m, v, g := random(r, n), random(r, n), make([]float32, n), random(r, n)
		wantP, wantM, wantV := slices.Clone(p), slices.Clone(m), slices.Clone(v)
		c.Step(scratch, c.For(shape), p, m, v, g, 0.7, 0.02, 3)
		switch want {
		case "adamw":
			a := c.AdamW
			a.Decay = 0.5
			a.Step(ref.New[float32](), wantP, wantM, wantV, g, 0.7, 0.01, 3, true)
		case "muon": // every matrix of the stack by itself
			for i := 0; i < n; i += 48 {
				c.Muon.Step(
					optim.NewScratch(ref.New[float32]()),
					wantP[i:i+48],
					wantM[i:i+48],
					g[i:i+48],
					8,
					6,
					0.7,
					0.01,
					0.5,
				)
			}
		case "sgd":
			c.SGD.Step(optim.NewScratch(ref.New[float32]()), wantP, wantM, g, 0.7, 0.01, 0.5)
		}
		if !slices.Equal(p, wantP) || !slices.Equal(m, wantM) || !slices.Equal(v, wantV) {
			t.Errorf("%s: the step differs from the optimizer's own", want)
		}
		frozen := c.For(parameters()["model.layers.0.self_attn.q_proj.weight"])
		before := slices.Clone(p)
		if c.Step(scratch, frozen, p, nil, nil, g, 1, 1, 1); !slices.Equal(p, before) || c.Moments(frozen) != 0 {
			t.Errorf("%s: a frozen parameter is stepped, or has moments", want)
		}
	}
}

func TestConfig_NamesTheFieldItRefuses(t *testing.T) {
	minus := -1.0
	for want, change := range map[string]func(*optim.Config){
		"optimizer.type":       func(c *optim.Config) { c.Name = "lion" },
		"betas[1]":             func(c *optim.Config) { c.AdamW.Beta2 = 1 },
		"epsilon":              func(c *optim.Config) { c.AdamW.Epsilon = -1 },
		"decay":                func(c *optim.Config) { c.Decay = -1 },
		"optimizer.momentum":   func(c *optim.Config) { c.SGD.Momentum = 1 },
		"optimizer.iterations": func(c *optim.Config) { c.Muon.Iterations = 1000 },
		"parameters[0]: match": func(c *optim.Config) { c.Rules = []optim.Rule{{}} },
		"parameters[1]: optimizer": func(c *optim.Config) {
			c.Rules = []optim.Rule{{Match: "*"}, {Match: "*", Optimizer: "lion"}}
		},
		"parameters[0]: learning_rate": func(c *optim.Config) { c.Rules = []optim.Rule{{Match: "*", Rate: &minus}} },
		"parameters[0]: decay":         func(c *optim.Config) { c.Rules = []optim.Rule{{Match: "*", Decay: &minus}} },
	} {
		c := config(optim.NameAdamW)
		change(&c)
		if err := c.Check(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error that names %s", err, want)
		}
	}
}

func TestConfig_RulesMatchParametersOfTheModel(t *testing.T) {
	no := false
	var all []optim.Parameter
	for _, p := range parameters() {
		all = append(all, p)
	}
	for want, rules := range map[string][]optim.Rule{
		"parameters[1]":             {{Match: "*norm*"}, {Match: "layers.*"}},
		"no parameter is trainable": {{Match: "*", Trainable: &no}},
		"":                          {{Match: "model.*"}},
	} {
		c := config(optim.NameAdamW)
		c.Rules = rules
		err := c.CheckNames(all)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v: %v, want %q", rules, err, want)
		}
	}
}

// FuzzMatch compares with path.Match, which knows the same two wildcards for names without slashes.
func FuzzMatch(f *testing.F) {
	f.Add("model.layers.*.mlp.*", "model.layers.3.mlp.up_proj.weight")
	f.Add("*a*b?", "xaxbxbx")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.ContainsAny(pattern+name, "/[]\\") || strings.ContainsFunc(pattern+name, func(r rune) bool {
			return r >= 0x80
		}) {
			return
		}
		want, err := path.Match(pattern, name)
		if err != nil {
			return
		}
		if got := optim.Match(pattern, name); got != want {
			t.Errorf("%q matches %q: %v, want %v", pattern, name, got, want)
		}
	})
}

func TestMatch_HostilePatternsAreQuick(t *testing.T) {
	if optim.Match(strings.Repeat("a*", 128)+"b", strings.Repeat("a", 4096)) {
		t.Error("a pattern that ends in b matches only a")
	}
}
