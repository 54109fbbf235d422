package plan_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// searchChains is the definition of plan.Chains: a breadth-first search over all unused spans for each
// chain. It takes quadratic time.
func searchChains(spans []plan.Span) []plan.Chain {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b plan.Span) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Lo, b.Lo),
			-cmp.Compare(a.Hi, b.Hi), cmp.Compare(a.Shard, b.Shard))
	})
	follows := func(a, b plan.Span) bool {
		return b.Lo == a.Hi && b.Digest == a.Digest && b.Class == a.Class && b.Layers == a.Layers
	}
	used := make([]bool, len(spans))
	var out []plan.Chain
	for {
		from := make([]int, len(spans)) // the span before; -1 at the start of a model, -2 if not visited
		var queue []int
		for i, s := range spans {
			from[i] = -2
			if !used[i] && s.Lo == 0 {
				from[i] = -1
				queue = append(queue, i)
			}
		}
		var chain plan.Chain
		for ; len(queue) > 0 && chain == nil; queue = queue[1:] {
			i := queue[0]
			if spans[i].Hi == spans[i].Layers {
				for at := i; at >= 0; at = from[at] {
					used[at] = true
					chain = append(chain, spans[at])
				}
				continue
			}
			for j, s := range spans {
				if !used[j] && from[j] == -2 && follows(spans[i], s) {
					from[j] = i
					queue = append(queue, j)
				}
			}
		}
		if chain == nil {
			return out
		}
		slices.Reverse(chain)
		out = append(out, chain)
	}
}

// randomSpans returns n spans of a few models, which are of few kinds or of many. With wrong, some of them
// could not be.
func randomSpans(rnd *rand.Rand, n int, wrong bool) []plan.Span {
	layers, models, classes := 1+rnd.IntN(12), 1+rnd.IntN(3), 1+rnd.IntN(2)
	cuts := []int{0, layers}
	for range rnd.IntN(layers) {
		cuts = append(cuts, rnd.IntN(layers+1))
	}
	var out []plan.Span
	for i := range n {
		s := plan.Span{Shard: fmt.Sprintf("s%d", rnd.IntN(n)), Addr: fmt.Sprint(i), Layers: layers,
			Digest: fmt.Sprintf("m%d", rnd.IntN(models)), Class: fmt.Sprintf("c%d", rnd.IntN(classes))}
		for s.Lo >= s.Hi {
			s.Lo, s.Hi = cuts[rnd.IntN(len(cuts))], cuts[rnd.IntN(len(cuts))]
			if wrong {
				break
			}
		}
		if wrong && rnd.IntN(8) == 0 {
			s.Layers += rnd.IntN(3) - 1
		}
		out = append(out, s)
	}
	// One shard may hold several spans, but not the same one twice.
	slices.SortFunc(out, func(a, b plan.Span) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	out = slices.CompactFunc(out, func(a, b plan.Span) bool { a.Addr = b.Addr; return a == b })
	rnd.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func TestChains_SameAsASearchForEach(t *testing.T) {
	chains := 0
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 21))
		spans := randomSpans(rnd, 1+rnd.IntN(40), seed%4 == 0)
		// The order of equal spans is left open, so their addresses are not compared.
		for i := range spans {
			spans[i].Addr = ""
		}
		got, want := plan.Chains(spans), searchChains(spans)
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Fatalf("seed %d: chains of %+v are\n%+v, want\n%+v", seed, spans, got, want)
		}
		chains += len(got)
	}
	t.Logf("%d chains", chains)
}

// BenchmarkChains plans a fleet of one model of 32 layers whose shards hold 4, 8 or 16 of them.
func BenchmarkChains(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		rnd := rand.New(rand.NewPCG(1, 2))
		var spans []plan.Span
		for i := range n {
			size := 4 << rnd.IntN(3)
			lo := size * rnd.IntN(32/size)
			spans = append(spans, plan.Span{Shard: fmt.Sprintf("shard-%d", i), Digest: "d", Class: "c", Lo: lo,
				Hi: lo + size, Layers: 32})
		}
		b.Run(fmt.Sprintf("spans=%d", n), func(b *testing.B) {
			for b.Loop() {
				plan.Chains(spans)
			}
		})
		if n > 1000 {
			continue
		}
		b.Run(fmt.Sprintf("spans=%d/search-for-each", n), func(b *testing.B) {
			for b.Loop() {
				searchChains(spans)
			}
		})
	}
}
