package router

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/inventory"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// Placement configures the placing of layers on shards that take assignments.
type Placement struct {
	// Registry has the placer's lock and the plan.
	Registry PlacementRegistry
	// Holder names this router in the lock.
	Holder string
	Goal   plan.Goal // 0 means latency
	// Replicas is the number of pipelines of each model; 0 as in plan.Model.
	Replicas int
	// Keeper says how readily the plan changes.
	Keeper plan.KeeperConfig
	// KVLeast and KVMost are the positions of the KV caches, as in plan.Model.
	KVLeast, KVMost int
	// Silent is how long a host may take to answer a probe before its layers are placed elsewhere; 0 means 1.4 s. It is
	// more while this process wakes up late itself. A host that cannot be reached is given up after two tries.
	Silent time.Duration
	// Settle is how long the set of hosts has to be the same before the first plan; 0 means 1 s.
	Settle time.Duration
	// Correct is the shortest time between two plans that differ in what is expected of them alone; 0 means 10 s.
	Correct time.Duration
	// OnlyDeployed loads only models that were deployed. Otherwise models that belong to no deployment are loaded too.
	OnlyDeployed bool
	// Deploy holds the times of deployments.
	Deploy deploy.Config
}

// PlacementRegistry is what the placer needs of the registry.
type PlacementRegistry interface {
	discovery.KV
	Lock(ctx context.Context, key, holder string) (discovery.Lease, error)
}

// ReadPlan returns the plan that a registry has; nil if it has none.
func ReadPlan(ctx context.Context, registry discovery.KV) (*plan.Document, error) {
	e, err := registry.Get(ctx, planKey)
	if err != nil || e.Version == 0 {
		return nil, err
	}
	return plan.ParseDocument(e.Value)
}

const (
	placerLock = "placer"
	planKey    = "plan"

	placeEvery   = 250 * time.Millisecond // between two looks at the hosts
	stepEvery    = time.Second            // between two steps of the keeper while no host changes
	settleFirst  = time.Second            // default of Placement.Settle
	settleMost   = 10 * time.Second       // after which the first plan is made with what is there
	settleKnown  = 3 * time.Second        // for hosts of a plan that a new placer has not seen yet
	hopsEvery    = 15 * time.Second       // between two measurements of the way to a host
	maxHops      = 4                      // that run at once
	assignLimit  = 10 * time.Minute       // of a load
	unloadGrace  = 10 * time.Second       // of pipelines over a span that no plan names
	unloadUrgent = 2 * time.Second        // the same where memory is wanted
	lockAgain    = time.Second            // after a failed try to get the lock
)

// placer keeps the plan while this router holds the lock, and reads it otherwise.
//
// Of the routers of a mesh the one that holds the placer's lock decides. It writes the plan to the registry before
// it carries it out, under the token of its lock. A router that has lost the lock without noticing cannot overwrite
// a later plan (plan.Document.Replace), and a shard refuses its assignments once it has had one of its successor. Every
// other router only reads the plan, to compare it with what it measures, and finds spans by what shards say of
// themselves, as always.
type placer struct {
	s   *Service
	cfg Placement

	mu      sync.Mutex
	doc     *plan.Document // the newest that was read or written; nil before the first one
	leading bool
	late    lateness           // of this process
	hosts   map[string]*placed // assignable shards by id
	left    []plan.LeftOut     // shards that cannot be hosts
	stirred time.Time          // when the set of living hosts last changed
	stir    chan struct{}      // wakes the leader when it changes; it holds one

	samplerMS float64 // the way to a sampler and back, measured by health checks
	sampled   time.Time
	// refusing has the hosts that some model is not placed on because they could not load it, with the reason.
	refusing map[string]string
}

// placed is what the placer knows of a host.
type placed struct {
	addr   string
	desc   *shardv1.DescribeResponse // nil before the first answer
	beat   heartbeat
	asking bool
	// troubled is when a question was last not answered.
	troubled time.Time
	busy     bool  // a load or a release runs
	swap     *swap // the load that runs, if it replaces spans and the plan still wants that
	full     bool  // a load did not fit: spans that no plan names have to go first
	// cramped says that a load did not fit in place of such spans either.
	cramped bool
	// freeable says that it holds such spans.
	freeable bool
	refused  map[string]*refusals // by the digest of the model
	hop      hopTime
}

// hopTime is the way to a host.
type hopTime struct {
	ms, mbps  float64
	at        time.Time
	measuring bool
}

func newPlacer(s *Service, c Placement) *placer {
	if c.Goal == 0 {
		c.Goal = plan.Latency
	}
	if c.Silent == 0 {
		c.Silent = silentAfter
	}
	if c.Settle == 0 {
		c.Settle = settleFirst
	}
	if c.Correct == 0 {
		c.Correct = correctEvery
	}
	return &placer{s: s, cfg: c, hosts: map[string]*placed{}, stir: make(chan struct{}, 1)}
}

// run reads the plan, and makes it whenever this router holds the lock. A mesh without shards that take assignments
// has no placer.
func (p *placer) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(placeEvery)
	defer tick.Stop()
	following := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !p.wanted() {
			continue
		}
		if !following {
			following = true
			wg.Go(func() { p.follow(ctx) })
		}
		lease, err := p.cfg.Registry.Lock(ctx, placerLock, p.cfg.Holder)
		if err == nil {
			err = p.lead(ctx, lease)
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), describeLimit)
			_ = lease.Release(release) // a lock that cannot be released ends with its session
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			p.s.log.Warn("place layers", "error", err)
		}
		p.pause(ctx, lockAgain)
	}
}

