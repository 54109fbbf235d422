package router

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// Dialer reaches the other services.
type Dialer interface {
	Dial(addr string) (*grpc.ClientConn, error)
}

// Registry says who is alive.
type Registry interface {
	Watch(ctx context.Context, service string) (<-chan []discovery.Instance, error)
}

// Config is what the service is given from outside.
type Config struct {
	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil measures nothing
	Dialer   Dialer
	Registry Registry
	// BatchRows is the most rows of a batch; 0 means 512.
	BatchRows int
	// ChunkRows is the most rows of one prompt in a batch; 0 means 256.
	ChunkRows int
	// Speculate is the most draft tokens after each token, proposed by n-grams of the
	// sequence's own log, else by the draft model. The text is the same; 0 turns it off.
	Speculate int
	// Draft is the name or digest of the draft model, whose vocabulary must be that of the
	// models it drafts for. It answers only requests that name it. Empty means none. If a
	// model drafts for itself, the draft needs a name of its own.
	Draft string
	// DraftLeast is the probability below which a draft token is the last of its round; 0
	// means none.
	DraftLeast float64
	// HiddenType is how hidden states travel between stages; 0 is float32. bfloat16 takes
	// half the bytes, rounds them, and is part of the fingerprint.
	HiddenType tensorv1.ElementType
	// Queue is the most requests waiting for admission to a pipeline; 0 means 256.
	Queue int
	// ReadLimit is how long a client may leave its stream full before it is disconnected; 0
	// means 30 s.
	ReadLimit time.Duration
}

const (
	describeLimit = 3 * time.Second        // for a service to describe itself
	rebuildAfter  = 500 * time.Millisecond // between tries to build pipelines
	moveLimit     = 20 * time.Second       // for a session to find another pipeline
	maxMoves      = 8                      // pipelines that a session may lose without a token
	readLimit     = 30 * time.Second       // of Config.ReadLimit
)

// Service implements lamina.router.v1.RouterService.
type Service struct {
	routerv1.UnimplementedRouterServiceServer
	cfg Config
	log *slog.Logger
	m   *metrics

	grammars *grammarChecker

	mu           sync.Mutex
	instances    map[string][]discovery.Instance          // by service
	held         map[string]described                     // shards by id
	vocabs       map[string]*tokenizerv1.DescribeResponse // tokenizers by address
	vocabularies map[string]*vocabulary                   // by digest
	models       map[string]*modelInfo                    // by digest, from vocabs
	asking       map[string]bool                          // addresses being described
	pipelines    map[string]*pipeline                     // by id
	building     map[string]plan.Chain                    // chains that are being opened or run, by their text
	fits         map[string]error                         // why a draft model's vocabulary is not a model's, or nil, by both digests
	tries        int                                      // chains opened so far, which chooses the sampler
	changed      chan struct{}                            // closed and renewed when any of these change
}

// modelInfo is what tokenizers say of a model.
type modelInfo struct {
	vocabulary *tokenizerv1.Vocabulary
	tokenizers []string // addresses, sorted
}

// New returns a router that knows no service until Run.
func New(c Config) *Service {
	s := &Service{
		cfg: c, log: c.Log, m: newMetrics(c.Metrics), grammars: newGrammarChecker(), instances: map[string][]discovery.Instance{}, held: map[string]described{},
		vocabs: map[string]*tokenizerv1.DescribeResponse{}, asking: map[string]bool{}, models: map[string]*modelInfo{}, vocabularies: map[string]*vocabulary{}, fits: map[string]error{}, pipelines: map[string]*pipeline{}, building: map[string]plan.Chain{}, changed: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.ReadLimit == 0 {
		s.cfg.ReadLimit = readLimit
	}
	for _, d := range []struct {
		p *int
		n int
	}{{&s.cfg.BatchRows, 512}, {&s.cfg.ChunkRows, 256}, {&s.cfg.Queue, 256}} {
		if *d.p == 0 {
			*d.p = d.n
		}
	}
	return s
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { routerv1.RegisterRouterServiceServer(r, s) }

// touch wakes whoever waits for a change; mu is held.
func (s *Service) touch() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// pick finds the least loaded pipeline of a model by name or digest; empty is the
// only model.
func (s *Service) pick(name string) (*pipeline, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.best(name, 0)
}

// assign picks the pipeline for a sequence of the given length and counts it there at once,
// so that sequences that arrive together are spread. It waits for a pipeline for at most
// the given time.
func (s *Service) assign(ctx context.Context, name string, length int, wait time.Duration) (*pipeline, error) {
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		s.mu.Lock()
		best, err := s.best(name, length)
		changed := s.changed
		if best != nil {
			best.assigned.Add(1)
		}
		s.mu.Unlock()
		if best != nil {
			return best, nil
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

// best finds the least loaded pipeline of a model whose KV cache holds length positions; a
// draft pipeline only if the draft model is named and no other pipeline serves it; mu is
// held.
func (s *Service) best(name string, length int) (*pipeline, error) {
	digests := map[string]bool{}
	var best *pipeline
	for _, draft := range []bool{false, true} {
		if draft && (name == "" || best != nil) {
			break
		}
		for _, p := range s.pipelines {
			if p.draft != draft || p.dead() || name != "" && p.chain.Digest() != name && p.model() != name {
				continue
			}
			digests[p.chain.Digest()] = true
			if p.capacity() < length {
				continue
			}
			if best == nil || p.load() < best.load() || p.load() == best.load() && p.id < best.id {
				best = p
			}
		}
	}
	switch {
	case len(digests) > 1 && name == "":
		return nil, fault.Field("model", "name one: there are several")
	case len(digests) > 1:
		return nil, fault.Field("model", "%q names several models: give a digest", name)
	case best != nil:
		return best, nil
	}
	return nil, s.whyNone(name)
}

// metrics are the router's own.
type metrics struct {
	requests *prometheus.CounterVec
	tokens   prometheus.Counter
	first    prometheus.Histogram
	between  prometheus.Histogram
	moves    prometheus.Counter
	drafted  *prometheus.CounterVec
	accepted *prometheus.CounterVec
	steps    *prometheus.CounterVec
	dropped  *prometheus.CounterVec
	drafting prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_requests_total", Help: "Requests by how they ended."}, []string{"end"},
		),
		tokens: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_router_tokens_total", Help: "Tokens generated."},
		),
		first: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lamina_router_first_token_seconds", Help: "From request to first token.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		between: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lamina_router_inter_token_seconds", Help: "Between tokens of a request.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		drafted: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "lamina_router_draft_tokens_total", Help: "Draft tokens sent to be verified, by proposer.",
			},
			[]string{"proposer"},
		),
		accepted: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_accepted_tokens_total", Help: "Draft tokens accepted, by proposer."},
			[]string{"proposer"},
		),
		steps: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "lamina_router_steps_total", Help: "Batches sent, by the purpose of their pipeline: answer or draft.",
			},
			[]string{"pipeline"},
		),
		dropped: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "lamina_router_draft_sessions_dropped_total", Help: "Draft sessions dropped, by code."},
			[]string{"code"},
		),
		drafting: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lamina_router_draft_seconds", Help: "From a request for draft tokens to the draft model's answer.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		moves: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_router_moves_total", Help: "Sessions moved to another pipeline."},
		),
	}
	if r != nil {
		r.MustRegister(
			m.requests, m.tokens, m.first, m.between, m.moves, m.drafted, m.accepted, m.steps, m.dropped, m.drafting,
		)
	}
	return m
}

// AwaitPipelines waits until n pipelines are open.
func (s *Service) AwaitPipelines(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		have, changed := len(s.pipelines), s.changed
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
