package plan_test

import (
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

func TestChain_Replace(t *testing.T) {
	span := func(shard string, lo, hi int) plan.Span {
		return plan.Span{Shard: shard, Addr: shard + ":1", Digest: "d", Class: "cpu/7", Lo: lo, Hi: hi, Layers: 6}
	}
	chain := plan.Chain{span("a", 0, 2), span("b", 2, 4), span("c", 4, 6)}
	other, class := span("x", 2, 4), span("y", 2, 4)
	other.Digest, class.Class = "e", "cpu/4"
	free := []plan.Span{other, class, span("z", 2, 4), span("w", 2, 4), span("v", 0, 2), span("u", 1, 2)}
	for _, c := range []struct {
		lost []int
		want string // "" if there is no spare
	}{
		{nil, "0-2@a > 2-4@b > 4-6@c"},
		{[]int{1}, "0-2@a > 2-4@w > 4-6@c"},
		{[]int{0, 1}, "0-2@v > 2-4@w > 4-6@c"},
		{[]int{2}, ""},
		{[]int{1, 2}, ""},
	} {
		got, ok := chain.Replace(c.lost, free)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("without %v: %v, %v, want %q", c.lost, got, ok, c.want)
		}
		slices.Reverse(free)
	}
	if chain.String() != "0-2@a > 2-4@b > 4-6@c" {
		t.Errorf("the chain has changed: %v", chain)
	}
	// A free span takes one place only.
	twice := plan.Chain{span("a", 0, 2), span("b", 0, 2)}
	if got, ok := twice.Replace([]int{0, 1}, []plan.Span{span("v", 0, 2)}); ok {
		t.Errorf("one span takes two places: %v", got)
	}
}
