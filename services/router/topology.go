package router

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// watchEvery is the interval at which a watched topology is compared with the last one sent.
const watchEvery = time.Second

// ListModels lists the models that are being served.
func (s *Service) ListModels(
	ctx context.Context, _ *routerv1.ListModelsRequest,
) (*routerv1.ListModelsResponse, error) {
	return &routerv1.ListModelsResponse{Models: s.usable(ctx)}, nil
}

// usable lists the models that are being served and that the caller may use, alone or with some of its adapters.
func (s *Service) usable(ctx context.Context) []*routerv1.Model {
	return slices.DeleteFunc(s.served(), func(m *routerv1.Model) bool {
		if auth.MayUse(ctx, m.GetName(), m.GetDigest()) {
			return false
		}
		m.Adapters = slices.DeleteFunc(m.GetAdapters(), func(a *routerv1.Adapter) bool {
			return !auth.MayUse(ctx, adapted(m.GetName(), a.GetName()))
		})
		return len(m.GetAdapters()) == 0
	})
}

// adapted is the name of a model with an adapter; empty without one.
func adapted(model, adapter string) string {
	if adapter == "" {
		return ""
	}
	return model + ":" + adapter
}

func (s *Service) served() []*routerv1.Model {
	s.mu.Lock()
	defer s.mu.Unlock()
	byDigest := map[string]*routerv1.Model{}
	for _, p := range s.pipelines {
		if p.draft || s.deploys.state.Hidden(p.digest) {
			continue
		}
		digest, h := p.digest, p.stages[0]
		m := byDigest[digest]
		if m == nil {
			m = &routerv1.Model{
				Name: h.GetModel(), Digest: digest, Architecture: h.GetArchitecture(), Layers: h.GetLayers(),
				Context: h.GetContext(), Vocab: h.GetVocab(), EmbedTokens: h.GetEmbedTokens(),
				Adapters: s.describeAdapters(digest),
			}
			if info := s.models[digest]; info != nil {
				m.Chat, m.EndIds, m.Defaults = info.vocabulary.GetChatTemplate(), info.vocabulary.GetEndIds(),
					info.vocabulary.GetDefaults()
				m.Format = info.vocabulary.GetFormat()
			}
			byDigest[digest] = m
		}
		m.Pipelines++
		m.MaxContext = max(m.MaxContext, uint32(p.contextLength()))
	}
	for _, h := range s.encoders() {
		if s.deploys.state.Hidden(h.GetDigest()) {
			continue
		}
		byDigest[h.GetDigest()] = &routerv1.Model{
			Name: h.GetModel(), Digest: h.GetDigest(), Architecture: h.GetArchitecture(), Layers: h.GetLayers(),
			Context: h.GetContext(), Vocab: h.GetVocab(), MaxContext: h.GetEmbedTokens(), Encoder: true,
			EmbedTokens: h.GetEmbedTokens(),
		}
	}
	out := s.underNames(byDigest)
	slices.SortFunc(out, func(a, b *routerv1.Model) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetDigest(), b.GetDigest()))
	})
	return out
}

// Topology lists the live services and the open pipelines.
func (s *Service) Topology(ctx context.Context, _ *routerv1.TopologyRequest) (*routerv1.TopologyResponse, error) {
	return &routerv1.TopologyResponse{Mesh: s.mesh(ctx)}, nil
}

// WatchTopology sends the topology now and after each change.
func (s *Service) WatchTopology(
	_ *routerv1.WatchTopologyRequest, stream grpc.ServerStreamingServer[routerv1.WatchTopologyResponse],
) error {
	return s.watch(
		stream.Context(), func(m *routerv1.Mesh) error { return stream.Send(&routerv1.WatchTopologyResponse{Mesh: m}) },
	)
}

// watch sends the topology until the caller has gone or its key is no longer valid.
func (s *Service) watch(ctx context.Context, send func(*routerv1.Mesh) error) error {
	var last *routerv1.Mesh
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if err := auth.From(ctx).Check(); err != nil {
			return err
		}
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if mesh := s.mesh(ctx); !proto.Equal(mesh, last) {
			if err := send(mesh); err != nil {
				return err
			}
			last = mesh
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.requests.draining:
			return errStopping
		case <-changed:
		case <-tick.C:
		}
	}
}