// pause waits for about a time, so that routers do not try in step.
func (p *placer) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// wanted reports whether some shard takes assignments.
func (p *placer) wanted() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, d := range p.s.held {
		if d.resp.GetInventory().GetAssignable() {
			return true
		}
	}
	return false
}

// follow reads the plan when it changes.
func (p *placer) follow(ctx context.Context) {
	ch, err := p.cfg.Registry.Follow(ctx, planKey)
	if err != nil {
		p.s.log.Warn("read the plan", "error", err)
		return
	}
	for e := range ch {
		if e.Version == 0 { // the registry has forgotten it; it is written again at the next change
			continue
		}
		d, err := plan.ParseDocument(e.Value)
		if err != nil {
			p.s.log.Warn("read the plan", "error", err)
			continue
		}
		p.take(d)
	}
}

// take remembers a plan unless a newer one is known.
func (p *placer) take(d *plan.Document) {
	p.mu.Lock()
	newer := p.doc == nil || d.Fence > p.doc.Fence || d.Fence == p.doc.Fence && d.Version > p.doc.Version
	if newer {
		p.doc = d
	}
	p.mu.Unlock()
	if newer {
		p.s.mu.Lock()
		p.s.notifyChange()
		p.s.mu.Unlock()
	}
}

// lead is the placer's work while it holds the lock.
func (p *placer) lead(ctx context.Context, lease discovery.Lease) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-lease.Lost():
			cancel()
		case <-ctx.Done():
		}
	})
	p.mu.Lock()
	p.leading, p.hosts, p.stirred = true, map[string]*placed{}, time.Now()
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.leading = false
		p.mu.Unlock()
	}()
	l := &leader{placer: p, token: lease.Token(), began: time.Now(), work: &wg, lives: deploy.NewKeeper(p.cfg.Deploy),
		observed: map[string]observed{}}
	if err := l.claim(ctx); err != nil {
		return err
	}
	p.s.log.Info("this router places layers", "fence", l.fence, "plan", l.doc.Version)
	wg.Go(func() { p.watchLateness(ctx) })
	tick := time.NewTicker(placeEvery)
	defer tick.Stop()
	for {
		p.probe(ctx, &wg)
		l.probeEncoders(ctx)
		if err := l.step(ctx); err != nil {
			return err
		}
		l.carryOut(ctx)
		select {
		case <-tick.C:
		case <-p.stir:
		case <-ctx.Done():
			return nil
		}
	}
}

// shards returns the shards that discovery lists, by id.
func (p *placer) shards() map[string]string {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	out := map[string]string{}
	for _, i := range p.s.instances["shard"] {
		d, known := p.s.held[i.ID]
		if !known || d.resp.GetInventory().GetAssignable() {
			out[i.ID] = i.Addr
		}
	}
	return out
}

// probe asks all hosts how they are, and measures the way to some. It does not wait for the answers.
func (p *placer) probe(ctx context.Context, wg *sync.WaitGroup) {
	listed := p.shards()
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, h := range p.hosts {
		if listed[id] != h.addr {
			delete(p.hosts, id)
			p.stirred = time.Now()
		}
	}
	measuring := 0
	for id, addr := range listed {
		h := p.hosts[id]
		if h == nil {
			h = &placed{addr: addr}
			p.hosts[id] = h
		}
		if !h.asking {
			h.asking = true
			wg.Go(func() { p.ask(ctx, id, h) })
		}
		if h.hop.measuring {
			measuring++
		}
	}
	if time.Since(p.sampled) >= hopsEvery {
		p.sampled = time.Now()
		wg.Go(func() { p.measureSampler(ctx) })
	}
	for _, h := range p.hosts {
		if measuring < maxHops && h.desc != nil && !h.hop.measuring && time.Since(h.hop.at) >= hopsEvery {
			measuring++
			h.hop.measuring = true
			wg.Go(func() { p.measureHop(ctx, h) })
		}
	}
}

// living returns the hosts that answer, for a plan.
func (p *placer) living() (shards []inventory.Shard, stirred time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, h := range p.hosts {
		if h.alive() {
			shards = append(shards, inventory.Shard{ID: id, Description: h.desc, HopMS: h.hop.ms, Mbps: h.hop.mbps})
		}
	}
	return shards, p.stirred
}

// options returns what is wanted of a plan: the models of deployments, and unless OnlyDeployed those of none. A model
// that no tokenizer knows cannot be served.
func (p *placer) options() inventory.Options {
	p.mu.Lock()
	p.refusing = map[string]string{}
	p.mu.Unlock()
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	known := map[string]bool{}
	for digest := range p.s.models {
		known[digest] = true
	}
	state := p.s.deploys.state
	return inventory.Options{
		Goal: p.cfg.Goal, Replicas: p.cfg.Replicas, KVLeast: p.cfg.KVLeast, KVMost: p.cfg.KVMost,
		Each: func(m *plan.Model) bool {
			want, ok := state.Places(m.Name, m.Digest, !p.cfg.OnlyDeployed)
			if !ok || !known[m.Digest] {
				return false
			}
			if want.Replicas > 0 {
				m.Replicas = want.Replicas
			}
			m.Yield = want.Yield
			p.avoid(m)
			return true
		},
	}
}

// maxFence is above every fence that a registry can give, so that sums of two do not overflow.
const maxFence = 1 << 62
