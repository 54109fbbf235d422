package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/internal/plural"
)

// KeeperConfig says how readily a Keeper changes a plan. Zero values mean the defaults.
type KeeperConfig struct {
	// Steady is how long a host has to be there before a plan uses it without need; 0 means 30 s. Each time
	// that the host has gone and come back doubles it, up to MaxSteady, which is 10 minutes if it is 0. A host
	// that has been there for twice that long is trusted again.
	Steady, MaxSteady time.Duration
	// Gain is how much better a plan has to be to replace one that works; 0 means 0.2.
	Gain float64
	// Every is the shortest time between two changes that are not needed; 0 means a minute.
	Every time.Duration
}

// Keeper keeps a plan while hosts come and go. It repairs the plan at once when a host is lost, with hosts
// that are steady if these suffice. It improves the plan rarely, and only if that gains much, so that a host
// that flaps moves nothing back and forth.
//
// A Keeper has no clock: its caller says what time it is. It is not safe for concurrent use.
type Keeper struct {
	cfg     KeeperConfig
	current *Plan
	hosts   map[string]*life
	changed time.Duration
	looked  string // the hosts and models with which the last search for a better plan was made
}

// life is what a Keeper remembers of a host.
type life struct {
	here    bool
	since   time.Duration // it has been here, or gone
	returns int           // how often it has come back
}

// Decision is what a Keeper has decided.
type Decision struct {
	Plan   *Plan
	Moves  []Move // from the plan before; none if it is the same
	Reason string // for the change; empty if there is none
}

// NewKeeper returns a Keeper of a plan, which is empty or that of another Keeper before.
func NewKeeper(cfg KeeperConfig, current *Plan) *Keeper {
	cfg.Steady, cfg.MaxSteady = cmp.Or(cfg.Steady, 30*time.Second), cmp.Or(cfg.MaxSteady, 10*time.Minute)
	cfg.Gain, cfg.Every = cmp.Or(cfg.Gain, 0.2), cmp.Or(cfg.Every, time.Minute)
	if current == nil {
		current = &Plan{}
	}
	return &Keeper{cfg: cfg, current: current, hosts: map[string]*life{}}
}

// Step takes the hosts and models of this moment and returns the plan that is to be. Calls have rising times.
func (k *Keeper) Step(now time.Duration, r Request) (Decision, error) {
	if _, err := r.withDefaults(); err != nil {
		return Decision{}, err
	}
	lost := k.observe(now, r.Hosts)
	steady := r
	steady.Hosts = slices.DeleteFunc(slices.Clone(r.Hosts), func(h Host) bool { return !k.trusted(now, h.ID) })
	steady.Models = slices.Clone(r.Models)
	for m := range steady.Models { // a pinned host that is not steady is no reason to fail
		steady.Models[m].Pin = slices.DeleteFunc(slices.Clone(steady.Models[m].Pin), func(id string) bool {
			return !slices.ContainsFunc(steady.Hosts, func(h Host) bool { return h.ID == id })
		})
	}
	next, err := Repair(steady, k.current)
	if err != nil {
		return Decision{}, err
	}
	if len(next.Uncovered) > 0 && len(steady.Hosts) < len(r.Hosts) {
		if next, err = Repair(r, k.current); err != nil {
			return Decision{}, err
		}
	}
	before := k.current
	k.current = next
	if !same(before, next) {
		k.changed = now
		return k.decide(r, before, "repair: "+why(lost))
	}
	if now-k.changed < k.cfg.Every {
		return Decision{Plan: next}, nil
	}
	if looked := key(steady); looked != k.looked {
		k.looked = looked
		better, err := Place(steady)
		if err != nil {
			return Decision{}, err
		}
		if gain := improvement(steady, next, better); gain >= k.cfg.Gain {
			k.current, k.changed = Align(steady, better, next), now
			return k.decide(r, before, fmt.Sprintf("improve: %.0f %% better by %v", 100*gain, r.Goal))
		}
	}
	return Decision{Plan: next}, nil
}

func (k *Keeper) decide(r Request, before *Plan, reason string) (Decision, error) {
	moves, err := Moves(r, before, k.current)
	return Decision{k.current, moves, reason}, err
}

