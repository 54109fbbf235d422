package router

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// What the plan has predicted is compared with what is measured: the time of a row in each stage, which shards count,
// and that of the hop to it, which pings measure.

const (
	hopsAge   = 10 * time.Second // after which the way between two neighbours is measured again
	hopsLimit = time.Second      // for all measurements of one look
	maxAtOnce = 16               // neighbours that one look measures
	worstLess = 0.05             // milliseconds over the prediction that are not worth a word
)

// hopTimes are the measured times of hops.
type hopTimes struct {
	mu    sync.Mutex
	known map[[2]string]hopTime // by sender and receiver; an empty sender is this router
}

// get returns the milliseconds of a hop, or 0 if they are not known.
func (h *hopTimes) get(from, to string) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[[2]string{from, to}].ms
}

// refresh measures the hops of chains whose times are not known or old, and drops those of no chain.
func (h *hopTimes) refresh(ctx context.Context, s *Service, chains []plan.Chain) {
	ctx, cancel := context.WithTimeout(ctx, hopsLimit)
	defer cancel()
	now := time.Now()
	var old [][2]string
	h.mu.Lock()
	next := map[[2]string]hopTime{}
	for _, chain := range chains {
		from := ""
		for _, hop := range chain {
			pair := [2]string{from, hop.Addr}
			from = hop.Addr
			t, seen := next[pair]
			if !seen {
				t = h.known[pair]
			}
			if !seen && now.Sub(t.at) >= hopsAge && len(old) < maxAtOnce {
				old = append(old, pair)
				t.at = now // a hop that cannot be measured is not tried at once again
			}
			next[pair] = t
		}
	}
	h.known = next
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, pair := range old {
		wg.Go(func() {
			t, err := ping(ctx, s.cfg.Dialer, pair[0], pair[1])
			if err != nil {
				return
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if _, still := h.known[pair]; still {
				h.known[pair] = t
			}
		})
	}
	wg.Wait()
}

// describe returns the state of the plan, or nil if there is none.
func (p *placer) describe() *routerv1.Placement {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doc == nil {
		return nil
	}
	out := &routerv1.Placement{
		Version: p.doc.Version, Fence: p.doc.Fence, Placer: p.leading, Reason: p.doc.Reason,
		MoveBytes: uint64(max(0, p.doc.MoveBytes)), MoveLayers: uint32(max(0, p.doc.MoveLayers)),
	}
	c := p.doc.Calibration
	out.RouterMs, out.FirstMs, out.HopScale = c.RouterMS, c.FirstMS, c.Hop(1)
	for _, l := range p.doc.Plan.LeftOut {
		if p.refusing[l.ID] == "" || !p.leading {
			out.LeftOut = append(out.LeftOut, &routerv1.LeftOut{Id: l.ID, Reason: l.Reason})
		}
	}
	if p.leading {
		for _, id := range slices.Sorted(maps.Keys(p.refusing)) {
			out.LeftOut = append(out.LeftOut, &routerv1.LeftOut{Id: id, Reason: p.refusing[id]})
		}
		for _, l := range p.left {
			out.LeftOut = append(out.LeftOut, &routerv1.LeftOut{Id: l.ID, Reason: l.Reason})
		}
	}
	for _, l := range p.doc.Plan.Uncovered {
		out.Uncovered = append(out.Uncovered, &routerv1.LeftOut{Id: l.ID, Reason: l.Reason})
	}
	return out
}

// planned returns the pipeline of the plan that a chain is, or nil, and what is expected of it now.
func (p *placer) planned(chain plan.Chain) (*plan.Pipeline, *plan.Prediction) {
	if p == nil || len(chain) == 0 {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doc == nil {
		return nil, nil
	}
	for k := range p.doc.Plan.Pipelines {
		pipeline := &p.doc.Plan.Pipelines[k]
		if pipeline.Digest == chain.Digest() && chainOf(pipeline).String() == chain.String() {
			return pipeline, p.doc.ExpectedOf(k)
		}
	}
	return nil, nil
}

// compare fills in the predicted and measured times of a pipeline. held is what the shards say of themselves, by
// address, and firsts the first tokens of lone prompts on the pipeline.
func (s *Service) compare(
	p *routerv1.Pipeline, chain plan.Chain, firsts []plan.First, held map[string][]*shardv1.Held,
) {
	planned, expected := s.placer.planned(chain)
	from, most := "", worstLess
	for i, hop := range chain {
		t := &routerv1.StageTimes{Host: hop.Shard, MeasuredHopMs: s.hops.get(from, hop.Addr)}
		from = hop.Addr
		for _, h := range held[hop.Addr] {
			if h.GetDigest() == hop.Digest && int(h.GetLo()) == hop.Lo && int(h.GetHi()) == hop.Hi {
				t.MeasuredMs = h.GetRowUs() / 1000
			}
		}
		p.Times = append(p.Times, t)
		if planned == nil {
			continue
		}
		t.PredictedMs, t.PredictedHopMs = planned.Stages[i].MS, planned.Stages[i].HopMS
		if over := t.GetMeasuredMs() - t.GetPredictedMs(); over > most {
			most, p.Worst = over, fmt.Sprintf("stage %d at %s", i, hop.Shard)
		}
		if over := t.GetMeasuredHopMs() - t.GetPredictedHopMs(); over > most {
			most, p.Worst = over, fmt.Sprintf("hop to stage %d at %s", i, hop.Shard)
		}
	}
	if planned != nil {
		p.PredictedTokenMs, p.PredictedTtftMs = planned.Predicted.TokenMS, planned.Predicted.TTFTMS
		p.PredictedPromptTokens = uint32(max(0, planned.Predicted.PromptTokens))
		p.ExpectedTokenMs, p.ExpectedTtftMs = expected.TokenMS, expected.TTFTMS
		p.MeasuredTtftMs = expected.Measured(firsts)
	}
}
