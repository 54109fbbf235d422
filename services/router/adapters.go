package router

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// An adapter is known by what it computes, its digest; names are the router's own. A name points to one adapter of
// a model at a time and may be moved to another one. A request looks its name up once and keeps the adapter that it
// has found until its end, on whatever pipelines it runs.
//
// An adapter is wanted while a name points to it or a request uses it. The shards of the model, also those that no
// pipeline uses now, are made to hold what is wanted and to forget the rest (adapterload.go). A pipeline gets only
// requests whose adapter all of its stages hold.

// AdapterSource names an adapter in a folder that a router offers from its start on.
type AdapterSource struct {
	Model string // name or digest of the base model; empty for the only one
	Name  string
	Dir   string // in PEFT's layout
	// AnyBase accepts an adapter that was trained on another base than the model.
	AnyBase bool
}

// servedAdapter is an adapter of a model.
type servedAdapter struct {
	model  string // the model's digest
	digest adapter.Sum
	dir    string // its files

	// Guarded by Service.mu.
	anyBase       bool // it may have been trained on another base
	rank, modules int  // 0 until the files were read
	bytes         int64
	base          string // that it was trained on; empty if its files do not say
	names         int    // that point to it
	users         int    // requests, and loads that wait for it
	kept          int    // changes of a name that may have to be taken back
}

// version returns what names remember of the adapter.
func (a *servedAdapter) version() adapterVersion { return adapterVersion{a.digest, a.dir, a.anyBase} }

// wanted reports whether shards have to hold the adapter.
func (a *servedAdapter) wanted() bool { return a.names+a.users+a.kept > 0 }

// namespace is what the scheduler keeps the pages of the adapter apart by. a may be nil.
func (a *servedAdapter) namespace() string {
	if a == nil {
		return ""
	}
	return a.digest.String()
}

// wire returns the digest as entries of batches carry it. a may be nil.
func (a *servedAdapter) wire() []byte {
	if a == nil {
		return nil
	}
	return a.digest[:]
}

// adapterName is a name for the adapters of a model.
type adapterName struct{ model, name string } // model is a digest

// adapterVersion is what a name points to, or has pointed to.
type adapterVersion struct {
	digest  adapter.Sum
	dir     string
	anyBase bool
}

// namedAdapter is what a name points to.
type namedAdapter struct {
	model   string // the name of the model
	current *servedAdapter
	since   time.Time
	earlier []adapterVersion // the latest first
}

// has reports whether the name points to an adapter or has pointed to it. n may be nil.
func (n *namedAdapter) has(d adapter.Sum) bool {
	return n != nil && (n.current.digest == d ||
		slices.ContainsFunc(n.earlier, func(v adapterVersion) bool { return v.digest == d }))
}

// maxEarlier bounds the versions that a name remembers.
const maxEarlier = 8

// adapterKey is an adapter of a model.
type adapterKey struct {
	model  string
	digest adapter.Sum
}

// adapters is the router's list of adapters. Service.mu guards it.
type adapters struct {
	changing sync.Mutex // held, without mu, while the store or its index is changed on disk; taken before mu
	store    adapterStore
	sources  []AdapterSource         // that wait for their model
	refused  map[AdapterSource]error // why those that were read are not served
	indexed  []indexedName           // of the store, as it was at the start
	damaged  error                   // why the index cannot be read

	restored map[adapterName]bool // those of indexed
	names    map[adapterName]*namedAdapter
	all      map[adapterKey]*servedAdapter

	at      map[place]map[adapter.Sum]bool           // what shards hold
	failed  map[place]map[adapter.Sum]*adapterFailed // why they do not
	working map[place]bool
	strange map[strangerKey]time.Time // since when shards hold what this router does not know
	// readings are those in memory. A failed one stays only until the places that wait for it know.
	readings map[*servedAdapter]*adapterReading

	carried    map[adapterName]carried // names that next versions of deployments were given
	carrying   bool                    // some are being given
	carryAgain time.Time               // not before that, since one could not be taken away

	arriving      int   // adapters that are being received
	arrivingBytes int64 // of their files
}

