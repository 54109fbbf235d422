package app

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

const (
	loadTime   = 30 * time.Second
	maxPulls   = 4  // that run at the same time
	keptPulls  = 50 // that have ended and are still shown
	pulling    = "running"
	pullDone   = "done"
	pullFailed = "failed"
	pullEnded  = "canceled"
)

// wanted is the set of models of the store that a mesh shall serve, by name and digest: a model that was pulled again
// is another one, which the tokenizer does not know. A nil set is of a process without shards that take their layers
// from the placer. It is safe for concurrent use.
type wanted struct {
	mu      sync.Mutex
	digests map[string]string // by name
}

func (w *wanted) has(name, digest string) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return digest != "" && w.digests[name] == digest
}

func (w *wanted) add(name, digest string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.digests[name] = digest
}

// remove forgets a model that has gone from the store.
func (w *wanted) remove(name string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.digests, name)
}

// modelStore is the store of models as the console sees it. Each pull has a goroutine, which stop joins.
type modelStore struct {
	config StoreConfig
	store  *store.Store
	wanted *wanted
	learn  func(tokenizer.Model) error // tells the tokenizer and the router of a model
	log    *slog.Logger
	base   context.Context // of pulls
	end    context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	next    int
	jobs    []*pullJob    // in the order of their beginning
	changed chan struct{} // closed and replaced when a job changes
}

// pullJob is a pull. The store's mu guards it.
type pullJob struct {
	console.Pull
	cancel context.CancelFunc
}

func openModelStore(
	c StoreConfig, w *wanted, learn func(tokenizer.Model) error, log *slog.Logger,
) (*modelStore, error) {
	s, err := store.Open(c.Dir, store.Options{Limit: c.Limit})
	if err != nil {
		return nil, err
	}
	base, end := context.WithCancel(context.Background())
	return &modelStore{config: c, store: s, wanted: w, learn: learn, log: log, base: base, end: end,
		changed: make(chan struct{})}, nil
}

// stop ends all pulls. What they have fetched stays, and another pull goes on there.
func (s *modelStore) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.end()
	s.wg.Wait()
}

// Models lists the models of the store.
func (s *modelStore) Models() ([]console.StoredModel, error) {
	models, err := s.store.Models()
	if err != nil && len(models) == 0 {
		return nil, err
	}
	if err != nil {
		s.log.Warn("read the store of models", "error", err)
	}
	out := []console.StoredModel{}
	for _, m := range models {
		out = append(out, console.StoredModel{Name: m.Name, Digest: m.Digest, Bytes: m.Size(), Files: len(m.Files),
			Source: m.Source, LastUsed: m.LastUsed, InUse: m.InUse,
			Loadable: s.wanted != nil && !s.wanted.has(m.Name, m.Digest)})
	}
	return out, nil
}

// Remove removes a model that is not in use.
func (s *modelStore) Remove(ctx context.Context, name string) error {
	_, err := s.store.Remove(ctx, name)
	if err == nil {
		s.wanted.remove(name)
	}
	return err
}

// Load has the tokenizer of this process learn a model, and its shards offer it to the placer.
func (s *modelStore) Load(name string) error {
	if s.wanted == nil {
		return fault.New(fault.FailedPrecondition, "load model %s: this process has no shards that take layers: start "+
			"lamina up with --auto, or shards with --auto, which offer the models of their store", name)
	}
	ctx, cancel := context.WithTimeout(s.base, loadTime)
	defer cancel()
	lease, err := s.store.Acquire(ctx, name)
	if err != nil {
		return err
	}
	m, err := tokenizer.Load(lease.Path, name, lease.Digest)
	if err == nil {
		err = s.learn(m)
	}
	if err = errors.Join(err, lease.Close()); err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "load model %s", name)
	}
	s.wanted.add(name, lease.Digest)
	return nil
}

