package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Config holds the times of a Keeper. Zero values mean the defaults.
type Config struct {
	// Quiet is how long a version must have no request before it is unloaded, so that every router has heard by then
	// that it takes none; 0 means 5 s.
	Quiet time.Duration
	// Drain is how long the requests of a retiring version may last; 0 means 10 minutes.
	Drain time.Duration
	// Patience is how long a version that cannot be opened or probed is tried again; 0 means 10 s.
	Patience time.Duration
	// Rested is how long nobody has to use a model until it makes room for others; 0 means 30 s.
	Rested time.Duration
}

// Bounds on tries to open and probe the pipelines of a version.
const (
	mostFailures = 3 // in a row, of a version that is loading
	mostLosses   = 5 // in all, of a canary
)

// View is what the placer sees of the fleet.
type View struct {
	// Clock is the time of day, in Unix milliseconds; 0 if it is not known. Another placer goes on by it where this one
	// has stopped, so the clocks of routers should be right within seconds.
	Clock int64
	// Models has what is known of each model that is wanted or loaded, by digest.
	Models map[string]Sight
	// Fits reports whether the hosts have room for all of these models at once; nil if that is not known.
	Fits func(digests []string) bool
}

// Sight is what the placer sees of a model.
type Sight struct {
	// Open says that all pipelines that the plan has for it are open, with at least one, and that tokens went through
	// every stage.
	Open bool
	// NoRoom says why no plan covers it; empty if one does.
	NoRoom string
	// Absent says why it cannot be loaded at all, such as that no shard has its files; empty if it can.
	Absent string
	// Requests is the number of sessions on its shards, of all routers.
	Requests int
	// Rows is the number of rows that its shards have computed. It grows when the model is used.
	Rows uint64
	// Failures is the number of tries in a row to open or probe a pipeline that have failed. Losses is that of all
	// failed tries and lost pipelines so far, without those that the loss of a host explains. Reason is that of the
	// last one.
	Failures, Losses int
	Reason           string
}

// Kind is what a Command does.
type Kind string

// The kinds of commands.
const (
	StartCanary Kind = "canary"  // requests go to the next version
	Promote     Kind = "promote" // the next version becomes the live one
	RollBack    Kind = "roll back"
	Remove      Kind = "unload" // a retired version
	Doze        Kind = "doze"   // the live version takes no more requests, to be unloaded
	Sleep       Kind = "sleep"  // it is unloaded
	Starve      Kind = "starve" // there is no room for the live version
	Recover     Kind = "recover"
)

// Command is a change that a Keeper has made.
type Command struct {
	Kind         Kind
	Name, Digest string
	Why          string
}

// String returns the command for logs.
func (c Command) String() string {
	out := fmt.Sprintf("%s %s of %s", c.Kind, c.Digest, c.Name)
	if c.Why != "" {
		out += ": " + c.Why
	}
	return out
}

// Keeper takes deployments through their lives. It is not safe for concurrent use.
type Keeper struct {
	cfg    Config
	now    time.Duration
	used   map[string]usage // by digest
	states map[string]mark  // by deployment: the state of its next version
	rests  map[string]mark  // by deployment: whether its live version is loaded
	drains map[string]time.Duration
}

// usage is when a model was last used.
type usage struct {
	rows uint64
	last time.Duration
}

// mark is a state and when it began.
type mark struct {
	what   string
	since  time.Duration
	losses int // of the version at that time
}

// NewKeeper returns a Keeper that has seen nothing.
func NewKeeper(c Config) *Keeper {
	c.Quiet, c.Drain = cmp.Or(c.Quiet, 5*time.Second), cmp.Or(c.Drain, 10*time.Minute)
	c.Patience, c.Rested = cmp.Or(c.Patience, 10*time.Second), cmp.Or(c.Rested, 30*time.Second)
	return &Keeper{cfg: c, used: map[string]usage{}, states: map[string]mark{}, rests: map[string]mark{},
		drains: map[string]time.Duration{}}
}

// Step looks at the fleet and returns the state that is to be, with the changes that lead there. Calls have rising
// times. The state is not changed in place, and the same one is returned if there is nothing to change.
func (k *Keeper) Step(now time.Duration, v View, s *State) (*State, []Command) {
	k.now = now
	k.observe(v)
	next := s.Clone()
	t := &turn{Keeper: k, view: v, state: next}
	for i := range next.Deployments {
		d := &next.Deployments[i]
		t.bringUp(d)
		t.drain(d)
		t.rest(d)
	}
	t.makeRoom()
	k.clean(next)
	if len(t.did) == 0 {
		return s, nil
	}
	next.Version++
	return next, t.did
}

// observe notes which models are used.
func (k *Keeper) observe(v View) {
	for digest, m := range v.Models {
		u, seen := k.used[digest]
		if !seen || m.Requests > 0 || m.Rows > u.rows {
			u.last = k.now
		}
		u.rows = m.Rows
		k.used[digest] = u
	}
	for digest := range k.used {
		if _, seen := v.Models[digest]; !seen {
			delete(k.used, digest)
		}
	}
}

