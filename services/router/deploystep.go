package router

import (
	"context"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// stepDeployments takes the deployments a step further by what this router sees of the fleet. It writes the result to
// the registry before anything is loaded or unloaded for it, so a placer that takes over goes on from there. If another
// router has changed the deployments meanwhile, then nothing is written and the next step begins from their state.
func (l *leader) stepDeployments(ctx context.Context) error {
	l.s.mu.Lock()
	state, stored := l.s.deploys.state, l.s.deploys.stored
	l.s.mu.Unlock()
	if len(state.Deployments) == 0 || state.Version == l.seenState && time.Since(l.looked) < stepEvery {
		return nil
	}
	l.looked, l.seenState = time.Now(), state.Version
	next, did := l.lives.Step(time.Since(l.began), l.view(state), state)
	if len(did) == 0 && stored != 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, deployLimit)
	defer cancel()
	err := l.s.writeDeployments(limited, next, stored)
	if fault.CodeOf(err) == fault.Aborted {
		return l.s.refreshDeployments(limited)
	}
	if err != nil {
		return err
	}
	for _, c := range did {
		l.s.log.Info("deployment", "what", string(c.Kind), "name", c.Name, "digest", c.Digest, "reason", c.Why)
	}
	return nil
}

// view collects what this router sees of the models of deployments.
func (l *leader) view(state *deploy.State) deploy.View {
	out := deploy.View{Clock: time.Now().UnixMilli(), Models: map[string]deploy.Sight{}, Fits: l.fits(state)}
	for i := range state.Deployments {
		d := &state.Deployments[i]
		for _, v := range d.Retiring {
			out.Models[v.Digest] = deploy.Sight{}
		}
		for _, v := range []*deploy.Version{d.Live, d.Next} {
			if v != nil {
				out.Models[v.Digest] = deploy.Sight{}
			}
		}
	}
	served := l.served()
	offered, held := map[string]bool{}, map[string]bool{}
	refused := map[string]string{}     // by hosts, with the reason
	troubled := map[string]time.Time{} // hosts
	l.mu.Lock()
	for id, h := range l.hosts {
		troubled[id] = h.troubled
		if !h.alive() {
			continue
		}
		for digest := range out.Models {
			if why, left := h.refuses(digest, time.Now()); left {
				refused[digest] = "; " + id + ": " + why
			}
		}
		for _, o := range h.desc.GetInventory().GetOffers() {
			offered[o.GetDigest()] = true
		}
		for _, span := range h.desc.GetHeld() {
			m, wanted := out.Models[span.GetDigest()]
			if !wanted {
				continue
			}
			held[span.GetDigest()] = true
			m.Requests += int(span.GetSessions())
			m.Rows += span.GetRows()
			out.Models[span.GetDigest()] = m
		}
	}
	l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	explained, now := l.s.explained(troubled), time.Now()
	for digest, m := range out.Models {
		m.Open = served[digest]
		switch {
		case !offered[digest] && !held[digest]:
			m.Absent = "no shard has its files"
		case l.s.models[digest] == nil:
			m.Absent = "no tokenizer knows it"
		case !l.covered(digest):
			if m.NoRoom = l.uncovered(digest); m.NoRoom != "" {
				m.NoRoom += refused[digest]
			}
		}
		if f := l.s.deploys.failures[digest]; f != nil {
			f.settle(now, explained)
			m.Failures, m.Losses, m.Reason = f.row, f.all, f.reason
		}
		out.Models[digest] = m
	}
	return out
}

// covered reports whether the plan has a pipeline of a model.
func (l *leader) covered(digest string) bool {
	return slices.ContainsFunc(l.doc.Plan.Pipelines, func(p plan.Pipeline) bool { return p.Digest == digest })
}

// uncovered returns why the last plan has no pipeline of a model; empty if it has, or the model was not asked for.
func (l *leader) uncovered(digest string) string {
	i := slices.IndexFunc(l.request.Models, func(m plan.Model) bool { return m.Digest == digest })
	if i < 0 || l.latest == nil {
		return ""
	}
	for _, u := range l.latest.Uncovered {
		if u.ID == l.request.Models[i].Name {
			return u.Reason
		}
	}
	return ""
}

// fits returns a function that reports whether the hosts have room for some models of deployments that were asked for,
// beside the models that belong to none. It is nil before the first plan.
func (l *leader) fits(state *deploy.State) func([]string) bool {
	if l.latest == nil {
		return nil
	}
	ours := map[string]bool{} // digests of deployments
	for i := range state.Deployments {
		for _, digest := range versions(&state.Deployments[i]) {
			ours[digest] = true
		}
	}
	asked := l.request
	return func(digests []string) bool {
		r := asked
		r.Models = nil
		for i := range asked.Models {
			if m := asked.Models[i]; !ours[m.Digest] || slices.Contains(digests, m.Digest) {
				r.Models = append(r.Models, m)
			}
		}
		for _, digest := range digests {
			if !slices.ContainsFunc(r.Models, func(m plan.Model) bool { return m.Digest == digest }) {
				return false // it was not asked for yet
			}
		}
		p, err := plan.Place(r)
		return err == nil && len(p.Uncovered) == 0
	}
}
