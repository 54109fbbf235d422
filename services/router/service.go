package router

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// Dialer reaches the other services.
type Dialer interface {
	Dial(addr string) (*grpc.ClientConn, error)
}

// Registry watches which services are alive.
type Registry interface {
	Watch(ctx context.Context, service string) (<-chan []discovery.Instance, error)
}

// Config holds the dependencies and settings of a Service.
type Config struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil measures nothing
	// MetricsPrefix is the prefix of the metrics that have vLLM's names. Empty means "vllm:", which the queries of
	// dashboards and the settings of endpoint pickers have in them; NoMetricsPrefix leaves these metrics out.
	MetricsPrefix string
	Tracer        *trace.Tracer // nil traces nothing
	Dialer        Dialer
	Registry      Registry
	// BatchRows is the maximum number of rows in a batch; 0 means 512.
	BatchRows int
	// ChunkRows is the maximum number of rows of one prompt in a batch; 0 means 256.
	ChunkRows int
	// MicroBatches is how many batches may be in flight on a pipeline; 0 means one more than the
	// processes that its stages run in, or one for a single process.
	MicroBatches int
	// Speculate is the maximum number of draft tokens after each token. An n-gram lookup in the
	// sequence's own log proposes them, or else the draft model. They do not change the text. 0
	// turns speculation off.
	Speculate int
	// Draft is the name or digest of the draft model, whose vocabulary must be that of the
	// models it drafts for. It answers only requests that name it. Empty means none. If a
	// model drafts for itself, the draft needs a name of its own.
	Draft string
	// DraftMinProb ends a round of the draft model: a draft token with a lower probability is the
	// last one. 0 turns this off.
	DraftMinProb float64
	// HiddenType is the element type of hidden states between stages; 0 is float32. bfloat16 halves
	// the bytes but rounds the values, so it is part of the fingerprint.
	HiddenType tensorv1.ElementType
	// MixClasses makes pipelines over shards of several kernel classes, of models for which no class has a whole
	// pipeline. Their results are those of no class, so their fingerprints name the layers of each.
	MixClasses bool
	// Queue is the maximum number of requests that wait for admission to a pipeline; 0 means 256.
	Queue int
	// TenantQueue is the maximum number of waiting requests of one tenant that has a name; 0 means three
	// quarters of Queue.
	TenantQueue int
	// CacheIdle is how long the KV pages of a prompt stay in the prefix cache after they were last
	// used; 0 means 5 min, and less than 0 turns the prefix cache off.
	CacheIdle time.Duration
	// StepFloor is the shortest step deadline while another pipeline of the model exists, and LoneFloor
	// while none does; 0 means 250 ms and 2 s.
	StepFloor, LoneFloor time.Duration
	// ProbeLimit is how long a new pipeline may take for its first tokens; 0 means 60 s, since the stages
	// may have to read weights from disk. Where all stages have computed before it is 5 s at most.
	ProbeLimit time.Duration
	// ReplayShare bounds how many positions are computed again after losses: this many for each one of
	// work; 0 means 0.5, and less than 0 none. ReplayBurst more are allowed at once, and again
	// in every ReplayRefill; 0 means 65,536 and one minute. Sequences over the budget wait.
	ReplayShare  float64
	ReplayBurst  int
	ReplayRefill time.Duration
	// Hedge is the shortest time after which a prompt is computed on a second pipeline as well, because its
	// first token is late: later than that of 95 of 100 prompts of about its length. The one that answers
	// first goes on. It spends from the budget for replays. 0 means 250 ms, and less than 0 turns it off.
	Hedge time.Duration
	// ReadLimit is how long a client's stream may stay full before the client is disconnected; 0
	// means 30 s.
	ReadLimit time.Duration
	// Journal stores the logs of resumable requests, so that other routers can continue them. Without
	// one a request is resumable on its own router only.
	Journal journal.Journal
	// Adapters are offered from the start on. AdapterDir is the folder in which the router keeps adapters that it is
	// sent; empty means that it takes none.
	Adapters   []AdapterSource
	AdapterDir string
	// AdapterDisk bounds the bytes of the files in AdapterDir; 0 means 8 GiB. The least recently used adapters make
	// room for new ones, but not those that are in use, nor the one before of each name.
	AdapterDisk int64
	// Meters finds the budgets of the owners of requests that were begun at other routers; nil charges nobody.
	Meters Meters
	// Grace is how long a resumable request runs without a reader, and how long it is kept after its
	// end; 0 means one minute.
	Grace time.Duration
	// Placement places layers on shards that take assignments; nil for a router that does not.
	Placement *Placement
	// ReplayBytes bounds the memory for the tokens of a resumable request; 0 means 4 MiB. The oldest
	// ones are dropped when there are more.
	ReplayBytes int
}

