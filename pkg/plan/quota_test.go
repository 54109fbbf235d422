package plan_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// throttled is a host whose processes may compute for a share of each period, and then stand still until the next one.
// All times are in milliseconds. It has computed until now.
type throttled struct {
	share, period float64
	now, left     float64 // of the quota of the period that now is in
	ends          float64 // of that period
}

// compute returns when a computation of a time at full speed ends that begins at a time.
func (h *throttled) compute(begin, ms float64) float64 {
	if h.share >= 1 {
		return begin + ms
	}
	for h.now = begin; ; h.now, h.left, h.ends = math.Max(h.now, h.ends), h.share*h.period, h.ends+h.period {
		if h.now >= h.ends {
			continue
		}
		run := math.Min(ms, math.Min(h.left, h.ends-h.now))
		h.now, h.left, ms = h.now+run, h.left-run, ms-run
		if ms <= 1e-12 {
			return h.now
		}
		if h.left <= 1e-12 {
			h.now = h.ends
		}
	}
}

// TestPredict_QuotasOfProcessorTime compares what a plan predicts with a simulation of hosts with quotas, from whose
// periods tokens and prompts take what they find.
func TestPredict_QuotasOfProcessorTime(t *testing.T) {
	const layers, prompt, tokens, requests = 30, 64, 48, 40
	worst, within, cases := 0.0, 0, 0
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 3))
		n := 2 + random.IntN(3)
		period := []float64{5, 20, 100}[random.IntN(3)]
		full := 0.1 + 0.5*random.Float64() // ms of a row through a layer without a quota
		model := plan.Model{Name: "m", Digest: "d", KVBytes: 1, HiddenBytes: 4, KVPositions: 1, MaxKVPositions: 1}
		for range layers {
			model.Layers = append(model.Layers, 1<<20)
		}
		var hosts []plan.Host
		machines := map[string]*throttled{}
		for i := range n {
			id := fmt.Sprint("host-", i)
			share := 0.2 + 0.7*random.Float64()
			h := plan.Host{ID: id, Memory: int64(float64(layers)/float64(n-1)*1.4) << 20, LayerMS: full / share,
				RowMS: full / share / 4, HopMS: random.Float64(), QuotaShare: share, QuotaMS: period}
			hosts = append(hosts, h)
			machines[id] = &throttled{share: share, period: period, ends: period * random.Float64()}
		}
		p, err := plan.Place(plan.Request{Hosts: hosts, Models: []plan.Model{model}, Prompt: prompt, RouterMS: 0.3,
			Goal: plan.Latency})
		if err != nil || len(p.Pipelines) != 1 {
			t.Fatalf("seed %d: %v, %v", seed, p, err)
		}
		stages, hops := p.Pipelines[0].Stages, map[string]float64{}
		for _, h := range hosts {
			hops[h.ID] = h.HopMS
		}
		pass := func(now float64, rows int) float64 {
			for _, s := range stages {
				now += hops[s.Host]
				now = machines[s.Host].compute(now, full*float64(s.Hi-s.Lo)*(1+float64(rows-1)/4))
			}
			return now + 0.3
		}
		now, first, token := 0.0, 0.0, 0.0
		for range requests {
			now += 1000 * random.Float64()
			begin := now
			now = pass(now, prompt)
			first += (now - begin) / requests
			begin = now
			for range tokens {
				now = pass(now, 1)
			}
			token += (now - begin) / tokens / requests
		}
		got := p.Pipelines[0].Predicted
		for what, off := range map[string]float64{
			"a token": plan.Off(got.TokenMS, token), "the first token": plan.Off(got.TTFTMS, first)} {
			cases++
			worst = math.Max(worst, math.Abs(off))
			if math.Abs(off) <= 0.15 {
				within++
			} else {
				t.Logf("seed %d: %s is off by %+.0f %% with a period of %v ms and %.2f ms a layer", seed, what, 100*off,
					period, full)
			}
		}
	}
	if within < cases*97/100 || worst > 0.35 {
		t.Error("too many predictions are too far off")
	}
	t.Logf("%d of %d are within 15 %%, the worst is off by %.0f %%", within, cases, 100*worst)
}
