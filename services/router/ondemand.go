package router

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

const (
	// loadingEvery is the time between two reports to a client whose model is being loaded.
	loadingEvery = time.Second
	// unheardLimit is how long a client waits for a model that hears nothing meanwhile.
	unheardLimit = 50 * time.Second
)

// awaitModel waits for a pipeline of the request's model. A deployment that sleeps is woken, and the client is told how
// far the loading is. It then waits as long as the load may take, unless the request says how long. A client that
// cannot be told waits no longer than unheardLimit, and the error says when to try again.
func (q *request) awaitModel(ctx context.Context) (*pipeline, error) {
	s, w := q.service, work{key: drawKey(ctx), stable: q.stable || q.adapterName != ""}
	none := func(*pipeline) {}
	if err := s.mayWake(ctx, q.model, q.adapterName); err != nil {
		return nil, err
	}
	d := s.sleeping(q.model)
	if d == nil {
		return s.choose(ctx, q.model, w, q.patience(), none)
	}
	patience := d.LoadLimit()
	switch {
	case q.wait != nil:
		patience = q.patience()
	case q.sink.loading == nil:
		patience = min(patience, unheardLimit)
	}
	start, woken := time.Now(), false
	for {
		left := patience - time.Since(start)
		p, err := s.choose(ctx, q.model, w, max(0, min(left, loadingEvery)), none)
		if err == nil && q.wait == nil {
			q.waits = time.Now() // the load does not shorten the wait for what comes after it, such as an adapter
		}
		if err == nil || fault.CodeOf(err) != fault.Unavailable {
			return p, err
		}
		switch {
		case left > 0:
		default:
			return nil, s.retryLater(ctx, err, d)
		}
		if d = s.deployed().Find(q.model); d == nil || d.Live == nil {
			return nil, err
		}
		if woken && d.Rest != deploy.Awake { // the placer has given up
			return nil, err
		}
		woken = woken || d.Rest == deploy.Awake
		l := s.loading(ctx, d.Name, d.Live.Digest) // measures it for the others, too
		if q.sink.loading != nil {
			if err := q.sink.loading(l); err != nil {
				return nil, err
			}
		}
	}
}

// mayWake returns an error if the caller may use no version of a deployment, which then is not loaded for the call.
// Whether it may use the version that answers is checked once that is known.
func (s *Service) mayWake(ctx context.Context, name, adapterName string) error {
	d := s.deployed().Find(name)
	if name == "" || d == nil {
		return nil
	}
	names := []string{adapted(d.Name, adapterName)}
	for _, v := range []*deploy.Version{d.Live, d.Next} {
		if v != nil {
			names = append(names, v.Digest, v.Model, adapted(v.Model, adapterName))
		}
	}
	return auth.CheckModel(ctx, d.Name, name, names...)
}

// retryLater says in an error when to ask again for a model that is being loaded: when its load will be done if it goes
// on as since this router has looked at it.
func (s *Service) retryLater(ctx context.Context, err error, d *deploy.Deployment) error {
	var e *fault.Error
	if d == nil || d.Live == nil || !errors.As(err, &e) {
		return err
	}
	s.loading(ctx, d.Name, d.Live.Digest)
	t, later := &s.deploys.loads, *e
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.progress[d.Live.Digest]
	if p == nil {
		return err
	}
	return later.After(p.Rest())
}

// sleeping returns the deployment of a name if no pipeline of its live version is open and requests load it; nil
// otherwise.
func (s *Service) sleeping(name string) *deploy.Deployment {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deploys.state.Find(name)
	if d == nil || d.Live == nil || s.hasPipeline(d.Live.Digest) {
		return nil
	}
	if d.Rest == deploy.Awake && d.Idle == 0 && !d.Woken {
		return nil
	}
	return d
}

// loadTable has what shards have loaded, as of a short time ago, so that many waiting requests ask the shards once.
type loadTable struct {
	mu    sync.Mutex
	busy  bool // somebody asks the shards
	at    time.Time
	byDig map[string]*routerv1.ModelLoading
	// progress has the models that were not whole when the shards were last asked.
	progress map[string]*deploy.Progress
}

// take takes what shards have loaded at a time. The caller holds mu.
func (t *loadTable) take(byDigest map[string]*routerv1.ModelLoading, now time.Time) {
	before := t.progress
	t.byDig, t.at, t.progress = byDigest, now, map[string]*deploy.Progress{}
	for digest, m := range byDigest {
		if m.GetDoneBytes() >= m.GetTotalBytes() {
			continue
		}
		p := before[digest]
		if p == nil {
			p = &deploy.Progress{}
		}
		p.Report(m.GetDoneBytes(), m.GetTotalBytes(), now)
		t.progress[digest] = p
	}
}

// loading says how far the loading of a model is.
func (s *Service) loading(ctx context.Context, name, digest string) *routerv1.ModelLoading {
	t := &s.deploys.loads
	t.mu.Lock()
	ask := !t.busy && time.Since(t.at) >= loadingEvery/2
	t.busy = t.busy || ask
	known := t.byDig[digest]
	t.mu.Unlock()
	if ask { // the others have what was known before, and do not wait
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadingEvery) // the answer is for others, too
		fresh := loadedBytes(s.describeAll(asking))
		cancel()
		known = fresh[digest]
		t.mu.Lock()
		t.busy = false
		t.take(fresh, time.Now())
		t.mu.Unlock()
	}
	out := &routerv1.ModelLoading{Model: name, Digest: digest}
	if known != nil {
		out.DoneBytes, out.TotalBytes = known.GetDoneBytes(), known.GetTotalBytes()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.State = s.whyNone(digest)
	if d := s.deploys.state.Find(name); d != nil && d.Starving() {
		out.State = d.Last
	}
	return out
}

// loadedBytes adds up what shards hold and load of each model. Layers that several shards hold count once for each, but
// no more than the model has.
func loadedBytes(shards []*shardv1.DescribeResponse) map[string]*routerv1.ModelLoading {
	out := map[string]*routerv1.ModelLoading{}
	of := func(digest string) *routerv1.ModelLoading {
		if out[digest] == nil {
			out[digest] = &routerv1.ModelLoading{}
		}
		return out[digest]
	}
	for _, d := range shards {
		for _, o := range d.GetInventory().GetOffers() {
			total := o.GetEmbeddingBytes()
			if !o.GetTied() {
				total += o.GetHeadBytes()
			}
			for _, n := range o.GetLayerBytes() {
				total += n
			}
			of(o.GetDigest()).TotalBytes = total
		}
		for _, l := range d.GetInventory().GetLoading() {
			of(l.GetDigest()).DoneBytes += l.GetDoneBytes()
		}
		for _, h := range d.GetHeld() {
			of(h.GetDigest()).DoneBytes += h.GetWeightBytes()
		}
	}
	for _, m := range out {
		m.DoneBytes = min(m.GetDoneBytes(), m.GetTotalBytes())
	}
	return out
}
