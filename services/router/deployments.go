package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
)

const (
	deployKey   = "deployments" // in the registry
	maxSwaps    = 16            // tries to change the deployments while others change them
	deployLimit = 5 * time.Second
)

// deployments is what a router knows of the deployments. Every router reads them from the registry, and may change them
// there by compare-and-swap: for an operator, and when a request needs a model that sleeps or a canary fails. The
// placer takes them through their lives (leader.stepDeployments). Requests read only the copy that this router has, so
// they go on while the registry cannot be reached. mu of the Service guards it.
type deployments struct {
	state    *deploy.State // never nil and never changed in place
	stored   uint64        // version of the registry's entry; 0 if it has none
	judge    *deploy.Judge
	failures map[string]*failures // by digest
	// What has to be written: names that requests wait for, and canaries that fail, by name. Canaries take no request
	// of this router from then on.
	wakes   map[string]bool
	faulty  map[string]faultyVersion
	writing bool
	loads   loadTable
}

// faultyVersion is a canary that fails.
type faultyVersion struct {
	version deploy.Version
	reason  string
}

func newDeployments() *deployments {
	return &deployments{state: &deploy.State{}, judge: deploy.NewJudge(), failures: map[string]*failures{},
		wakes: map[string]bool{}, faulty: map[string]faultyVersion{}}
}

// deployed returns the deployments as this router knows them.
func (s *Service) deployed() *deploy.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deploys.state
}

// followDeployments reads the deployments when they change, until ctx ends.
func (s *Service) followDeployments(ctx context.Context) {
	ch, err := s.cfg.Placement.Registry.Follow(ctx, deployKey)
	if err != nil {
		s.log.Warn("read the deployments", "error", err)
		return
	}
	for e := range ch {
		if e.Version == 0 { // the registry has none, or has forgotten them; the placer writes them again
			s.mu.Lock()
			s.deploys.stored = 0
			s.mu.Unlock()
			continue
		}
		state, err := deploy.Parse(e.Value)
		if err != nil {
			s.log.Warn("read the deployments", "error", err)
			continue
		}
		s.takeDeployments(state, e.Version)
	}
}

// refreshDeployments reads the deployments from the registry.
func (s *Service) refreshDeployments(ctx context.Context) error {
	e, err := s.cfg.Placement.Registry.Get(ctx, deployKey)
	if err != nil {
		return err
	}
	state := &deploy.State{}
	if e.Version != 0 {
		if state, err = deploy.Parse(e.Value); err != nil {
			return err
		}
	}
	s.takeDeployments(state, e.Version)
	return nil
}

// takeDeployments remembers the deployments unless newer ones are known. stored is the version of the registry's entry.
func (s *Service) takeDeployments(state *deploy.State, stored uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deploys
	if d.stored = stored; state.Version <= d.state.Version {
		return
	}
	before := canaries(d.state)
	s.m.deployed.changed(d.state, state)
	d.state = state
	now := canaries(state)
	d.judge.Forget(func(digest string) bool { return now[digest] != "" && before[digest] == now[digest] })
	d.forgetFaulty()
	s.notifyChange()
}

// forgetFaulty forgets what was said of versions that are no longer the next ones. The caller holds mu.
func (d *deployments) forgetFaulty() {
	for name, f := range d.faulty {
		if of := d.state.Find(name); of == nil || of.Next == nil || *of.Next != f.version {
			delete(d.faulty, name)
		}
	}
}

// canaries lists the digests that a Judge compares, with what they are compared in: the same digest is counted anew in
// another comparison.
func canaries(state *deploy.State) map[string]string {
	out := map[string]string{}
	for i := range state.Deployments {
		if d := &state.Deployments[i]; d.Next != nil && d.Next.Canary && d.Live != nil {
			pair := fmt.Sprintf("%s %d %s %d;", d.Next.Digest, d.Next.Try, d.Live.Digest, d.Live.Try)
			out[d.Next.Digest] += pair
			out[d.Live.Digest] += pair
		}
	}
	return out
}

