package router

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// services returns the names of the services that the router watches in discovery.
func services() []string { return []string{"tokenizer", "shard", "sampler", "router", "trainer"} }

// described is a shard's description of itself.
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
	defer s.requests.close()
	s.readAdapters()
	changes := make(chan struct{}, 1)
	notify := func() {
		select {
		case changes <- struct{}{}:
		default:
		}
	}
	s.mu.Lock()
	s.wake = notify
	s.mu.Unlock()
	if s.placer != nil {
		wg.Go(func() { s.placer.run(ctx) })
		wg.Go(func() { s.followDeployments(ctx) })
	}
	for _, service := range services() {
		ch, err := s.cfg.Registry.Watch(ctx, service)
		if err != nil {
			return err
		}
		wg.Go(func() {
			for listed := range ch {
				s.update(service, listed)
				notify()
			}
		})
	}
	// Discovery is only a hint. Shards that could not be reached and pipelines that died are
	// retried even if it reports no change.
	tick := time.NewTicker(rebuildAfter)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-s.pokes:
		case <-tick.C:
		}
		s.checkMissing(ctx, &wg, notify)
		s.describe(ctx, &wg, notify)
		s.seekTokenizers(ctx, &wg, notify)
		s.syncAdapters(ctx, &wg, notify)
		s.reportDeployments(ctx, &wg)
		s.build(ctx, &wg, notify)
		s.tellSpareShards()
	}
}

// describe asks new shards and tokenizers what they hold. It does not wait for the answers, so that
// a silent service does not delay the use of the others.
func (s *Service) describe(ctx context.Context, wg *sync.WaitGroup, notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	shards := map[string]string{}
	for _, i := range s.instances["shard"] {
		shards[i.ID] = i.Addr
	}
	for id, d := range s.held {
		if shards[id] != d.addr {
			delete(s.held, id)
		}
	}
	ask := func(addr string, describe func() error) {
		if s.asking[addr] {
			return
		}
		s.asking[addr] = true
		wg.Go(func() {
			err := describe()
			s.mu.Lock()
			delete(s.asking, addr)
			if err == nil {
				s.notifyChange()
			}
			s.mu.Unlock()
			if err != nil {
				s.log.Debug("describe service", "address", addr, "error", err)
				return // retried at the next tick
			}
			notify()
		})
	}
	for id, addr := range shards {
		if _, known := s.held[id]; !known || s.stale[id] {
			ask(addr, func() error { return s.describeHeld(ctx, id, addr) })
		}
	}
	maps.DeleteFunc(s.stale, func(id string, _ bool) bool { return shards[id] == "" })
	alive := map[string]bool{}
	for _, i := range s.instances["tokenizer"] {
		alive[i.Addr] = true
		if s.vocabs[i.Addr] == nil || s.renew[i.Addr] {
			ask(i.Addr, func() error { return s.describeTokenizer(ctx, i.Addr) })
		}
	}
	for addr := range s.vocabs {
		if !alive[addr] {
			delete(s.vocabs, addr)
			s.collectModels()
		}
	}
	maps.DeleteFunc(s.renew, func(addr string, _ bool) bool { return !alive[addr] })
}

// describeHeld asks a shard what it holds.
func (s *Service) describeHeld(ctx context.Context, id, addr string) error {
	s.mu.Lock()
	stale := s.stale[id]
	delete(s.stale, id) // before asking, since what changes from now on may not be in the answer
	s.mu.Unlock()
	resp, err := s.describeShard(ctx, addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.stale[id] = stale || s.stale[id]
		return err
	}
	s.held[id] = described{addr: addr, resp: resp}
	s.leaveUnheld(id, resp)
	s.adapters.described(addr, resp)
	return nil
}

func (s *Service) describeShard(ctx context.Context, addr string) (*shardv1.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	return s.askShard(ctx, addr)
}

// askShard is describeShard without a limit of its own.
func (s *Service) askShard(ctx context.Context, addr string) (*shardv1.DescribeResponse, error) {
	conn, err := s.cfg.Dialer.Dial(addr)
	if err != nil {
		return nil, err
	}
	resp, err := shardv1.NewShardServiceClient(conn).Describe(ctx, &shardv1.DescribeRequest{})
	return resp, rpc.FromStatus(err)
}

