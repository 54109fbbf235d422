// Package plan decides which shards form pipelines. From the layers that shards report it makes
// chains of contiguous spans that cover a model, and where there is no chain it reports which
// layers are missing. Its functions are pure: the same input gives the same result.
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
