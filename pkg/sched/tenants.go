package sched

// tenant is what the scheduler knows about a tenant that waits, runs or holds pages.
type tenant struct {
	name    string
	weight  float64
	service float64 // the virtual token counter: weighted tokens served, divided by weight
	waiting int
	running int
	pages   int // held by its sequences or cached for it
	// cachedPages counts those that no sequence holds; evictable holds the leaves among them.
	cachedPages int
	evictable   evictable
	all         *tenants
}

// What a token of a prompt and a generated token count. A generated one occupies a row of a step for
// itself.
const (
	promptCost = 1.0
	decodeCost = 2.0
)

// active reports whether the tenant has work to be done.
func (t *tenant) active() bool { return t.waiting+t.running > 0 }

func (t *tenant) charge(tokens int, cost float64) {
	t.service += float64(tokens) * cost / t.weight
}

// tenants holds the tenants in the order in which they were first seen.
type tenants struct {
	list   []*tenant
	byName map[string]*tenant
	pool   *pool
	floor  float64 // the lowest service of an active tenant, when there last was one
}

func newTenants(p *pool) *tenants { return &tenants{byName: map[string]*tenant{}, pool: p} }

// get returns a tenant for a sequence that arrives. A tenant without work is lifted to the least
// service of those that have some: time in which it asked for nothing earns no credit.
func (ts *tenants) get(name string, weight float64) *tenant {
	if weight <= 0 {
		weight = 1
	}
	t := ts.byName[name]
	if t == nil {
		t = &tenant{name: name, weight: weight, all: ts}
		t.evictable.x = ts.pool.index
		ts.byName[name] = t
		ts.list = append(ts.list, t)
	}
	t.weight = weight
	if !t.active() {
		t.service = max(t.service, ts.least())
	}
	return t
}

// least returns the lowest service of the active tenants.
func (ts *tenants) least() float64 {
	first := true
	for _, t := range ts.list {
		if t.active() && (first || t.service < ts.floor) {
			ts.floor, first = t.service, false
		}
	}
	return ts.floor
}

// unit returns how many pages are the share of a tenant of weight 1: the pages are divided by weight among
// the tenants that hold pages or have work.
func (ts *tenants) unit() float64 {
	sum := 0.0
	for _, t := range ts.list {
		if t.pages > 0 || t.active() {
			sum += t.weight
		}
	}
	return float64(ts.pool.limit) / max(sum, 1e-9)
}

// share is a tenant's share of the pages, at least one.
func (t *tenant) share(unit float64) int {
	return max(1, int(min(unit*t.weight, float64(t.all.pool.limit))))
}

// tenantsKept bounds the tenants without work that are remembered for the service they had.
const tenantsKept = 4096

// prune forgets tenants that have neither work nor pages, and no more service than the floor, to which
// they are lifted when they come back.
func (ts *tenants) prune() {
	ts.least()
	idle := true
	for _, t := range ts.list {
		idle = idle && !t.active()
	}
	many := len(ts.list) > tenantsKept
	kept := ts.list[:0]
	for _, t := range ts.list {
		if t.active() || t.pages > 0 || t.service > ts.floor && !idle && !many {
			kept = append(kept, t)
			continue
		}
		if idle {
			ts.floor = max(ts.floor, t.service)
		}
		delete(ts.byName, t.name)
		ts.pool.forgetSpaces(t.name)
	}
	clear(ts.list[len(kept):])
	ts.list = kept
}