func (s *Service) describeTokenizer(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(addr)
	if err != nil {
		return err
	}
	s.mu.Lock()
	renewed := s.renew[addr]
	delete(s.renew, addr) // before asking, so that what changes from now on is asked for again
	s.mu.Unlock()
	resp, err := tokenizerv1.NewTokenizerServiceClient(conn).Describe(ctx, &tokenizerv1.DescribeRequest{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.renew[addr] = renewed || s.renew[addr]
		return rpc.FromStatus(err)
	}
	s.vocabs[addr] = resp
	s.collectModels()
	return nil
}

// RenewVocabularies makes the router ask the tokenizers again which models they know.
func (s *Service) RenewVocabularies() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.instances["tokenizer"] { // those too that are being asked for the first time
		s.renew[i.Addr] = true
	}
	s.poke()
}

// collectModels collects which tokenizers know which model. The caller holds mu.
func (s *Service) collectModels() {
	s.models = map[string]*modelInfo{}
	for _, addr := range slices.Sorted(maps.Keys(s.vocabs)) {
		for _, v := range s.vocabs[addr].GetVocabularies() {
			m := s.models[v.GetDigest()]
			if m == nil {
				m = &modelInfo{vocabulary: v}
				s.models[v.GetDigest()] = m
			}
			m.tokenizers = append(m.tokenizers, addr)
		}
	}
}

// spans lists the spans that shards hold and keep accepts. With free it lists only those that no
// pipeline uses. The caller holds mu.
//
// A process that was killed and started again may be listed twice, by its former id too, since health checks
// of its address pass. If each entry counted, two pipelines would run over one process and be lost together.
func (s *Service) spans(free bool, keep func(*shardv1.Held) bool) []plan.Span {
	counted := map[plan.Span]bool{} // without names of shards
	if free {
		for _, chain := range s.building {
			for _, span := range chain {
				span.Shard = ""
				counted[span] = true
			}
		}
	}
	var out []plan.Span
	for _, id := range slices.Sorted(maps.Keys(s.held)) {
		d := s.held[id]
		if named := d.resp.GetInstance(); named != "" && named != id {
			continue // the entry of a former process at this address
		}
		for _, h := range d.resp.GetHeld() {
			span := plan.Span{
				Shard: id, Addr: d.addr, Digest: h.GetDigest(), Class: d.resp.GetKernelClass(),
				Lo: int(h.GetLo()), Hi: int(h.GetHi()), Layers: int(h.GetLayers()),
			}
			place := span
			place.Shard = ""
			if !counted[place] && keep(h) { // a shard may hold more than one model
				counted[place] = true
				out = append(out, span)
			}
		}
	}
	return out
}

// build opens pipelines over the shards that are free.
func (s *Service) build(ctx context.Context, wg *sync.WaitGroup, notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	samplers := s.instances["sampler"]
	if len(samplers) == 0 {
		return
	}
	// A model may draft for itself, with two separate chains.
	answers := func(h *shardv1.Held) bool { return !s.isDraft(h.GetModel(), h.GetDigest()) && !h.GetEncoder() }
	answer := plan.Chains(s.spans(true, answers))
	if s.cfg.MixClasses {
		answer = append(answer, s.mixed(answers)...)
	}
	draft := plan.Chains(s.spans(true, func(h *shardv1.Held) bool { return s.isDraft(h.GetModel(), h.GetDigest()) }))
	for i, chain := range slices.Concat(answer, draft) {
		if s.models[chain.Digest()] == nil && i < len(answer) {
			continue // a model cannot be served without a tokenizer
		}
		if s.retires(chain.Digest()) {
			continue
		}
		// round robin, so that a lost sampler is not tried twice in a row
		sampler := samplers[s.tries%len(samplers)].Addr
		s.tries++
		key := fmt.Sprintf("%d %s", s.tries, chain)
		s.building[key] = chain
		wg.Go(func() {
			served := s.runPipeline(ctx, key, chain, sampler)
			s.mu.Lock()
			delete(s.building, key)
			s.mu.Unlock()
			if served { // its shards that are left may be wanted at once; others are tried at the next tick
				notify()
			}
		})
	}
}

