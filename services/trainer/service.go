package trainer

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// Dialer connects to shards.
type Dialer interface {
	Dial(addr string) (*grpc.ClientConn, error)
}

// Registry lists the live shards.
type Registry interface {
	Watch(ctx context.Context, service string) (<-chan []discovery.Instance, error)
}

// Config configures the service.
type Config struct {
	Log      *slog.Logger
	Dialer   Dialer
	Registry Registry
	Dir      string // for the files of runs that name no folder
	// Paths is asked for every path of a manifest's model and vocabulary; nil allows all.
	Paths PathRule
}

// TrainsMeta is the discovery metadata key that shards set to "true" if they train.
const TrainsMeta = "trains"

// Service implements lamina.trainer.v1.TrainerService.
type Service struct {
	trainerv1.UnimplementedTrainerServiceServer
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	runs   map[string]*run
	ctx    context.Context
	wg     sync.WaitGroup
	closed bool
}

// New returns a trainer. Its runs end at the latest when the context of Run ends.
func New(c Config) *Service {
	s := &Service{cfg: c, log: c.Log, runs: map[string]*run{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { trainerv1.RegisterTrainerServiceServer(r, s) }

// Run allows runs to start. When ctx ends, it waits for them to end.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// shards lists the addresses of the shards that train. It waits for the first one.
func (s *Service) shards(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, shardsWait)
	defer cancel()
	ch, err := s.cfg.Registry.Watch(ctx, "shard")
	if err != nil {
		return nil, err
	}
	for state := range ch {
		var addrs []string
		for _, i := range state {
			if i.Meta[TrainsMeta] == "true" {
				addrs = append(addrs, i.Addr)
			}
		}
		if len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "find shards: no shard that trains within %v",
		shardsWait).After(time.Second)
}

// StartRun starts or resumes a run.
func (s *Service) StartRun(_ context.Context, r *trainerv1.StartRunRequest) (*trainerv1.StartRunResponse, error) {
	m, err := ParseManifest(r.GetManifestJson())
	if err != nil {
		return nil, err
	}
	l := layout{stages: max(1, int(r.GetStages())), replicas: max(1, int(r.GetReplicas()))}
	b, err := m.blueprint(s.path)
	if err != nil {
		return nil, err
	}
	spec, err := b.spec(anyVocab, false)
	if err != nil {
		return nil, err
	}
	if n, layers := m.spans(l.stages), len(spec.Layers); l.stages*n > layers {
		return nil, fault.Field("stages", "%d stages of %d spans are more than %d layers", l.stages, n, layers)
	}
	if err := m.checkReplicas(l.replicas); err != nil {
		return nil, err
	}
	dir := r.GetOut()
	if dir == "" {
		dir = filepath.Join(s.cfg.Dir, m.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.closed {
		return nil, fault.New(fault.Unavailable, "start run %s: the trainer is not running", m.Name)
	}
	for _, other := range s.runs {
		if now, _ := other.snapshot(); !final(now.GetState()) && (other.manifest.Name == m.Name || other.dir == dir) {
			return nil, fault.New(fault.AlreadyExists, "start run %s: run %s uses %s", m.Name, other.manifest.Name,
				other.dir)
		}
	}
	n := newRun(s, b, r.GetManifestJson(), l, dir, r.GetResume())
	s.runs[m.Name] = n
	ctx := s.ctx
	s.wg.Go(func() { n.main(ctx) })
	return &trainerv1.StartRunResponse{Run: m.Name}, nil
}

// path applies the rule for paths.
func (s *Service) path(field, path string) (string, error) {
	if s.cfg.Paths == nil {
		return path, nil
	}
	return s.cfg.Paths(field, path)
}

func (s *Service) find(name string) (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.runs[name]; r != nil {
		return r, nil
	}
	return nil, fault.New(fault.NotFound, "find run %q: unknown run", name)
}

// WatchRun streams the status of a run.
func (s *Service) WatchRun(r *trainerv1.WatchRunRequest,
	stream grpc.ServerStreamingServer[trainerv1.WatchRunResponse]) error {
	n, err := s.find(r.GetRun())
	if err != nil {
		return err
	}
	for {
		now, changed := n.snapshot()
		if err := stream.Send(&trainerv1.WatchRunResponse{Run: now}); err != nil {
			return err
		}
		if final(now.GetState()) {
			return nil
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// ListRuns lists the runs.
func (s *Service) ListRuns(context.Context, *trainerv1.ListRunsRequest) (*trainerv1.ListRunsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &trainerv1.ListRunsResponse{}
	for _, r := range s.runs {
		now, _ := r.snapshot()
		out.Runs = append(out.Runs, now)
	}
	slices.SortFunc(out.GetRuns(), func(a, b *trainerv1.Run) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// StopRun stops a run after the current step.
func (s *Service) StopRun(ctx context.Context, r *trainerv1.StopRunRequest) (*trainerv1.StopRunResponse, error) {
	n, err := s.find(r.GetRun())
	if err != nil {
		return nil, err
	}
	n.stopOnce.Do(func() { close(n.stop) })
	select {
	case <-n.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now, _ := n.snapshot()
	return &trainerv1.StopRunResponse{Run: now}, nil
}