// changeDeployments changes the deployments in the registry. change may be called several times.
func (s *Service) changeDeployments(ctx context.Context, change func(*deploy.State) error) (*deploy.State, error) {
	ctx, cancel := context.WithTimeout(ctx, deployLimit)
	defer cancel()
	registry := s.cfg.Placement.Registry
	for range maxSwaps {
		e, err := registry.Get(ctx, deployKey)
		if err != nil {
			return nil, err
		}
		next := s.deployed().Clone()
		if e.Version != 0 {
			stored, err := deploy.Parse(e.Value)
			if err != nil {
				return nil, err
			}
			if stored.Version >= next.Version { // else the registry has lost its data, and another router began anew
				next = stored
			}
		}
		next.Version++
		if err := change(next); err != nil {
			return nil, err
		}
		err = s.writeDeployments(ctx, next, e.Version)
		if fault.CodeOf(err) != fault.Aborted {
			return next, err
		}
	}
	return nil, fault.New(fault.Unavailable, "change deployments: others change them all the time").After(time.Second)
}

// writeDeployments replaces the deployments in the registry, whose entry has a version.
func (s *Service) writeDeployments(ctx context.Context, next *deploy.State, version uint64) error {
	text, err := next.Encode()
	if err != nil {
		return err
	}
	registry := s.cfg.Placement.Registry
	if err := registry.Swap(ctx, deployKey, text, version); err != nil {
		return err
	}
	return s.refreshDeployments(ctx) // for the version of the entry
}

// reportDeployments writes what requests have found out: names that they wait for, and canaries that fail. It does not
// wait for the registry. What could not be written is tried again at the next tick.
func (s *Service) reportDeployments(ctx context.Context, wg *sync.WaitGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deploys
	if s.placer == nil || d.writing || len(d.wakes)+len(d.faulty) == 0 {
		return
	}
	d.writing = true
	wakes := slices.Collect(maps.Keys(d.wakes)) // others may come while this is written
	wg.Go(func() {
		_, err := s.changeDeployments(ctx, func(state *deploy.State) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			changed := false
			for _, name := range wakes {
				changed = state.Wake(name) || changed
			}
			for name, f := range d.faulty {
				changed = state.RollBack(name, f.version.Digest, f.version.Try, f.reason) || changed
			}
			if !changed {
				return errNothingToDo
			}
			return nil
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		d.writing = false
		switch {
		case err == nil || errors.Is(err, errNothingToDo):
			for _, name := range wakes {
				delete(d.wakes, name)
			}
			d.forgetFaulty()
		case ctx.Err() == nil:
			s.log.Warn("change deployments", "error", err)
		}
	})
}

// errNothingToDo says that the deployments are already as they should be.
var errNothingToDo = errors.New("nothing changes")

// wakeLocked loads a deployment that sleeps. The caller holds mu.
func (s *Service) wakeLocked(d *deploy.Deployment) {
	if d != nil && d.Rest != deploy.Awake && !s.deploys.wakes[d.Name] {
		s.deploys.wakes[d.Name] = true
		s.poke()
	}
}

// answers returns which pipelines answer a request: those of the version that its deployment sends it to, those with
// the digest that it names, or those of a model of that name without a deployment. The caller holds mu.
func (s *Service) answers(name string, w work) func(*pipeline) bool {
	state := s.deploys.state
	if d := state.Find(name); d != nil && name != "" {
		to := s.routed(d, w)
		s.wakeLocked(d)
		return func(p *pipeline) bool { return p.digest == name || to != "" && p.digest == to }
	}
	if name != "" {
		return func(p *pipeline) bool { return p.digest == name || p.model() == name }
	}
	taking, known := map[string]bool{}, map[string]bool{} // digests of deployments
	for i := range state.Deployments {
		d := &state.Deployments[i]
		taking[s.routed(d, w)] = true
		for _, v := range versions(d) {
			known[v] = true
		}
	}
	return func(p *pipeline) bool { return taking[p.digest] || !known[p.digest] }
}

// versions lists the digests of a deployment.
func versions(d *deploy.Deployment) []string {
	out := slices.Clone(d.Past)
	for _, v := range d.Retiring {
		out = append(out, v.Digest)
	}
	for _, v := range []*deploy.Version{d.Live, d.Next} {
		if v != nil {
			out = append(out, v.Digest)
		}
	}
	return out
}

// drawKey decides which version of a deployment a request goes to: the same one for all requests of a session, if the
// client has named one.
func drawKey(ctx context.Context) string { return cmp.Or(obs.SessionID(ctx), obs.RequestID(ctx)) }

// routed returns the digest that a request of a deployment goes to. The caller holds mu.
func (s *Service) routed(d *deploy.Deployment, w work) string {
	if w.stable {
		if d.Live == nil {
			return ""
		}
		return d.Live.Digest
	}
	faulty := s.deploys.faulty[d.Name].version.Digest
	return d.Route(w.key, func(digest string) bool { return digest != faulty && s.hasPipeline(digest) })
}

// hasPipeline reports whether a pipeline of a model is open for requests, or an encoder is complete. The caller holds
// mu.
func (s *Service) hasPipeline(digest string) bool {
	for _, p := range s.pipelines {
		if p.digest == digest && !p.draft && !p.dead() {
			return true
		}
	}
	return s.holdsEncoder(digest)
}

// nameFor returns what a client calls the model of a pipeline: the name of the deployment that it asked for, or that of
// the model.
func (s *Service) nameFor(asked string, p *pipeline) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deploys.state.Find(asked); asked != "" && d != nil {
		return d.Name
	}
	if asked == "" {
		for _, d := range s.deploys.state.Of(p.digest) {
			return d.Name
		}
	}
	return p.model()
}