// idle returns how long a model was not used.
func (k *Keeper) idle(digest string) time.Duration {
	u, seen := k.used[digest]
	if !seen {
		return 0
	}
	return k.now - u.last
}

// since notes a state in a table and returns when it began.
func (k *Keeper) since(table map[string]mark, name, what string, losses int) mark {
	m, seen := table[name]
	if !seen || m.what != what {
		m = mark{what, k.now, losses}
		table[name] = m
	}
	return m
}

// clean forgets what belongs to no deployment any more.
func (k *Keeper) clean(s *State) {
	for _, table := range []map[string]mark{k.states, k.rests} {
		for name := range table {
			if s.Find(name) == nil {
				delete(table, name)
			}
		}
	}
	draining := map[string]bool{}
	for i := range s.Deployments {
		for _, v := range s.Deployments[i].Retiring {
			draining[s.Deployments[i].Name+"\x00"+v.Digest] = true
		}
	}
	for key := range k.drains {
		if !draining[key] {
			delete(k.drains, key)
		}
	}
}

// turn is one step.
type turn struct {
	*Keeper
	view  View
	state *State
	did   []Command
}

func (t *turn) do(kind Kind, d *Deployment, digest, why string) {
	t.did = append(t.did, Command{kind, d.Name, digest, why})
}

// bringUp leads the next version of a deployment to its end: it becomes the live one, or is rolled back.
func (t *turn) bringUp(d *Deployment) {
	if d.Next == nil {
		delete(t.states, d.Name)
		return
	}
	v := *d.Next
	m := t.view.Models[v.Digest]
	t.goOn(d, m.Losses)
	began := t.since(t.states, d.Name, v.state(), m.Losses)
	waited := t.now - began.since
	reason := ""
	switch {
	case !v.Canary && m.Open:
		if d.Live != nil {
			d.Next.Canary, d.Next.Began = true, t.view.Clock
			d.Last = fmt.Sprintf("a new version takes %.3g %% of the requests", 100*d.Share())
			t.since(t.states, d.Name, d.Next.state(), m.Losses)
			t.do(StartCanary, d, v.Digest, fmt.Sprintf("it takes %.3g %% of the requests for %v", 100*d.Share(),
				d.ObserveTime()))
			return
		}
		t.promote(d)
		return
	case v.Canary && m.Open && waited >= d.ObserveTime():
		t.promote(d)
		return
	case v.Canary && m.Losses-began.losses >= mostLosses:
		reason = fmt.Sprintf("%d pipelines were lost or could not be opened, the last one: %s", m.Losses-began.losses,
			m.Reason)
	case !v.Canary && min(m.Failures, m.Losses-began.losses) >= mostFailures && waited >= t.cfg.Patience:
		reason = fmt.Sprintf("%d tries in a row to open and probe a pipeline have failed, the last one: %s", m.Failures,
			m.Reason)
	case !v.Canary && m.Absent != "" && waited >= t.cfg.Patience:
		reason = m.Absent
	case waited >= d.LoadLimit() && !m.Open:
		reason = fmt.Sprintf("its pipelines are not open after %v: %s", d.LoadLimit(), cmp.Or(m.NoRoom, m.Reason,
			"its layers are still being loaded"))
	}
	if reason != "" {
		d.rollBack(reason)
		t.do(RollBack, d, v.Digest, reason)
	}
}

// goOn takes over a canary that another placer has watched: what it has seen of the time counts. A clock that is wrong
// makes the rest of the time as long as the whole, or none of it, and no longer.
func (t *turn) goOn(d *Deployment, losses int) {
	v := d.Next
	if m, seen := t.states[d.Name]; seen && m.what == v.state() || v.Began == 0 || t.view.Clock == 0 {
		return
	}
	watched := time.Duration(t.view.Clock-v.Began) * time.Millisecond
	t.states[d.Name] = mark{v.state(), t.now - min(max(0, watched), d.ObserveTime()), losses}
}

// state names the state of a next version.
func (v *Version) state() string { return fmt.Sprintf("%s %d canary=%v", v.Digest, v.Try, v.Canary) }

// promote makes the next version the live one.
func (t *turn) promote(d *Deployment) {
	v := *d.Next
	v.Canary, v.Began = false, 0
	if d.Live != nil {
		d.retire(*d.Live)
	}
	d.Live, d.Next, d.Failed, d.Rest, d.Woken = &v, nil, nil, Awake, false
	d.Last = "a version has become live"
	t.touch(v.Digest)
	t.do(Promote, d, v.Digest, "")
}

// touch counts a model as used now.
func (k *Keeper) touch(digest string) {
	u := k.used[digest]
	u.last = k.now
	k.used[digest] = u
}

