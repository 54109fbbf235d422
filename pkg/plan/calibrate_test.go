package plan_test

import (
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// A fleet whose pings take 0.1 ms, whose frames take 0.04 ms, and whose sampler and text take 0.3 ms is learned from
// pipelines of some stages.
func TestCalibration_LearnsWhatStagesDoNotShow(t *testing.T) {
	hosts := []plan.Host{
		{ID: "a", Memory: 1 << 30, LayerMS: 1, HopMS: 0.1}, {ID: "b", Memory: 1 << 30, LayerMS: 2, HopMS: 0.1},
	}
	model := plan.Model{Name: "m", Digest: "d", Layers: []int64{1 << 20, 1 << 20, 1 << 20, 1 << 20}, Head: 1 << 20,
		KVBytes: 64, HiddenBytes: 256, Pin: []string{"a", "b"}}
	var c plan.Calibration
	request := func() plan.Request {
		r := plan.Request{Hosts: append([]plan.Host(nil), hosts...), Models: []plan.Model{model}, Goal: plan.Latency,
			RouterMS: c.RouterMS, FirstMS: c.FirstMS}
		for i := range r.Hosts {
			r.Hosts[i].HopMS = c.Hop(r.Hosts[i].HopMS)
		}
		return r
	}
	predict := func() plan.Prediction {
		p, err := plan.Place(request())
		if err != nil || len(p.Pipelines) != 1 || len(p.Pipelines[0].Stages) != 2 {
			t.Fatalf("the plan is %v, %v", p, err)
		}
		return p.Pipelines[0].Predicted
	}
	// The rows of both stages take 3+1 (head) and 2 ms, or 1 and 6+2: the best is 3 layers on a.
	const router, first, row = 0.3, 1.5, 0.25
	compute := predict().TokenMS - 0.2
	real := compute + 0.2 + router
	for range 20 {
		p := predict()
		var firsts []plan.First
		for _, n := range []int{10, 60, 200} {
			firsts = append(firsts, plan.First{PromptTokens: n, MS: first + p.FirstToken(n)})
		}
		c.Observe(plan.Observation{TokenMS: real, ComputeMS: compute, HopsMS: 0.2, Firsts: firsts, Predicted: p})
	}
	p := predict()
	if math.Abs(c.RouterMS-router) > 0.01 || math.Abs(c.FirstMS-first) > 0.01 || c.Hop(1) != 1 || c.Tokens != 20 {
		t.Errorf("learned %+v, want %v ms for the router and %v ms before the first batch", c, router, first)
	}
	if off := plan.Off(p.TokenMS, real); math.Abs(off) > 0.01 {
		t.Errorf("a token of %.3f ms is predicted to take %.3f", real, p.TokenMS)
	}
	if got := p.FirstToken(p.PromptTokens) + p.FirstMS; math.Abs(got-p.TTFTMS) > 1e-9 || p.FirstToken(1) != p.TokenMS {
		t.Errorf("the first token of a prompt takes %v and %v", got, p.TTFTMS)
	}
	if got := p.Measured([]plan.First{{PromptTokens: 50, MS: 2 * (p.FirstToken(50) + p.FirstMS)}}); math.Abs(
		got-2*p.TTFTMS) > 1e-9 {
		t.Errorf("prompts that take twice as long as predicted suggest %v, want %v", got, 2*p.TTFTMS)
	}
	// Frames turn out to be faster than pings.
	for range 20 {
		c.Observe(plan.Observation{TokenMS: compute + 0.08, ComputeMS: compute, HopsMS: 0.2})
	}
	if math.Abs(c.Hop(1)-0.4) > 0.01 || c.RouterMS > 0.01 {
		t.Errorf("learned %+v of frames that take 0.4 of a ping", c)
	}
	if off := plan.Off(predict().TokenMS, compute+0.08); math.Abs(off) > 0.01 {
		t.Errorf("the prediction is off by %v", off)
	}
}

func TestCalibration_DoesNotTrustOneDisturbedStream(t *testing.T) {
	c := plan.Calibration{}
	for range 10 {
		c.Observe(plan.Observation{TokenMS: 5.5, ComputeMS: 4, HopsMS: 1})
	}
	c.Observe(plan.Observation{TokenMS: 100_000, ComputeMS: 4, HopsMS: 1})
	c.Observe(plan.Observation{TokenMS: 0, ComputeMS: 4, HopsMS: 1})
	if math.Abs(c.RouterMS-0.5) > 1e-9 || c.Tokens != 10 {
		t.Errorf("learned %+v, want 0.5 ms of 10 tokens", c)
	}
}

func TestDocument_Corrected(t *testing.T) {
	pipeline := func(token, ttft float64, hi int) plan.Pipeline {
		return plan.Pipeline{Digest: "d", Stages: []plan.Stage{{Host: "a", Hi: hi}},
			Predicted: plan.Prediction{TokenMS: token, TTFTMS: ttft}}
	}
	d := &plan.Document{Version: 3, Plan: plan.Plan{Pipelines: []plan.Pipeline{pipeline(10, 100, 4)}}, Reason: "first"}
	for _, c := range []struct {
		name     string
		now      plan.Pipeline
		expected float64 // 0 for no correction
	}{
		{"as predicted", pipeline(10.5, 105, 4), 0},
		{"slower tokens", pipeline(12, 100, 4), 12},
		{"a slower first token", pipeline(10, 150, 4), 10},
		{"another plan", pipeline(20, 200, 5), 0},
	} {
		next := d.Corrected(&plan.Plan{Pipelines: []plan.Pipeline{c.now}}, 0.1)
		if (next != nil) != (c.expected > 0) {
			t.Errorf("%s: corrected: %v", c.name, next != nil)
			continue
		}
		if next == nil {
			continue
		}
		if got := next.ExpectedOf(0).TokenMS; got != c.expected || next.Plan.Pipelines[0].Predicted.TokenMS != 10 ||
			next.Reason != "first" {
			t.Errorf("%s: a token of %v ms is expected, want %v; the plan is %+v", c.name, got, c.expected, next.Plan)
		}
		text, err := next.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := plan.ParseDocument(text); err != nil || back.ExpectedOf(0).TokenMS != c.expected {
			t.Errorf("%s: read back %+v, %v", c.name, back, err)
		}
		if again := next.Corrected(&plan.Plan{Pipelines: []plan.Pipeline{c.now}}, 0.1); again != nil {
			t.Errorf("%s: it is corrected twice", c.name)
		}
	}
}