func newAdapters(c Config) *adapters {
	return &adapters{
		store: adapterStore{c.AdapterDir, cmp.Or(c.AdapterDisk, defaultAdapterDisk)}, sources: c.Adapters,
		names: map[adapterName]*namedAdapter{}, all: map[adapterKey]*servedAdapter{},
		at:     map[place]map[adapter.Sum]bool{},
		failed: map[place]map[adapter.Sum]*adapterFailed{}, working: map[place]bool{},
		strange: map[strangerKey]time.Time{},
		refused: map[AdapterSource]error{}, restored: map[adapterName]bool{},
		readings: map[*servedAdapter]*adapterReading{}, carried: map[adapterName]carried{},
	}
}

// add returns the entry of an adapter.
func (l *adapters) add(model string, v adapterVersion) *servedAdapter {
	key := adapterKey{model, v.digest}
	if l.all[key] == nil {
		l.all[key] = &servedAdapter{model: model, digest: v.digest, dir: v.dir}
	}
	l.all[key].anyBase = l.all[key].anyBase || v.anyBase
	return l.all[key]
}

// find returns the adapter of a model with a name or a digest, or nil.
func (l *adapters) find(model, want string) *servedAdapter {
	if n := l.names[adapterName{model, want}]; n != nil {
		return n.current
	}
	if digest, ok := adapter.ParseSum(want); ok {
		if a := l.all[adapterKey{model, digest}]; a != nil && a.wanted() {
			return a
		}
	}
	return nil
}

// of lists the names of a model's adapters.
func (l *adapters) of(model string) []string {
	var out []string
	for key := range l.names {
		if key.model == model {
			out = append(out, key.name)
		}
	}
	slices.Sort(out)
	return out
}

// acquire finds the adapter that a request names, and keeps it until release. The error for an unknown name lists those
// that the caller may use.
func (s *Service) acquire(ctx context.Context, model, modelName, want string) (*servedAdapter, error) {
	if want == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.adapters.find(model, want)
	if of := s.otherVersion(model, want); a == nil && of != "" {
		return nil, fault.New(fault.FailedPrecondition, "find adapter %q of model %q: it was loaded for version %s of the "+
			"model, and requests go to version %s now: load it for this one, too", want, modelName, of, model)
	}
	if a == nil {
		names := slices.DeleteFunc(s.adapters.of(model), func(name string) bool {
			return !auth.MayUse(ctx, modelName, model, adapted(modelName, name))
		})
		list := "it has none"
		if len(names) > 0 {
			list = "it has " + strings.Join(names, ", ")
		}
		return nil, fault.New(fault.NotFound, "find adapter %q of model %q: %s", want, modelName, list)
	}
	a.users++
	return a, nil
}

