package plan

import (
	"cmp"
	"slices"
)

// Chains makes chains from the spans until no more are possible. A span is in at most one chain.
// Chains with fewer stages come first, because every hop costs time; shard ids decide ties.
//
// Each chain is the one that a breadth-first search over the unused spans finds first. To search once for
// each chain would take quadratic time, so all chains of one length come from one search, as in Dinic's
// algorithm for flows: taking spans away makes no chain shorter, so the shortest remaining chains still
// follow the distances that the search has found.
func Chains(spans []Span) []Chain {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Lo, b.Lo),
			-cmp.Compare(a.Hi, b.Hi), cmp.Compare(a.Shard, b.Shard))
	})
	var found [][]int // chains, as indices of spans
	for _, g := range graphs(spans) {
		for g.search() {
			for chain := g.next(); chain != nil; chain = g.next() {
				found = append(found, chain)
			}
		}
	}
	// A search over all models would find a chain first if it is shorter, or starts with an earlier span.
	slices.SortFunc(found, func(a, b []int) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a[0], b[0]))
	})
	var out []Chain
	for _, chain := range found {
		var c Chain
		for _, i := range chain {
			c = append(c, spans[i])
		}
		out = append(out, c)
	}
	return out
}

// MixedChains makes chains of spans of several kernel classes, for the models of which no class alone has a chain. If
// there is one, the model's spans are left to it.
func MixedChains(spans []Span) []Chain {
	whole := map[string]bool{}
	for _, c := range Chains(spans) {
		whole[c.Digest()] = true
	}
	type place struct {
		shard, digest string
		lo, hi        int
	}
	classes := map[place]string{}
	var mixed []Span
	for _, s := range spans {
		if !whole[s.Digest] {
			classes[place{s.Shard, s.Digest, s.Lo, s.Hi}] = s.Class
			s.Class = ""
			mixed = append(mixed, s)
		}
	}
	out := Chains(mixed)
	for _, c := range out {
		for i := range c {
			c[i].Class = classes[place{c[i].Shard, c[i].Digest, c[i].Lo, c[i].Hi}]
		}
	}
	return out
}

// graph has the spans that may be in one chain: those of one model and kernel class.
type graph struct {
	end    int            // the number of layers
	places map[int]*place // before a layer, by its number
	length int            // of the shortest chain, as the last search has found it
}

// place is where a span may begin.
type place struct {
	ranges   []*layers // the longest first
	skip     int       // how many of the ranges are on no chain of the shortest length any more
	distance int       // the least number of spans that lead here; -1 if none do
}

// layers are the unused spans from a place to the layer end.
type layers struct {
	end   int
	spans []int // in the order of their shards
}

// graphs divides sorted spans.
func graphs(spans []Span) []*graph {
	type key struct {
		digest, class string
		layers        int
	}
	byKey := map[key]*graph{}
	var out []*graph
	for i, s := range spans {
		k := key{s.Digest, s.Class, s.Layers}
		g := byKey[k]
		if g == nil {
			g = &graph{end: s.Layers, places: map[int]*place{}}
			byKey[k] = g
			out = append(out, g)
		}
		p := g.places[s.Lo]
		if p == nil {
			p = &place{}
			g.places[s.Lo] = p
		}
		if n := len(p.ranges); n == 0 || p.ranges[n-1].end != s.Hi {
			p.ranges = append(p.ranges, &layers{end: s.Hi})
		}
		last := p.ranges[len(p.ranges)-1]
		last.spans = append(last.spans, i)
	}
	return out
}

// search finds the distances of all places and the length of the shortest chain by a breadth-first search.
// It returns false if there is no chain.
func (g *graph) search() bool {
	g.length = 0
	for _, p := range g.places {
		p.skip, p.distance = 0, -1
	}
	first := g.places[0]
	if first == nil {
		return false
	}
	first.distance = 0
	for queue := []*place{first}; len(queue) > 0 && g.length == 0; queue = queue[1:] {
		p := queue[0]
		for _, r := range p.ranges {
			switch next := g.places[r.end]; {
			case len(r.spans) == 0:
			case r.end == g.end:
				g.length = p.distance + 1
			case next != nil && next.distance < 0:
				next.distance = p.distance + 1
				queue = append(queue, next)
			}
		}
	}
	return g.length > 0
}

// next takes the next chain of the shortest length, or returns nil if there is none left.
func (g *graph) next() []int {
	chain := make([]int, g.length)
	if !g.take(g.places[0], chain) {
		return nil
	}
	return chain
}

// take fills in the rest of a chain, from a place to the end. It takes the first range that leads there in
// the number of spans that are left. Ranges that do not are skipped from then on.
func (g *graph) take(p *place, rest []int) bool {
	for ; p.skip < len(p.ranges); p.skip++ {
		r := p.ranges[p.skip]
		if len(r.spans) == 0 || (r.end == g.end) != (len(rest) == 1) {
			continue
		}
		if len(rest) > 1 {
			next := g.places[r.end]
			if next == nil || next.distance != p.distance+1 || !g.take(next, rest[1:]) {
				continue
			}
		}
		rest[0], r.spans = r.spans[0], r.spans[1:]
		return true
	}
	return false
}
