// Package plan decides which hosts hold which layers of which models, and which shards form pipelines.
//
// Place makes a plan from nothing: from an inventory of hosts, models and a goal it finds spans and replicas,
// predicts what they will give, and says why it leaves hosts out. Repair changes a plan as little as possible
// when hosts are lost. Moves lists what has to be loaded and unloaded between two plans. A Keeper does all of
// this over time, with hysteresis.
//
// Chains makes pipelines of the spans that shards hold already, and Missing says which layers no shard holds.
//
// All functions are pure: the same input gives the same result. The cost model is described at timing:
// a token takes the sum of its times in all stages and hops, and under load a pipeline is as fast as its
// slowest stage. The search is exact over few hosts (exact.go), and else treats all layers as average ones
// and improves the cuts afterwards (approx.go, fleetsearch.go).
package plan

import (
	"fmt"
	"strings"
)

// Span is a contiguous range of the layers of a model on one shard.
type Span struct {
	Shard  string // the shard's id
	Addr   string
	Digest string // of the model
	Class  string // kernel class; all spans of a chain have the same one, so that its results are reproducible
	Lo, Hi int
	Layers int // number of layers of the model
}

// Chain is a list of spans that cover a model in order.
type Chain []Span

// Digest returns the digest of the model.
func (c Chain) Digest() string { return c[0].Digest }

// Class returns the kernel class of the chain. If the spans have several, it is each with its layers, such as
// "cuda/2/sm_90:0-20+cpu/7:20-32": the results are those of this layout alone.
func (c Chain) Class() string {
	var parts []string
	for i := 0; i < len(c); {
		first := c[i]
		for i++; i < len(c) && c[i].Class == first.Class; i++ {
		}
		parts = append(parts, fmt.Sprintf("%s:%d-%d", first.Class, first.Lo, c[i-1].Hi))
	}
	if len(parts) == 1 {
		return c[0].Class
	}
	return strings.Join(parts, "+")
}

// String returns the chain in the form "0-2@a > 2-4@b".
func (c Chain) String() string {
	var parts []string
	for _, s := range c {
		parts = append(parts, fmt.Sprintf("%d-%d@%s", s.Lo, s.Hi, s.Shard))
	}
	return strings.Join(parts, " > ")
}

// Missing describes which layers of a model no shard holds, or that the spans do not join.
func Missing(spans []Span, digest string) string {
	var layers int
	held := map[int]bool{}
	for _, s := range spans {
		if s.Digest != digest {
			continue
		}
		layers = s.Layers
		for l := s.Lo; l < s.Hi; l++ {
			held[l] = true
		}
	}
	if layers == 0 {
		return "no shard holds it"
	}
	var gaps []string
	for l := 0; l < layers; l++ {
		if held[l] {
			continue
		}
		hi := l
		for hi < layers && !held[hi] {
			hi++
		}
		gaps = append(gaps, fmt.Sprintf("%d-%d", l, hi))
		l = hi
	}
	if len(gaps) == 0 {
		return "all layers are held, but the ranges do not join end to end on one kernel class"
	}
	return "no shard holds layers " + strings.Join(gaps, ", ")
}