// acquireDigest keeps the adapter with a digest for a request that has begun on another router or before a restart.
func (s *Service) acquireDigest(model, digest string) (*servedAdapter, error) {
	if digest == "" {
		return nil, nil
	}
	sum, ok := adapter.ParseSum(digest)
	if !ok {
		return nil, fault.New(fault.DataLoss, "the digest of its adapter is %q", digest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.adapters.version(model, func(d adapter.Sum) bool { return d == sum })
	if !ok {
		return nil, fault.New(fault.FailedPrecondition, "this router does not have its adapter %s", digest)
	}
	a := s.adapters.add(model, v)
	a.users++
	s.poke()
	return a, nil
}

// version finds an adapter of a model that the router has the files of: one in use, one that a name has had, or
// one in the store.
func (l *adapters) version(model string, is func(adapter.Sum) bool) (adapterVersion, bool) {
	for key, a := range l.all {
		if key.model == model && is(key.digest) {
			return a.version(), true
		}
	}
	for key, n := range l.names {
		for _, v := range n.earlier {
			if key.model == model && is(v.digest) {
				return v, true
			}
		}
	}
	for _, v := range l.store.list() {
		if is(v.digest) {
			return v.adapterVersion, true
		}
	}
	return adapterVersion{}, false
}

// release ends a request's use of an adapter, which may be nil.
func (s *Service) release(a *servedAdapter) {
	if a == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.users--; !a.wanted() {
		s.poke()
	}
}

// poke wakes Run.
func (s *Service) poke() {
	select {
	case s.pokes <- struct{}{}:
	default:
	}
}

// splitModel separates a model's name and the name of an adapter behind a colon. Names of models may have colons
// too, so only what is no model itself is separated. A name that only adapters have stands for the model as well,
// if it is that of a single one.
func (s *Service) splitModel(model, named string) (base, adapterName string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if model == "" || s.knowsModel(model) {
		return model, named, nil
	}
	base, behind := model, ""
	if at := strings.LastIndexByte(model, ':'); at >= 0 && at+1 < len(model) &&
		(at == 0 || s.knowsModel(model[:at])) {
		base, behind = model[:at], model[at+1:]
	} else if bases := s.bases(model); len(bases) == 1 {
		base, behind = bases[0], model
	}
	if behind != "" && named != "" && behind != named {
		return "", "", fault.Field("adapter", "%q is not the adapter %q that the model names", named, behind)
	}
	return base, cmp.Or(behind, named), nil
}

// knowsModel reports whether a name or digest is that of a model. The caller holds mu.
func (s *Service) knowsModel(name string) bool {
	for digest, m := range s.models {
		if digest == name || m.vocabulary.GetModel() == name {
			return true
		}
	}
	if s.deploys.state.Find(name) != nil {
		return true
	}
	for _, p := range s.pipelines {
		if p.digest == name || p.model() == name {
			return true
		}
	}
	return false
}

// holds reports whether all stages of a pipeline hold an adapter, which may be nil. The caller holds mu.
func (s *Service) holds(p *pipeline, a *servedAdapter) bool {
	if a == nil {
		return true
	}
	for _, pl := range p.places() {
		if !s.adapters.at[pl][a.digest] {
			return false
		}
	}
	return true
}

// failure returns why a stage of a pipeline could not load an adapter, or nil.
func (l *adapters) failure(p *pipeline, a *servedAdapter) error {
	for _, pl := range p.places() {
		if f := l.failed[pl][a.digest]; f != nil {
			return f.err
		}
	}
	return nil
}

// hasAdapter is holds for callers that do not hold mu.
func (s *Service) hasAdapter(p *pipeline, a *servedAdapter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holds(p, a)
}

// places returns the ranges that the pipeline runs over.
func (p *pipeline) places() []place {
	var out []place
	for _, hop := range p.hops() {
		out = append(out, place{hop.Addr, p.digest, hop.Lo, hop.Hi})
	}
	return out
}

// describeAdapters lists the adapters of a model, or of all for an empty digest. The caller holds mu.
func (s *Service) describeAdapters(model string) []*routerv1.Adapter {
	var out []*routerv1.Adapter
	for key, n := range s.adapters.names {
		if model == "" || key.model == model {
			out = append(out, s.describeAdapter(key, n))
		}
	}
	slices.SortFunc(out, func(a, b *routerv1.Adapter) int {
		return cmp.Or(cmp.Compare(a.GetModel(), b.GetModel()), cmp.Compare(a.GetModelDigest(), b.GetModelDigest()),
			cmp.Compare(a.GetName(), b.GetName()))
	})
	return out
}

func (s *Service) describeAdapter(key adapterName, n *namedAdapter) *routerv1.Adapter {
	a := n.current
	out := &routerv1.Adapter{
		Name: key.name, Model: n.model, ModelDigest: key.model, Digest: a.digest.String(), Rank: uint32(a.rank),
		Modules: uint32(a.modules), Bytes: uint64(a.bytes), Requests: uint32(a.users), LoadedMs: n.since.UnixMilli(),
		Base: a.base,
	}
	for _, v := range n.earlier {
		out.Earlier = append(out.Earlier, v.digest.String())
	}
	for _, id := range slices.Sorted(maps.Keys(s.pipelines)) {
		p := s.pipelines[id]
		if p.digest != key.model || p.draft || p.dead() {
			continue
		}
		if s.holds(p, a) {
			out.Pipelines++
			continue
		}
		out.Error = "pipeline " + id + " is loading it"
		if err := s.adapters.failure(p, a); err != nil {
			out.Error = err.Error()
		}
	}
	return out
}
