package tuning_test

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/tuning"
)

func TestAdvantages_AreRelativeToTheGroup(t *testing.T) {
	got := tuning.Advantages([]float64{1, 0, 0, 1, 1, 1, 0, 0})
	var sum float64
	for i, a := range got {
		sum += a
		if want := []float64{1, -1, -1, 1, 1, 1, -1, -1}[i]; math.Abs(a-want) > 1e-3 {
			t.Errorf("advantage %d is %v, want %v", i, a, want)
		}
	}
	if math.Abs(sum) > 1e-12 {
		t.Errorf("the sum is %v", sum)
	}
	if got := tuning.Advantages([]float64{0.3, 0.3, 0.3}); !slices.Equal(got, []float64{0, 0, 0}) {
		t.Errorf("equal rewards have advantages %v", got)
	}
	if got := tuning.Advantages([]float64{0.7}); got[0] != 0 {
		t.Errorf("one answer has the advantage %v", got)
	}
}

func TestGRPO_SlopesAreDerivatives(t *testing.T) {
	const h = 1e-6
	for _, c := range []tuning.GRPO{{ClipLow: 0.2, ClipHigh: 0.3}, {ClipLow: 0.2, ClipHigh: 0.2, KL: 0.05}} {
		for _, advantage := range []float64{-1.5, 0, 0.7} {
			for _, policy := range []float64{-3, -2.1, -2, -1.9, -1} {
				at := func(p float64) float64 { return c.Token(p, -2, -2.4, advantage).Loss }
				got := c.Token(policy, -2, -2.4, advantage)
				if want := (at(policy+h) - at(policy-h)) / (2 * h); math.Abs(got.Slope-want) > 1e-6 {
					t.Errorf("%+v, advantage %v, policy %v: slope %v, want %v", c, advantage, policy, got.Slope, want)
				}
			}
		}
	}
}

func TestGRPO_ClipsOnOneSide(t *testing.T) {
	c := tuning.GRPO{ClipLow: 0.2, ClipHigh: 0.2}
	for _, k := range []struct {
		policy, advantage float64
		clipped           bool
		loss              float64
	}{
		{-2, 1, false, -1},                   // on-policy: the ratio is 1
		{-2, -1, false, 1},                   //
		{-1, 1, true, -1.2},                  // a good token that is already more likely
		{-1, -1, false, math.E},              // a bad token that has become more likely must come back
		{-3, -1, true, 0.8},                  // a bad token that is already less likely
		{-3, 1, false, -math.Exp(-1)},        // a good token that has become less likely must come back
		{-2 + math.Log(1.1), 1, false, -1.1}, // within the bounds
	} {
		got := c.Token(k.policy, -2, 0, k.advantage)
		if got.Clipped != k.clipped || math.Abs(got.Loss-k.loss) > 1e-12 || got.Clipped && got.Slope != 0 ||
			got.KL != 0 {
			t.Errorf("policy %v, advantage %v: %+v", k.policy, k.advantage, got)
		}
	}
	if got := (tuning.GRPO{ClipLow: 0.2, ClipHigh: 0.2, KL: 1}).Token(-2, -2, -2, 0); got.KL != 0 || got.Loss != 0 {
		t.Errorf("no divergence from itself: %+v", got)
	}
}