// drain unloads the retiring versions of a deployment that have no requests any more.
func (t *turn) drain(d *Deployment) {
	for _, v := range slices.Clone(d.Retiring) {
		key := d.Name + "\x00" + v.Digest
		began, seen := t.drains[key]
		if !seen {
			began = t.now
			t.drains[key] = began
		}
		why := ""
		_, loaded := t.view.Models[v.Digest]
		switch waited := t.now - began; {
		case !loaded, t.elsewhere(d, v.Digest):
		case waited >= t.cfg.Drain:
			why = fmt.Sprintf("it still has %d requests after %v", t.view.Models[v.Digest].Requests, t.cfg.Drain)
		case waited < t.cfg.Quiet || !t.quiet(v.Digest):
			continue
		}
		d.forget(v.Digest)
		t.do(Remove, d, v.Digest, why)
	}
}

// elsewhere reports whether a digest is the live version of another deployment, for which it stays loaded.
func (t *turn) elsewhere(d *Deployment, digest string) bool {
	return slices.ContainsFunc(t.state.Of(digest), func(other *Deployment) bool {
		return other.Name != d.Name && other.Live != nil && other.Live.Digest == digest && other.Rest != Asleep
	})
}

// quiet reports whether a model has had no request for a while.
func (t *turn) quiet(digest string) bool {
	return t.view.Models[digest].Requests == 0 && t.idle(digest) >= t.cfg.Quiet
}

// rest puts a deployment to sleep that nobody uses.
func (t *turn) rest(d *Deployment) {
	if d.Live == nil || d.Off {
		delete(t.rests, d.Name)
		return
	}
	digest := d.Live.Digest
	before, known := t.rests[d.Name]
	began := t.since(t.rests, d.Name, string(d.Rest)+" "+digest, 0)
	m := t.view.Models[digest]
	switch {
	case d.Rest == Asleep:
	case d.Rest == Dozing:
		if t.now-began.since >= t.cfg.Quiet && t.quiet(digest) {
			d.Rest, d.Last = Asleep, "it is unloaded, and the next request loads it"
			t.do(Sleep, d, digest, "")
		}
	case known && before.what != began.what: // it was woken
		t.touch(digest)
	case m.Open && d.Starving():
		d.Last = "it is loaded"
		t.do(Recover, d, digest, "")
	case !m.Open && m.NoRoom != "" && !d.Starving():
		d.Last = starving + m.NoRoom
		t.do(Starve, d, digest, m.NoRoom)
	case d.Next != nil || d.Pinned:
	case d.Idle > 0 && m.Open && m.Requests == 0 && t.idle(digest) >= d.Idle:
		t.doze(d, fmt.Sprintf("nobody has used it for %v", d.Idle))
	case !m.Open && m.NoRoom != "" && m.Requests == 0 && t.now-began.since >= d.LoadLimit():
		d.Rest, d.Last = Asleep, starving+m.NoRoom
		t.do(Sleep, d, digest, m.NoRoom)
	}
}

// doze lets the live version of a deployment take no more requests. It is unloaded when it is quiet.
func (t *turn) doze(d *Deployment, why string) {
	d.Rest, d.Last = Dozing, why
	t.since(t.rests, d.Name, string(Dozing)+" "+d.Live.Digest, 0)
	t.do(Doze, d, d.Live.Digest, why)
}

// makeRoom lets models that are not used make room for those that are wanted and have none: as few as possible, those
// first that were used least recently. Pinned models stay. It waits while others are being unloaded.
func (t *turn) makeRoom() {
	need := ""
	name := ""
	var wanted []string
	var idle []*Deployment
	for i := range t.state.Deployments {
		d := &t.state.Deployments[i]
		if d.Rest == Dozing || len(d.Retiring) > 0 {
			return // its memory will be free soon
		}
		for _, v := range []*Version{d.Live, d.Next} {
			if v == nil || d.Rest == Asleep {
				continue
			}
			wanted = append(wanted, v.Digest)
			if m := t.view.Models[v.Digest]; need == "" && m.NoRoom != "" && m.Absent == "" {
				need, name = v.Digest, d.Name
			}
		}
		if d.Live == nil || d.Next != nil || d.Rest != Awake || d.Pinned {
			continue
		}
		m := t.view.Models[d.Live.Digest]
		if m.Open && m.NoRoom == "" && m.Requests == 0 && t.idle(d.Live.Digest) >= t.cfg.Rested {
			idle = append(idle, d)
		}
	}
	if need == "" || t.view.Fits == nil {
		return
	}
	slices.SortStableFunc(idle, func(a, b *Deployment) int {
		return cmp.Compare(t.idle(b.Live.Digest), t.idle(a.Live.Digest))
	})
	for n := range idle {
		gone := map[string]bool{}
		for _, d := range idle[:n+1] {
			gone[d.Live.Digest] = true
		}
		rest := slices.DeleteFunc(slices.Clone(wanted), func(digest string) bool { return gone[digest] })
		if !t.view.Fits(rest) {
			continue
		}
		for _, d := range idle[:n+1] {
			t.doze(d, "it makes room for "+name)
		}
		return
	}
}
