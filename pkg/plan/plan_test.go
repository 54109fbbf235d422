package plan_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

func span(shard string, lo, hi int) plan.Span {
	return plan.Span{Shard: shard, Addr: shard, Digest: "d", Class: "c", Lo: lo, Hi: hi, Layers: 4}
}

func TestChains_UseEveryShardOnceAndFewStagesFirst(t *testing.T) {
	for _, c := range []struct {
		spans []plan.Span
		want  string
	}{
		{nil, "[]"},
		{[]plan.Span{span("a", 0, 4)}, "[0-4@a]"},
		{[]plan.Span{span("d", 2, 4), span("b", 0, 2), span("a", 0, 2), span("c", 2, 4)},
			"[0-2@a > 2-4@c 0-2@b > 2-4@d]"},
		{[]plan.Span{span("a", 0, 2), span("b", 2, 4), span("c", 0, 4)}, "[0-4@c 0-2@a > 2-4@b]"},
		{[]plan.Span{span("a", 0, 1), span("b", 1, 3), span("c", 1, 2), span("d", 3, 4)}, "[0-1@a > 1-3@b > 3-4@d]"},
		{[]plan.Span{span("a", 0, 2), span("b", 3, 4)}, "[]"},
		{[]plan.Span{span("a", 0, 2), {Shard: "b", Digest: "other", Class: "c", Lo: 2, Hi: 4, Layers: 4}}, "[]"},
		{[]plan.Span{span("a", 0, 2), {Shard: "b", Digest: "d", Class: "gpu", Lo: 2, Hi: 4, Layers: 4}}, "[]"},
	} {
		if got := fmt.Sprint(plan.Chains(c.spans)); got != c.want {
			t.Errorf("chains of %v are %s, want %s", c.spans, got, c.want)
		}
	}
}

func TestMissing_NamesTheGaps(t *testing.T) {
	spans := []plan.Span{span("a", 0, 1), span("b", 2, 3)}
	if got := plan.Missing(spans, "d"); got != "no shard holds layers 1-2, 3-4" {
		t.Errorf("gaps are reported as %q", got)
	}
	if got := plan.Missing(spans, "x"); got != "no shard holds it" {
		t.Errorf("an unknown model is reported as %q", got)
	}
}
