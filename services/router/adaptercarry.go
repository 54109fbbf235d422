package router

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/deploy"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// An adapter that may be served on any base goes along when a deployment gets a new version: as soon as the version is
// deployed, the name that the live version has points to the same adapter there. It follows the live version's name
// until the new version is live, unless somebody has changed it there. If the version is given up, the name goes with
// it. Adapters that belong to one base alone stay behind, and Deploy says which.

// carried is a name that was given to the next version of a deployment.
type carried struct {
	digest adapter.Sum
	err    error // why that could not be done
}

// carry is a change of a name of a next version.
type carry struct {
	name    adapterName
	model   string        // the name of the next version's model
	current adapter.Sum   // that the name points to now; zero for none
	to      *namedAdapter // nil if the name is to go, since the live version's one has, or may not go along any more
}

// upgrades calls each for every deployment that has a live and another next version. The caller holds mu.
func (s *Service) upgrades(each func(live string, next *deploy.Version)) {
	for i := range s.deploys.state.Deployments {
		d := &s.deploys.state.Deployments[i]
		if !d.Off && d.Live != nil && d.Next != nil && d.Live.Digest != d.Next.Digest {
			each(d.Live.Digest, d.Next)
		}
	}
}

// carries lists the changes of names that are due. The caller holds mu.
func (s *Service) carries() []carry {
	l := s.adapters
	waiting, upgraded := map[adapterName]bool{}, map[string]bool{}
	for _, in := range l.waiting() {
		waiting[adapterName{in.Model, in.Name}] = true
	}
	var out []carry
	s.upgrades(func(live string, next *deploy.Version) {
		upgraded[next.Digest] = true
		for key, n := range l.names {
			name := adapterName{next.Digest, key.name}
			if key.model == live && n.current.anyBase && !waiting[name] && l.follows(name, n) {
				out = append(out, carry{name, next.Model, l.current(name), n})
			}
		}
		for name, c := range l.carried {
			n := l.names[adapterName{live, name.name}]
			if name.model == next.Digest && l.current(name) == c.digest && (n == nil || !n.current.anyBase) {
				out = append(out, carry{name, next.Model, c.digest, nil})
			}
		}
	})
	for name, c := range l.carried {
		switch {
		case upgraded[name.model]:
		case c.err == nil && l.current(name) == c.digest && len(s.deploys.state.Of(name.model)) == 0: // it was given up
			out = append(out, carry{name, l.names[name].model, c.digest, nil})
		default:
			delete(l.carried, name)
		}
	}
	slices.SortFunc(out, func(a, b carry) int {
		return cmp.Or(strings.Compare(a.name.model, b.name.model), strings.Compare(a.name.name, b.name.name))
	})
	return out
}

// current returns the digest of what a name points to; zero for none.
func (l *adapters) current(name adapterName) adapter.Sum {
	if n := l.names[name]; n != nil {
		return n.current.digest
	}
	return adapter.Sum{}
}

// follows reports whether a name of a next version has to point to what the live version's one points to.
func (l *adapters) follows(name adapterName, live *namedAdapter) bool {
	now, before := l.names[name], l.carried[name]
	switch {
	case before.digest == live.current.digest: // it was carried, and may have been changed or removed since
		return false
	case now == nil:
		return before == carried{}
	case before != carried{}:
		return now.current.digest == before.digest
	}
	return now.current.digest != live.current.digest && live.has(now.current.digest) // carried before a restart
}

// carryAdapters changes names of next versions, one call at a time.
func (s *Service) carryAdapters(wg *sync.WaitGroup, notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.adapters
	if l.carrying || time.Now().Before(l.carryAgain) {
		return
	}
	list := s.carries()
	if len(list) == 0 {
		return
	}
	l.carrying = true
	wg.Go(func() {
		for _, c := range list {
			s.carry(c)
		}
		s.mu.Lock()
		l.carrying = false
		s.notifyChange()
		s.mu.Unlock()
		notify()
	})
}

// carry changes a name of a next version, unless somebody else has changed it meanwhile.
func (s *Service) carry(c carry) {
	l := s.adapters
	to := carried{}
	err := s.changeName(c.name, func() error {
		if l.current(c.name) != c.current {
			return errNothingToDo
		}
		if c.to == nil {
			l.remove(c.name, time.Now())
			return nil
		}
		if err := l.checkRoom(c.name); err != nil {
			return err
		}
		v := c.to.current.version()
		to.digest = v.digest
		l.point(c.name, c.model, l.add(c.name.model, v), time.Now())
		return nil
	})
	if errors.Is(err, errNothingToDo) { // the next look decides anew
		return
	}
	s.mu.Lock()
	switch {
	case c.to != nil:
		l.carried[c.name] = carried{cmp.Or(to.digest, c.to.current.digest), err}
	case err == nil:
		delete(l.carried, c.name)
	default:
		l.carryAgain = time.Now().Add(adapterLimit)
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("point adapter of a new version", "name", c.name.name, "digest", c.name.model, "error", err)
		return
	}
	s.log.Info("point adapter of a new version", "model", c.model, "digest", c.name.model, "name", c.name.name,
		"adapter", to.digest.String(), "removed", c.to == nil)
}

// leftBehind lists the adapters of a deployment's live version that its next one does not serve, of those that may says
// yes to. The caller holds mu.
func (s *Service) leftBehind(d *deploy.Deployment, may func(name string) bool) []*routerv1.AdapterLeft {
	if d.Live == nil || d.Next == nil || d.Live.Digest == d.Next.Digest {
		return nil
	}
	l := s.adapters
	waiting := map[adapterName]bool{}
	for _, in := range l.waiting() {
		waiting[adapterName{in.Model, in.Name}] = true
	}
	var out []*routerv1.AdapterLeft
	for _, name := range l.of(d.Live.Digest) {
		key := adapterName{d.Next.Digest, name}
		why, before := "", l.carried[key]
		switch n := l.names[key]; {
		case !may(name) || waiting[key]:
			continue
		case n != nil:
			if err := l.failureOn(d.Next.Digest, n.current.digest); err != nil {
				why = err.Error()
			}
		case before.err != nil:
			why = before.err.Error()
		case before != carried{}:
			why = "it was unloaded from this version"
		case !l.names[adapterName{d.Live.Digest, name}].current.anyBase:
			why = fmt.Sprintf("it was loaded for version %s alone", d.Live.Digest)
		}
		if why != "" {
			out = append(out, &routerv1.AdapterLeft{Name: name, Digest: d.Next.Digest, Reason: why})
		}
	}
	return out
}

// failureOn returns why a shard could not load an adapter into a model, or nil.
func (l *adapters) failureOn(model string, digest adapter.Sum) error {
	var first error
	for pl, failed := range l.failed {
		if f := failed[digest]; f != nil && pl.digest == model && (first == nil || f.err.Error() < first.Error()) {
			first = f.err // the same one in each call
		}
	}
	return first
}