// observe notes which hosts are there, and returns those of the plan that have gone.
func (k *Keeper) observe(now time.Duration, hosts []Host) (lost []string) {
	here := map[string]bool{}
	for _, h := range hosts {
		here[h.ID] = true
		l := k.hosts[h.ID]
		switch {
		case l == nil:
			k.hosts[h.ID] = &life{here: true, since: now}
		case !l.here:
			l.here, l.since = true, now
			l.returns++
		case now-l.since >= 2*k.cfg.MaxSteady:
			l.returns = 0
		}
	}
	for id, l := range k.hosts {
		switch {
		case l.here && !here[id]:
			l.here, l.since = false, now
		case !l.here && now-l.since >= 2*k.cfg.MaxSteady:
			delete(k.hosts, id) // it does not come back
		}
	}
	for _, l := range k.current.Pipelines {
		for _, s := range l.Stages {
			if !here[s.Host] && !slices.Contains(lost, s.Host) {
				lost = append(lost, s.Host)
			}
		}
	}
	return lost
}

// trusted reports whether a host may be used without need.
func (k *Keeper) trusted(now time.Duration, id string) bool {
	for _, l := range k.current.Pipelines {
		if slices.ContainsFunc(l.Stages, func(s Stage) bool { return s.Host == id }) {
			return true
		}
	}
	l := k.hosts[id]
	wait := k.cfg.Steady
	for range l.returns {
		if wait *= 2; wait >= k.cfg.MaxSteady {
			wait = k.cfg.MaxSteady
			break
		}
	}
	return now-l.since >= wait
}

func why(lost []string) string {
	if len(lost) == 0 {
		return "models or hosts have changed"
	}
	const most = 3
	if len(lost) > most {
		return fmt.Sprintf("%s and %s gone", strings.Join(lost[:most], ", "), plural.Of(len(lost)-most, "more host"))
	}
	return strings.Join(lost, ", ") + " gone"
}

// same reports whether two plans have the same stages.
func same(a, b *Plan) bool {
	return slices.EqualFunc(a.Pipelines, b.Pipelines, func(x, y Pipeline) bool {
		return x.Digest == y.Digest && slices.EqualFunc(x.Stages, y.Stages, func(s, t Stage) bool {
			return s.Host == t.Host && s.Lo == t.Lo && s.Hi == t.Hi
		})
	})
}

// key names what a plan depends on: which hosts there are and roughly how fast, and the models.
func key(r Request) string {
	var b strings.Builder
	for _, h := range r.Hosts {
		fmt.Fprintf(&b, "%q %.1g %.1g %d,", h.ID, h.LayerMS, h.HopMS, h.Memory>>28)
	}
	for i := range r.Models {
		m := &r.Models[i]
		fmt.Fprintf(&b, "%q %d %q %q %q %d,", m.Digest, m.Replicas, m.Pin, m.Avoid, m.Zone, m.AtMost)
	}
	return b.String()
}

// improvement returns how much better a plan is than another: the mean over all models of the shorter time or
// the higher rate. A model that only the new plan covers counts as twice as good, unless it yields to the others, and
// a new plan that lacks one is none.
func improvement(r Request, from, to *Plan) float64 {
	old, now := measures(from, r.Goal), measures(to, r.Goal)
	for i := range r.Models {
		if m := &r.Models[i]; m.Yield && old[m.Digest] == 0 {
			delete(now, m.Digest)
		}
	}
	sum := 0.0
	for digest := range old {
		if now[digest] == 0 {
			return 0
		}
	}
	for digest, v := range now {
		if old[digest] == 0 {
			sum++
			continue
		}
		sum += v/old[digest] - 1
	}
	if len(now) == 0 {
		return 0
	}
	return sum / float64(len(now))
}

// measures returns what each model's pipelines are worth, the more the better.
func measures(p *Plan, goal Goal) map[string]float64 {
	out := map[string]float64{}
	for _, l := range p.Pipelines {
		switch goal {
		case Throughput:
			out[l.Digest] += l.Predicted.SaturatedTPS
		case FewestHosts:
			out[l.Digest] = max(out[l.Digest], 1/float64(len(l.Stages)))
		default:
			out[l.Digest] = max(out[l.Digest], l.Predicted.TokensPerS)
		}
	}
	return out
}