const (
	describeLimit = 3 * time.Second        // how long a service may take to describe itself
	rebuildAfter  = 500 * time.Millisecond // between tries to build pipelines
	maxMoves      = 8                      // pipelines that a session may lose in a row without a token
	readLimit     = 30 * time.Second       // default of Config.ReadLimit
	probeLimit    = 60 * time.Second       // default of Config.ProbeLimit
	cacheIdle     = 5 * time.Minute        // default of Config.CacheIdle
)

// Service implements lamina.router.v1.RouterService.
type Service struct {
	routerv1.UnimplementedRouterServiceServer
	cfg Config
	log *slog.Logger
	m   *metrics

	grammars *grammarChecker
	requests *requests
	replays  *replayBudget
	firsts   firstTimes
	embeds   atomic.Uint64 // batches of texts so far; chooses the next chain
	pokes    chan struct{} // wakes Run
	placer   *placer       // nil for none
	hops     hopTimes

	mu           sync.Mutex
	instances    map[string][]discovery.Instance          // by service
	missing      map[string]*missing                      // instances that are no longer listed, by id
	held         map[string]described                     // shards by id
	vocabs       map[string]*tokenizerv1.DescribeResponse // tokenizers by address
	renew        map[string]bool                          // those that are to be asked again
	stale        map[string]bool                          // by id, the shards that are to be asked again
	vocabularies map[string]*vocabulary                   // by digest
	models       map[string]*modelInfo                    // by digest, from vocabs
	asking       map[string]bool                          // addresses being described
	sought       map[sought]time.Time                     // when tokenizers were asked for models
	pipelines    map[string]*pipeline                     // by id
	building     map[string]plan.Chain                    // chains that are being opened or run
	adapters     *adapters
	deploys      *deployments
	wake         func()           // lets Run look at the inventory; nil before it runs
	draftVocabs  map[string]error // why two vocabularies differ, or nil, by vocabKey
	tries        int              // chains opened so far; chooses the next sampler
	changed      chan struct{}    // closed and replaced when any of these change
}

// modelInfo is what tokenizers report about a model.
type modelInfo struct {
	vocabulary *tokenizerv1.Vocabulary
	tokenizers []string // addresses, sorted
}