const (
	retireTries = 3           // in a row to open a pipeline of a retiring version, before the tries become rare
	retireAgain = time.Second // after the last of them; doubled after each further one
	retireMost  = 7           // doublings
)

// retires reports whether a model is only a version that ends its requests, and whose pipeline should not be tried yet:
// each try computes rows, as a request does, and a version that cannot be opened would never become quiet. Its
// requests, if it has any, wait for one of the tries. The caller holds mu.
func (s *Service) retires(digest string) bool {
	f := s.deploys.failures[digest]
	if f == nil || f.row < retireTries || len(s.deploys.state.Of(digest)) > 0 || !s.deploys.state.Hidden(digest) {
		return false
	}
	return time.Since(f.at) < retireAgain<<min(f.row-retireTries, retireMost)
}

// unused reports whether no deployment wants the model of a pipeline and no request runs on it. The caller holds mu.
func (s *Service) unused(p *pipeline) bool {
	if s.placer == nil || p.load() > 0 {
		return false
	}
	_, wanted := s.deploys.state.Places(p.model(), p.digest, !s.cfg.Placement.OnlyDeployed)
	return !wanted
}

// noVersion returns the error for a deployment without a pipeline. The caller holds mu.
func (s *Service) noVersion(d *deploy.Deployment) error {
	why := d.Last
	switch {
	case d.Off:
		return fault.New(fault.NotFound, "find model %q: it was undeployed", d.Name)
	case d.Rest != deploy.Awake:
		why = "its model is not loaded: " + d.Last
	case d.Starving():
	case d.Live != nil:
		why = s.whyNone(d.Live.Digest)
	case d.Next != nil:
		why = "its first version is being loaded: " + s.whyNone(d.Next.Digest)
	}
	return fault.New(fault.Unavailable, "find a pipeline for model %q: %s", d.Name, why).
		After(time.Second).
		Because(reasonCapacity)
}