// mesh collects the topology; shards are asked for their current state.
func (s *Service) mesh(ctx context.Context) *routerv1.Mesh {
	out := &routerv1.Mesh{}
	s.mu.Lock()
	for _, service := range services() {
		for _, i := range s.instances[service] {
			out.Members = append(out.Members, &routerv1.Member{Id: i.ID, Service: service, Address: i.Addr})
		}
	}
	chains, firsts := map[string]plan.Chain{}, map[string][]plan.First{}
	for _, p := range s.pipelines {
		out.Pipelines = append(out.Pipelines, p.describe())
		chains[p.id] = p.hops()
		firsts[p.id], _ = p.firsts.read()
	}
	out.Adapters, out.Deployments = s.describeAdapters(""), describeDeployments(s.deploys.state)
	s.mu.Unlock()
	s.hops.refresh(ctx, s, slices.Collect(maps.Values(chains)))
	var wg sync.WaitGroup
	for _, m := range out.GetMembers() {
		if m.GetService() != "shard" {
			continue
		}
		wg.Go(func() {
			if resp, err := s.describeShard(ctx, m.GetAddress()); err == nil {
				m.Held, m.Loading = resp.GetHeld(), resp.GetInventory().GetLoading()
			}
		})
	}
	wg.Wait()
	held := map[string][]*shardv1.Held{} // by address
	for _, m := range out.GetMembers() {
		held[m.GetAddress()] = append(held[m.GetAddress()], m.GetHeld()...)
	}
	for _, p := range out.GetPipelines() {
		s.compare(p, chains[p.GetId()], firsts[p.GetId()], held)
	}
	out.Replays, out.Placement = s.replays.describe(), s.placer.describe()
	slices.SortFunc(out.GetMembers(), func(a, b *routerv1.Member) int {
		return cmp.Or(cmp.Compare(a.GetService(), b.GetService()), cmp.Compare(a.GetId(), b.GetId()))
	})
	slices.SortFunc(out.GetPipelines(), func(a, b *routerv1.Pipeline) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out
}

// describe returns the pipeline's entry in the topology.
func (p *pipeline) describe() *routerv1.Pipeline {
	stats := p.stats()
	millis := func(d time.Duration) float32 { return float32(d.Microseconds()) / 1000 }
	return &routerv1.Pipeline{
		Id: p.id, Model: p.model(), Digest: p.digest, Stages: p.route(), Sampler: p.samplerAddr(),
		Running: uint32(stats.Running), Waiting: uint32(stats.Waiting),
		TokensPerSecond: float32(p.rate.Load()) / 1000, StepMs: millis(stats.Step), SlowStepMs: millis(stats.Slow),
		KvPages: uint32(stats.Pages), KvPagesHeld: uint32(stats.Held), KvPagesCached: uint32(stats.Cached),
		PrefixQueries: stats.Queried, PrefixHits: stats.Hits, Preemptions: stats.Preemptions,
		LoneTokenMs: stats.Single.Seconds() * 1000,
		Bubble:      float32(stats.Bubble), SpareShard: p.spareShard.Load(), Replayed: stats.Replayed,
	}
}

// Backend lets the HTTP API and the console call the service without gRPC.
type Backend struct{ s *Service }

// Backend returns the service for the HTTP API.
func (s *Service) Backend() *Backend { return &Backend{s} }

// Generate runs a request and passes its events to send. The choices of a request are calls of their own, of which
// only the first pays for the prompt.
func (b *Backend) Generate(
	ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error,
) error {
	return b.s.generate(ctx, r, r.GetSampling().GetChoice() > 0, send)
}

// Chat is Generate for a chat.
func (b *Backend) Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	return b.s.chat(ctx, r, r.GetSampling().GetChoice() > 0, send)
}

// Resume passes the events of a resumable request to send.
func (b *Backend) Resume(
	ctx context.Context, r *routerv1.ResumeRequest, send func(*routerv1.ResumeResponse) error,
) error {
	return b.s.resume(ctx, r, send)
}

// Cancel ends a resumable request.
func (b *Backend) Cancel(ctx context.Context, id string) error { return b.s.cancelRequest(ctx, id) }

// Models lists the models that are being served and that the caller may use.
func (b *Backend) Models(ctx context.Context) ([]*routerv1.Model, error) {
	return b.s.usable(ctx), nil
}

// Watch sends the topology now and after each change.
func (b *Backend) Watch(ctx context.Context, send func(*routerv1.Mesh) error) error {
	return b.s.watch(ctx, send)
}

// Trainers returns the addresses of the trainers of the mesh.
func (b *Backend) Trainers() []string {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	var out []string
	for _, i := range b.s.instances["trainer"] {
		out = append(out, i.Addr)
	}
	return out
}

// LoadAdapter is the call of that name, whose frames come from next. next is called from one goroutine.
func (b *Backend) LoadAdapter(
	ctx context.Context, next func() (*routerv1.LoadAdapterRequest, error),
) (*routerv1.LoadAdapterResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, loadTime, errLoadTime())
	defer cancel()
	return b.s.loadAdapter(ctx, next)
}

// UnloadAdapter is the call of that name.
func (b *Backend) UnloadAdapter(
	ctx context.Context, r *routerv1.UnloadAdapterRequest,
) (*routerv1.UnloadAdapterResponse, error) {
	return b.s.UnloadAdapter(ctx, r)
}

// Ready returns nil if requests can be served, and otherwise the reason why not. A pipeline that is
// open does not count if it has not been scheduled for some time, or has missed a step deadline and computed
// nothing since: it is given another chance, but may be lost.
func (b *Backend) Ready() error {
	if b.s.requests.isDraining() {
		return errStopping
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if len(b.s.pipelines) == 0 && len(b.s.encoders()) > 0 {
		return nil
	}
	err := fault.New(fault.Unavailable, "no pipeline is open")
	for _, p := range b.s.pipelines {
		switch idle := time.Since(time.Unix(0, p.stepped.Load())); {
		case p.draft || p.dead():
		case idle > stuckAfter:
			err = fault.New(fault.Unavailable, "pipeline %s has not been scheduled for %v", p.id,
				idle.Round(time.Second))
		case p.doubtful.Load():
			err = fault.New(fault.Unavailable, "pipeline %s has missed a step deadline", p.id)
		default:
			return nil
		}
	}
	return err
}

// stuckAfter is the time without a scheduling step after which a pipeline is not ready.
const stuckAfter = 3 * time.Second
