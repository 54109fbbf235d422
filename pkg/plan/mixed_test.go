package plan_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// Spans of several classes make a chain only for a model that no class has alone.
func TestMixedChains_AreForModelsThatNoClassHas(t *testing.T) {
	span := func(shard, digest, class string, lo, hi int) plan.Span {
		return plan.Span{Shard: shard, Digest: digest, Class: class, Lo: lo, Hi: hi, Layers: 6}
	}
	a, b := []plan.Span{span("a", "one", "cuda/1/sm_90", 0, 2), span("b", "one", "cuda/1/sm_90", 2, 4),
		span("c", "one", "cpu/7", 4, 6)}, []plan.Span{span("d", "two", "cpu/7", 0, 6),
		span("e", "two", "cuda/1/sm_90", 0, 3), span("f", "two", "cpu/7", 3, 6)}
	got := plan.MixedChains(append(a, b...))
	if want := "[0-2@a > 2-4@b > 4-6@c]"; fmt.Sprint(got) != want {
		t.Fatalf("chains %v, want %s", got, want)
	}
	if want := "cuda/1/sm_90:0-4+cpu/7:4-6"; got[0].Class() != want || got[0][2].Class != "cpu/7" {
		t.Errorf("the class is %s of %+v, want %s", got[0].Class(), got[0], want)
	}
	if class := plan.Chain(a[:2]).Class(); class != "cuda/1/sm_90" {
		t.Errorf("the class of a chain of one is %s", class)
	}
	if got := plan.Chains(a); len(got) != 0 {
		t.Errorf("chains of one class: %v", got)
	}
}
