package trainer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/reward"
)

// Dialer connects to shards.
type Dialer interface {
	Dial(addr string) (*grpc.ClientConn, error)
}

// Registry lists the live shards, and has a lock for each run, so that one trainer at a time leads it.
type Registry interface {
	Watch(ctx context.Context, service string) (<-chan []discovery.Instance, error)
	// Lock waits for the lock of a key until ctx ends.
	Lock(ctx context.Context, key, holder string) (discovery.Lease, error)
}

// Config configures the service.
type Config struct {
	Log      *slog.Logger
	Dialer   Dialer
	Registry Registry
	Dir      string // for the files of runs that name no folder, and the records of all runs
	// Data is the folder of the files that manifests name; the working folder if empty. AllowPaths are
	// further folders for what manifests name, and AllowWrite are further folders for the files of runs.
	Data       string
	AllowPaths []string
	AllowWrite []string
	// Models are files or folders of models, by the names that model.from may have for them.
	Models map[string]string
	// Transient keeps the record of a run in the folder of its files. Such a trainer ends with its run.
	Transient bool
	// Heartbeat is how often stages say that they live; 1 s when 0. Silence is after how long without a sign of
	// life a stage counts as lost; 15 s when 0.
	Heartbeat, Silence time.Duration
	// Standby is how often the trainer looks for runs of its folder that another trainer has started, in order to
	// take them up when that one has gone; 0 for never.
	Standby time.Duration
	// Runner runs the programs that score answers. nil refuses manifests that name one: whoever can start a run could
	// run any program.
	Runner  reward.Runner
	Metrics prometheus.Registerer // nil exports nothing
}

// TrainsMeta is the discovery metadata key that shards set to "true" if they train.
const TrainsMeta = "trains"

// Service implements lamina.trainer.v1.TrainerService.
type Service struct {
	trainerv1.UnimplementedTrainerServiceServer
	cfg   Config
	log   *slog.Logger
	paths paths // of what manifests name
	outs  paths // of the files of runs
	// folders is why the folders above are not known, or nil.
	folders error

	started chan struct{} // closed when runs may start

	mu     sync.Mutex
	runs   map[string]*run
	ctx    context.Context
	wg     sync.WaitGroup
	closed bool
}

// startWait is how long a request waits for a trainer that has just begun to serve.
const startWait = 10 * time.Second

// New returns a trainer. Its runs end at the latest when the context of Run ends.
func New(c Config) *Service {
	s := &Service{cfg: c, log: c.Log, started: make(chan struct{}), runs: map[string]*run{}}
	var data, outs error
	s.paths, data = newPaths(cmp.Or(c.Data, "."), c.AllowPaths)
	s.paths.models = c.Models
	s.outs, outs = newPaths(c.Dir, c.AllowWrite)
	s.outs.flag = "--allow-write"
	s.folders = errors.Join(data, outs)
	if c.Metrics != nil {
		c.Metrics.MustRegister(collector{s})
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { trainerv1.RegisterTrainerServiceServer(r, s) }

// Run lists the runs of the trainer's folder and allows runs to start. When ctx ends, it waits for them
// to end.
func (s *Service) Run(ctx context.Context) error {
	if s.folders != nil {
		return s.folders
	}
	s.mu.Lock()
	s.restore()
	s.ctx = ctx
	s.mu.Unlock()
	close(s.started)
	if s.cfg.Standby > 0 {
		s.wg.Go(func() { s.standBy(ctx) })
	}
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// shards lists the addresses of the shards that train, without banned ones. It waits for the first one.
func (s *Service) shards(ctx context.Context, banned map[string]bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, shardsWait)
	defer cancel()
	ch, err := s.cfg.Registry.Watch(ctx, "shard")
	if err != nil {
		return nil, err
	}
	for state := range ch {
		addrs := slices.DeleteFunc(trains(state), func(addr string) bool { return banned[addr] })
		if len(addrs) > 0 {
			return addrs, nil
		}
	}
	if len(banned) > 0 {
		return nil, fault.New(fault.Unavailable, "find shards: no shard that trains within %v, except %d in quarantine",
			shardsWait, len(banned)).After(time.Second)
	}
	return nil, fault.New(fault.Unavailable, "find shards: no shard that trains within %v",
		shardsWait).After(time.Second)
}

// timing returns when stages count as lost.
func (s *Service) timing() timing {
	return timing{heartbeat: cmp.Or(s.cfg.Heartbeat, defaultHeartbeat), silence: cmp.Or(s.cfg.Silence, defaultSilence),
		wedged: defaultWedged}
}

// trains lists the addresses of the shards that train.
func trains(state []discovery.Instance) (addrs []string) {
	for _, i := range state {
		if i.Meta[TrainsMeta] == "true" {
			addrs = append(addrs, i.Addr)
		}
	}
	return addrs
}

// StartRun starts or resumes a run.
func (s *Service) StartRun(ctx context.Context, r *trainerv1.StartRunRequest) (*trainerv1.StartRunResponse, error) {
	m, err := ParseManifest(r.GetManifestJson())
	if err != nil {
		return nil, err
	}
	l := layout{stages: max(1, int(r.GetStages())), replicas: max(1, int(r.GetReplicas()))}
	b, err := s.plan(m, l)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.cfg.Dir, m.Name)
	if r.GetOut() != "" {
		if dir, err = s.outs.resolveNew("out", r.GetOut()); err != nil {
			return nil, err
		}
	}
	s.awaitStart(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "start run %s", m.Name)
	}
	for _, other := range s.runs {
		if other.isActive() && (other.name == m.Name || other.dir == dir) {
			return nil, fault.New(fault.AlreadyExists, "start run %s: run %s uses %s", m.Name, other.name,
				other.dir)
		}
	}
	n := newRun(s, m, r.GetManifestJson(), dir)
	if err := n.launch(s.ctx, b, l, r.GetResume(), nil); err != nil {
		return nil, err
	}
	s.runs[m.Name] = n
	return &trainerv1.StartRunResponse{Run: m.Name}, nil
}

// awaitStart waits until runs may start, for a while. A server may take requests a moment before that.
func (s *Service) awaitStart(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	select {
	case <-s.started:
	case <-ctx.Done():
	}
}

// open returns an error unless runs may start. The caller holds mu.
func (s *Service) open() error {
	switch {
	case s.ctx == nil:
		return errors.New("the trainer has not started yet")
	case s.closed:
		return errors.New("the trainer is ending")
	}
	return nil
}

// plan checks a manifest and a layout whole, and reads the files that the manifest names for its model.
func (s *Service) plan(m *Manifest, l layout) (*blueprint, error) {
	b, err := m.blueprint(s.paths.resolve)
	if err != nil {
		return nil, err
	}
	if err := m.resolve(s.paths); err != nil {
		return nil, err
	}
	if err := b.openReward(s.cfg.Runner); err != nil {
		return nil, err
	}
	spec, err := b.spec(anyVocab, false)
	if err != nil {
		return nil, err
	}
	return b, l.check(m, len(spec.Layers))
}

// check returns an error for a layout that a manifest does not allow.
func (l layout) check(m *Manifest, layers int) error {
	if n := m.spans(l.stages); l.stages*n > layers {
		return fault.Field("stages", "%d stages of %d spans are more than %d layers", l.stages, n, layers)
	}
	return m.checkReplicas(l.replicas)
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