// Pull begins to fetch a model. Paths of this machine are for lamina pull alone: whoever calls here is elsewhere.
func (s *modelStore) Pull(r console.PullRequest) (console.Pull, error) {
	source, done, err := s.source(r)
	if err != nil {
		return console.Pull{}, err
	}
	if r.Name != "" {
		if err := store.CheckName(r.Name); err != nil {
			done()
			return console.Pull{}, fault.Field("name", "%v", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	running := 0
	for _, j := range s.jobs {
		if j.State == pulling {
			running++
		}
	}
	if s.stopped || running >= maxPulls {
		done()
		return console.Pull{}, fault.New(fault.Unavailable, "pull %.200s: %d pulls are running", r.Source, running)
	}
	s.next++
	ctx, cancel := context.WithCancel(s.base)
	j := &pullJob{console.Pull{ID: strconv.Itoa(s.next), Source: r.Source, Name: r.Name, State: pulling}, cancel}
	s.jobs = append(s.jobs, j)
	s.forget()
	s.notify()
	s.wg.Go(func() {
		defer done()
		defer cancel()
		s.run(ctx, j, source, r.Name)
	})
	return j.Pull, nil
}

// source finds out what kind of source was named.
func (s *modelStore) source(r console.PullRequest) (pull.Source, func(), error) {
	remote := strings.HasPrefix(r.Source, "http://") || strings.HasPrefix(r.Source, "https://")
	switch {
	case remote && len(r.Include) > 0:
		return nil, nil, fault.Field("include", "it is for repositories: name the file in the address")
	case remote:
		client := pull.NewClient(pull.ClientOptions{})
		return &pull.Web{Client: client, URL: r.Source}, client.Close, nil
	case pull.IsRepository(r.Source):
		client := pull.NewClient(pull.ClientOptions{})
		return &pull.Hub{Client: client, Endpoint: cmp.Or(s.config.Endpoint, pull.DefaultEndpoint),
			Repository: r.Source, Revision: r.Revision, Include: r.Include}, client.Close, nil
	}
	return nil, nil, fault.Field("source", "%.200q is no address that begins with https://, and no repository OWNER/NAME",
		r.Source)
}

// run fetches a model.
func (s *modelStore) run(ctx context.Context, j *pullJob, source pull.Source, name string) {
	result, err := pull.Pull(ctx, s.store, source, pull.Options{Name: name, Progress: func(p pull.Progress) {
		s.change(func() { j.Name, j.File, j.Done, j.Total = p.Name, p.File, p.Done, p.Total })
	}})
	s.change(func() {
		j.File = ""
		switch {
		case err == nil:
			j.State, j.Name, j.Total = pullDone, result.Manifest.Name, result.Manifest.Size()
			j.Done = j.Total
		case ctx.Err() != nil:
			j.State = pullEnded
		default:
			j.State, j.Error = pullFailed, err.Error()
		}
	})
	if err != nil {
		s.log.Warn("pull a model for the console", "source", j.Source, "error", err)
	}
}

// change applies f and wakes the watchers.
func (s *modelStore) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.notify()
}

// notify wakes the watchers. The caller holds mu.
func (s *modelStore) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// forget drops the oldest pulls that have ended. The caller holds mu.
func (s *modelStore) forget() {
	for len(s.jobs) > keptPulls {
		i := slices.IndexFunc(s.jobs, func(j *pullJob) bool { return j.State != pulling })
		if i < 0 {
			return
		}
		s.jobs = slices.Delete(s.jobs, i, i+1)
	}
}

// Watch reports all pulls.
func (s *modelStore) Watch(ctx context.Context, send func([]console.Pull) error) error {
	for {
		s.mu.Lock()
		changed := s.changed
		var now []console.Pull
		for _, j := range s.jobs {
			now = append(now, j.Pull)
		}
		s.mu.Unlock()
		if err := send(now); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.base.Done():
			return fault.New(fault.Unavailable, "watch pulls: the router stops")
		}
	}
}

// Cancel ends a pull, or forgets one that has ended.
func (s *modelStore) Cancel(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.jobs, func(j *pullJob) bool { return j.ID == id })
	if i < 0 {
		return fault.New(fault.NotFound, "find pull %.40q", id)
	}
	if j := s.jobs[i]; j.State == pulling {
		j.cancel()
		return nil
	}
	s.jobs = slices.Delete(s.jobs, i, i+1)
	s.notify()
	return nil
}
