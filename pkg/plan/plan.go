// Package plan decides which shards form pipelines. From the layers that shards report it makes
// chains of contiguous spans that cover a model, and where there is no chain it reports which
// layers are missing. Its functions are pure: the same input gives the same result.
package plan

import (
	"cmp"
	"fmt"
	"slices"
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

// Chains makes chains from the spans until no more are possible. A span is in at most one chain.
// Chains with fewer stages come first, because every hop costs time; shard ids decide ties.
func Chains(spans []Span) []Chain {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Lo, b.Lo),
			-cmp.Compare(a.Hi, b.Hi), cmp.Compare(a.Shard, b.Shard))
	})
	var out []Chain
	used := make([]bool, len(spans))
	for {
		chain := shortest(spans, used)
		if chain == nil {
			return out
		}
		var c Chain
		for _, i := range chain {
			used[i] = true
			c = append(c, spans[i])
		}
		out = append(out, c)
	}
}

// shortest finds a chain with the fewest unused spans by a breadth-first search from all spans
// that start a model. It returns nil if there is none.
func shortest(spans []Span, used []bool) []int {
	// The search visits spans in the order of their distance from a start, so the first span
	// that ends a model gives a chain with the fewest stages. The queue is filled in the order
	// of spans, which is sorted, so the result is deterministic.
	from := make([]int, len(spans)) // the previous span; -1 at the start of a model, -2 if not visited
	var queue []int
	for i, s := range spans {
		from[i] = -2
		if !used[i] && s.Lo == 0 {
			from[i] = -1
			queue = append(queue, i)
		}
	}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		if spans[i].Hi == spans[i].Layers {
			var chain []int
			for at := i; at >= 0; at = from[at] {
				chain = append(chain, at)
			}
			slices.Reverse(chain)
			return chain
		}
		for j, s := range spans {
			if !used[j] && from[j] == -2 && follows(spans[i], s) {
				from[j] = i
				queue = append(queue, j)
			}
		}
	}
	return nil
}

func follows(a, b Span) bool {
	return b.Lo == a.Hi && b.Digest == a.Digest && b.Class == a.Class && b.Layers == a.Layers
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
