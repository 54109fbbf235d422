package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// services are what the router watches.
func services() []string { return []string{"tokenizer", "shard", "sampler", "router", "trainer"} }

// described is what a shard said of itself.
type described struct {
	addr string
	resp *shardv1.DescribeResponse
}

// Run watches discovery and keeps pipelines over the shards that are alive, until
// ctx ends; then it closes the pipelines.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan struct{}, 1)
	for _, service := range services() {
		ch, err := s.cfg.Registry.Watch(ctx, service)
		if err != nil {
			return err
		}
		wg.Go(func() {
			for state := range ch {
				s.mu.Lock()
				s.instances[service] = state
				s.touch()
				s.mu.Unlock()
				select {
				case news <- struct{}{}:
				default:
				}
			}
		})
	}
	// Discovery is a hint: shards that could not be reached, and pipelines that died,
	// are looked at again without news.
	tick := time.NewTicker(rebuildAfter)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-tick.C:
		}
		s.describe(ctx)
		s.build(ctx, &wg)
	}
}

// describe asks shards and tokenizers that are not known yet what they hold.
func (s *Service) describe(ctx context.Context) {
	s.mu.Lock()
	shards, tokenizers := slices.Clone(s.instances["shard"]), slices.Clone(s.instances["tokenizer"])
	alive := map[string]string{}
	for _, i := range shards {
		alive[i.ID] = i.Addr
	}
	for id, d := range s.held {
		if alive[id] != d.addr {
			delete(s.held, id)
		}
	}
	known := map[string]bool{}
	for id := range s.held {
		known[id] = true
	}
	for _, m := range s.models {
		known[m.tokenizer] = true
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, i := range shards {
		if known[i.ID] {
			continue
		}
		wg.Go(func() {
			resp, err := s.describeShard(ctx, i.Addr)
			if err != nil {
				s.log.Debug("describe shard", "id", i.ID, "address", i.Addr, "error", err)
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.held[i.ID] = described{i.Addr, resp}
			s.touch()
		})
	}
	for _, i := range tokenizers {
		if !known[i.Addr] {
			wg.Go(func() { s.describeTokenizer(ctx, i) })
		}
	}
	wg.Wait()
}

func (s *Service) describeShard(ctx context.Context, addr string) (*shardv1.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(addr)
	if err != nil {
		return nil, err
	}
	resp, err := shardv1.NewShardServiceClient(conn).Describe(ctx, &shardv1.DescribeRequest{})
	return resp, rpc.FromStatus(err)
}

func (s *Service) describeTokenizer(ctx context.Context, i discovery.Instance) {
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(i.Addr)
	if err != nil {
		s.log.Debug("describe tokenizer", "id", i.ID, "error", err)
		return
	}
	resp, err := tokenizerv1.NewTokenizerServiceClient(conn).Describe(ctx, &tokenizerv1.DescribeRequest{})
	if err != nil {
		s.log.Debug("describe tokenizer", "id", i.ID, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range resp.GetVocabularies() {
		s.models[v.GetDigest()] = &modelInfo{vocabulary: v, tokenizer: i.Addr}
	}
	s.touch()
}

// spans lists what the shards hold, without those in use; mu is held.
func (s *Service) spans(free bool) []plan.Span {
	inUse := map[string]bool{}
	if free {
		for _, p := range s.pipelines {
			for _, hop := range p.chain {
				inUse[hop.Shard] = true
			}
		}
	}
	var out []plan.Span
	for id, d := range s.held {
		for _, h := range d.resp.GetHeld() {
			if inUse[id] {
				continue
			}
			out = append(out, plan.Span{
				Shard: id, Addr: d.addr, Digest: h.GetDigest(), Class: d.resp.GetKernelClass(),
				Lo: int(h.GetLo()), Hi: int(h.GetHi()), Layers: int(h.GetLayers()),
			})
		}
	}
	return out
}

// build opens pipelines over the shards that are free.
func (s *Service) build(ctx context.Context, wg *sync.WaitGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	samplers := s.instances["sampler"]
	if len(samplers) == 0 {
		return
	}
	for n, chain := range plan.Chains(s.spans(true)) {
		key := chain.String()
		if s.building[key] || s.models[chain.Digest()] == nil {
			continue // without a tokenizer a model cannot be asked
		}
		s.building[key] = true
		sampler := samplers[(len(s.pipelines)+n)%len(samplers)].Addr
		wg.Go(func() {
			s.runPipeline(ctx, chain, sampler)
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.building, key)
		})
	}
}

// runPipeline opens a pipeline and runs it until it dies.
func (s *Service) runPipeline(ctx context.Context, chain plan.Chain, sampler string) {
	p, err := s.open(ctx, chain, sampler)
	if err != nil {
		s.log.Warn("open pipeline", "chain", chain.String(), "error", err)
		s.forget(chain)
		return
	}
	s.mu.Lock()
	s.pipelines[p.id] = p
	s.touch()
	s.mu.Unlock()
	s.log.Info("pipeline stands", "pipeline", p.id, "chain", chain.String(), "sampler", sampler)
	err = p.run(ctx)
	s.mu.Lock()
	delete(s.pipelines, p.id)
	s.touch()
	s.mu.Unlock()
	if ctx.Err() == nil {
		s.log.Warn("pipeline is lost", "pipeline", p.id, "chain", chain.String(), "error", err)
		s.forget(chain)
	}
}

// forget makes the router ask a chain's shards again what they hold.
func (s *Service) forget(chain plan.Chain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, hop := range chain {
		delete(s.held, hop.Shard)
	}
}

// whyNone says why a model has no pipeline; mu is held.
func (s *Service) whyNone(name string) error {
	digest, known := "", name == "" && len(s.models) > 0
	for d, m := range s.models {
		if name == "" || d == name || m.vocabulary.GetModel() == name {
			digest, known = d, true
		}
	}
	if !known && name != "" {
		return fault.New(fault.NotFound, "find model %q: nobody knows it", name)
	}
	return fault.New(fault.Unavailable, "find a pipeline for model %q: %s", name, plan.Missing(s.spans(false), digest)).After(time.Second)
}