// mixed returns chains of several kernel classes over free shards, of models that have no other: neither a chain of one
// class, be it free or in use, nor a pipeline. The caller holds mu.
func (s *Service) mixed(keep func(*shardv1.Held) bool) []plan.Chain {
	served := map[string]bool{}
	for _, c := range plan.Chains(s.spans(false, keep)) {
		served[c.Digest()] = true
	}
	for _, c := range s.building {
		served[c.Digest()] = true
	}
	return plan.MixedChains(s.spans(true, func(h *shardv1.Held) bool { return keep(h) && !served[h.GetDigest()] }))
}

// runPipeline opens a pipeline and runs it until it dies. It reports whether the pipeline has ever served.
func (s *Service) runPipeline(ctx context.Context, key string, chain plan.Chain, sampler string) (served bool) {
	p, err := s.open(ctx, chain, sampler)
	if err != nil {
		s.log.Warn("open pipeline", "chain", chain.String(), "error", err)
		if ctx.Err() == nil {
			s.pipelineLost(chain, "", sampler, err)
		}
		s.forget(chain)
		return false
	}
	p.key = key
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	if err := p.probe(ctx); err != nil {
		p.cancel(err)
	} else {
		s.list(p)
		served = true
		s.log.Info("pipeline is open", "pipeline", p.id, "chain", chain.String(), "sampler", sampler)
	}
	err = <-ended
	s.unlist(p)
	p.drafters.Wait()
	if ctx.Err() == nil {
		s.log.Warn("pipeline is lost", "pipeline", p.id, "chain", p.hops().String(), "error", err)
		if served {
			s.pipelineLost(p.hops(), p.id, p.samplerAddr(), err)
		} else {
			s.pipelineFailed(p.digest, err)
		}
		s.forget(p.hops())
	}
	return served
}

// list makes a pipeline known to requests.
func (s *Service) list(p *pipeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pipelines[p.id] = p
	if f := s.deploys.failures[p.digest]; f != nil {
		f.row = 0
	}
	s.checkDraftVocabs(p)
	s.tellSpares(p.digest)
	s.notifyChange()
}

// unlist takes a pipeline that has ended off the list.
func (s *Service) unlist(p *pipeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pipelines, p.id)
	s.tellSpares(p.digest)
	s.notifyChange()
}

// tellSpares tells the pipelines of a model whether another one could take over their sequences. The
// caller holds mu.
func (s *Service) tellSpares(digest string) {
	var same []*pipeline
	for _, p := range s.pipelines {
		if p.digest == digest && !p.dead() {
			same = append(same, p)
		}
	}
	for _, p := range same {
		p.spare.Store(len(same) > 1)
	}
}

// forget drops the descriptions of a chain's shards, so that the router asks for them again.
func (s *Service) forget(chain plan.Chain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, hop := range chain {
		delete(s.held, hop.Shard)
	}
}

// noPipeline returns the error for a model without a pipeline. The caller holds mu.
func (s *Service) noPipeline(name string) error {
	digest, known := "", false
	if d := s.deploys.state.Find(name); d != nil && name != "" {
		return s.noVersion(d)
	}
	for d, m := range s.models {
		if name == "" && !s.isDraft(m.vocabulary.GetModel(), d) || d == name || name != "" &&
			m.vocabulary.GetModel() == name {
			digest, known = d, true
		}
	}
	if !known && name != "" {
		return fault.New(fault.NotFound, "find model %q: no such model is served", name)
	}
	return fault.New(fault.Unavailable, "find a pipeline for model %q: %s", name, s.whyNone(digest)).
		After(time.Second).
		Because(reasonCapacity)
}

// whyNone says why a model has no pipeline. The caller holds mu.
func (s *Service) whyNone(digest string) string {
	for _, chain := range s.building {
		if digest != "" && chain.Digest() == digest {
			return "its stages are being opened or probed"
		}
	}
	return plan.Missing(s.spans(false, func(*shardv1.Held) bool { return true }), digest)
}