// New returns a router. It finds no services until Run is called.
func New(c Config) *Service {
	s := &Service{
		cfg: c, log: c.Log, m: newMetrics(c.Metrics, c.MetricsPrefix), grammars: newGrammarChecker(),
		requests:  newRequests(),
		instances: map[string][]discovery.Instance{}, missing: map[string]*missing{}, held: map[string]described{},
		vocabs: map[string]*tokenizerv1.DescribeResponse{}, renew: map[string]bool{}, asking: map[string]bool{},
		stale:  map[string]bool{},
		sought: map[sought]time.Time{},
		models: map[string]*modelInfo{}, vocabularies: map[string]*vocabulary{},
		draftVocabs: map[string]error{}, pipelines: map[string]*pipeline{},
		building: map[string]plan.Chain{}, changed: make(chan struct{}), pokes: make(chan struct{}, 1),
		adapters: newAdapters(c), deploys: newDeployments(),
	}
	s.replays = newReplayBudget(c, s.m)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if c.Placement != nil {
		s.placer = newPlacer(s, *c.Placement)
	}
	s.m.observeStages(c.Metrics, s)
	if c.Metrics != nil {
		c.Metrics.MustRegister(newDeployCollector(s))
	}
	s.m.serving.register(c.Metrics, s)
	if s.cfg.Hedge == 0 {
		s.cfg.Hedge = hedgeLeast
	}
	if s.cfg.ReadLimit == 0 {
		s.cfg.ReadLimit = readLimit
	}
	if s.cfg.ProbeLimit == 0 {
		s.cfg.ProbeLimit = probeLimit
	}
	switch {
	case s.cfg.CacheIdle == 0:
		s.cfg.CacheIdle = cacheIdle
	case s.cfg.CacheIdle < 0:
		s.cfg.CacheIdle = 0
	}
	if s.cfg.Grace == 0 {
		s.cfg.Grace = graceDefault
	}
	for _, d := range []struct {
		p *int
		n int
	}{
		{&s.cfg.BatchRows, 512}, {&s.cfg.ChunkRows, 256}, {&s.cfg.Queue, 256}, {&s.cfg.ReplayBytes, replayDefault},
	} {
		if *d.p == 0 {
			*d.p = d.n
		}
	}
	if s.cfg.TenantQueue == 0 {
		s.cfg.TenantQueue = max(1, s.cfg.Queue*3/4)
	}
	return s
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { routerv1.RegisterRouterServiceServer(r, s) }

// notifyChange wakes everything that waits for a change. The caller holds mu.
func (s *Service) notifyChange() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await returns a pipeline of a model, given its name or digest. An empty name means the only model. It
// waits at most the given time for one.
func (s *Service) await(ctx context.Context, name string, wait time.Duration) (*pipeline, error) {
	return s.choose(ctx, name, work{key: drawKey(ctx)}, wait, func(*pipeline) {})
}

// work is a sequence that needs a pipeline.
type work struct {
	tenant string
	log    []int32
	maxLen int    // the longest that the log may become
	key    string // of the request, which decides whether it goes to a canary
	// stable keeps the request away from canaries: they do not have the adapters of the live version, or it has failed
	// on one.
	stable bool
	// adapter is what all stages of the pipeline have to hold; nil for none.
	adapter *servedAdapter
}

// assign picks the pipeline for a sequence and counts it there at once, so that sequences that arrive
// together are spread over the pipelines. It waits at most the given time for a pipeline.
func (s *Service) assign(ctx context.Context, name string, w work, wait time.Duration) (*pipeline, error) {
	return s.choose(ctx, name, w, wait, func(p *pipeline) { p.assigned.Add(1) })
}

// choose waits for a pipeline, and passes it to take while the list of pipelines is locked.
func (s *Service) choose(
	ctx context.Context, name string, w work, wait time.Duration, take func(*pipeline),
) (*pipeline, error) {
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		s.mu.Lock()
		best, err := s.best(name, w)
		changed := s.changed
		if best != nil {
			take(best)
		}
		s.mu.Unlock()
		if best != nil {
			return best, nil
		}
		if fault.CodeOf(err) != fault.Unavailable { // waiting changes nothing
			return nil, err
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// best returns the pipeline of a model that a sequence should be sent to, among those whose KV cache
// can hold it. It returns a draft pipeline only if the request names the draft model and no other
// pipeline serves it. The caller holds mu.
func (s *Service) best(name string, w work) (*pipeline, error) {
	digests, answers := map[string]bool{}, s.answers(name, w)
	for _, draft := range []bool{false, true} {
		if draft && name == "" {
			break
		}
		var found []*pipeline
		var candidates []sched.Candidate
		lacking, failed := 0, 0
		var why error
		for _, id := range slices.Sorted(maps.Keys(s.pipelines)) {
			p := s.pipelines[id]
			if p.draft != draft || p.dead() || !answers(p) {
				continue
			}
			digests[p.digest] = true
			if !s.holds(p, w.adapter) {
				lacking++
				if err := s.adapters.failure(p, w.adapter); err != nil {
					failed, why = failed+1, err
				}
				continue
			}
			if c, ok := p.candidate(w); ok {
				found, candidates = append(found, p), append(candidates, c)
			}
		}
		switch {
		case len(digests) > 1 && name == "":
			return nil, fault.Field("model", "several models are served: name one")
		case len(digests) > 1:
			return nil, fault.Field("model", "%q names several models: give a digest", name)
		case len(found) > 0:
			return found[sched.Route(candidates)], nil
		case lacking > 0 && failed == lacking: // it is tried again
			return nil, fault.New(fault.Unavailable, "find a pipeline for model %q: adapter %s cannot be loaded: %v", name,
				w.adapter.digest, why).After(adapterAgain).Because(reasonCapacity)
		case lacking > 0:
			return nil, fault.New(fault.Unavailable, "find a pipeline for model %q: adapter %s is being loaded", name,
				w.adapter.digest).After(time.Second).Because(reasonCapacity)
		case len(digests) > 0: // it waits for the model rather than take the place of drafts
			return nil, fault.New(fault.Unavailable, "find a pipeline for model %q: none holds %d positions now", name,
				w.maxLen).After(time.Second).Because(reasonCapacity)
		}
	}
	return nil, s.noPipeline(name)
}

// candidate describes the pipeline as a place for a sequence. ok is false if its KV cache cannot hold
// the sequence.
func (p *pipeline) candidate(w work) (c sched.Candidate, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sched.ContextLength() < w.maxLen {
		return c, false
	}
	return sched.Candidate{Load: int(p.load()), Cached: p.sched.Reusable(w.tenant, w.adapter.namespace(), w.log)}, true
}

// AwaitPipelines waits until n pipelines are open. An encoder that shards hold completely counts as one.
func (s *Service) AwaitPipelines(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		have, changed := len(s.pipelines)+len(s.encoders()), s.changed
		s.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
