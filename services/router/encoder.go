package router

import (
	"context"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// Encoders have no pipelines: a call of Embed goes from stage to stage. That the stages of a planned one compute, which
// an open pipeline shows of other models, is found out by a probe.

// probeAgain is the time between two probes of an encoder of which the first one has failed.
const probeAgain = time.Second

// encoderProbe is what the placer knows of an encoder over the stages of the plan.
type encoderProbe struct {
	running, passed bool
	at              time.Time // it ended
}

// probeEncoders sends a token through the stages of each planned encoder that are all held, until that has worked once.
func (l *leader) probeEncoders(ctx context.Context) {
	resting := map[string]bool{}
	l.s.mu.Lock()
	for k := range l.doc.Plan.Pipelines {
		digest := l.doc.Plan.Pipelines[k].Digest
		resting[digest] = l.s.retires(digest)
	}
	l.s.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	probes := map[string]*encoderProbe{}
	for k := range l.doc.Plan.Pipelines {
		chain, width := l.encoderChain(&l.doc.Plan.Pipelines[k])
		if chain == nil {
			continue
		}
		key := chain.String() + chain.Digest()
		p := l.probes[key]
		if p == nil {
			p = &encoderProbe{}
		}
		probes[key] = p
		if p.running || p.passed || time.Since(p.at) < probeAgain || resting[chain.Digest()] {
			continue
		}
		p.running = true
		l.work.Go(func() { l.probeEncoder(ctx, p, chain, width) })
	}
	l.probes = probes
}

// encoderChain returns a pipeline of the plan as a chain with addresses, and the width of its hidden states, if hosts
// hold all of its stages and it is an encoder; else nil. The caller holds mu of the placer.
func (l *leader) encoderChain(p *plan.Pipeline) (plan.Chain, int) {
	chain, width := chainOf(p), 0
	for i := range chain {
		h := l.hosts[chain[i].Shard]
		if h == nil || !h.alive() {
			return nil, 0
		}
		held := false
		for _, span := range h.desc.GetHeld() {
			if span.GetEncoder() && span.GetEmbedTokens() > 0 && span.GetDigest() == p.Digest &&
				int(span.GetLo()) == chain[i].Lo && int(span.GetHi()) == chain[i].Hi {
				held, width = true, int(span.GetWidth())
			}
		}
		if !held {
			return nil, 0
		}
		chain[i].Addr = h.addr
	}
	return chain, width
}

func (l *leader) probeEncoder(ctx context.Context, p *encoderProbe, chain plan.Chain, width int) {
	limited, cancel := context.WithTimeout(ctx, l.s.cfg.ProbeLimit)
	_, err := l.s.embedBatch(limited, chain, [][]uint32{{0}}, nil, width)
	cancel()
	l.mu.Lock()
	p.running, p.passed, p.at = false, err == nil, time.Now()
	l.mu.Unlock()
	switch {
	case err == nil:
		l.s.log.Info("encoder serves", "chain", chain.String(), "digest", chain.Digest())
		l.s.mu.Lock()
		if f := l.s.deploys.failures[chain.Digest()]; f != nil {
			f.row = 0
		}
		l.s.notifyChange()
		l.s.mu.Unlock()
	case ctx.Err() == nil:
		l.s.log.Warn("probe encoder", "chain", chain.String(), "error", err)
		if !queueFull(err) { // a shard has one queue for the calls of all its models
			l.s.pipelineFailed(chain.Digest(), err)
		}
	}
}

// probed adds the planned encoders whose stages compute to what is open.
func (l *leader) probed(open map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.doc.Plan.Pipelines {
		chain, _ := l.encoderChain(&l.doc.Plan.Pipelines[k])
		if chain == nil {
			continue
		}
		if key := chain.String() + chain.Digest(); l.probes[key] != nil && l.probes[key].passed {
			open[key] = true
		}
	}
}

// holdsEncoder reports whether shards hold all stages of a model that is an encoder. The caller holds mu.
func (s *Service) holdsEncoder(digest string) bool {
	for _, d := range s.held {
		for _, h := range d.resp.GetHeld() {
			if h.GetEncoder() && h.GetDigest() == digest {
				return len(s.embedders(digest)) > 0
			}
		}
	}
	return false
}

// offersEncoder reports whether a model that shards can load is an encoder. The caller holds mu.
func (s *Service) offersEncoder(digest string) bool {
	for _, d := range s.held {
		for _, o := range d.resp.GetInventory().GetOffers() {
			if o.GetDigest() == digest {
				return o.GetEncoder()
			}
		}
	}
	return false
}

// embedders returns the chains of shards that hold a model. The caller holds mu.
func (s *Service) embedders(digest string) []plan.Chain {
	return plan.Chains(s.spans(false, func(h *shardv1.Held) bool { return h.GetDigest() == digest }))
}

// awaitEmbedders returns what embedChains does, and waits for a while if there are none, for a model that is being
// loaded as long as the load may take, but not longer than unheardLimit, since the caller hears nothing meanwhile. The
// error says when to try again.
func (s *Service) awaitEmbedders(
	ctx context.Context, name string, patience time.Duration,
) ([]plan.Chain, *shardv1.Held, error) {
	if err := s.mayWake(ctx, name, ""); err != nil {
		return nil, nil, err
	}
	start := time.Now()
	d := s.sleeping(name)
	if d != nil {
		patience = min(d.LoadLimit(), unheardLimit)
	}
	woken := false
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		chains, h, err := s.embedChains(name)
		left := patience - time.Since(start)
		if err == nil || fault.CodeOf(err) != fault.Unavailable {
			return chains, h, err
		}
		if d != nil {
			now := s.deployed().Find(name)
			if now == nil || now.Live == nil || woken && now.Rest != deploy.Awake { // the placer has given up
				return nil, nil, err
			}
			woken = woken || now.Rest == deploy.Awake
		}
		if left <= 0 {
			return nil, nil, s.retryLater(ctx, err, d)
		}
		if d != nil {
			s.loading(ctx, d.Name, d.Live.Digest) // measures it
			left = min(left, loadingEvery)
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-s.requests.draining:
			err = errStopping
		case <-ctx.Done():
			err = ctx.Err()
		}
		timer.Stop()
		if ctx.Err() != nil || s.requests.isDraining() {
			return nil, nil, err
		}
	}
}
