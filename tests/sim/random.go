package sim

import (
	"math/rand/v2"
	"time"
)

// Random draws a scenario. Small fleets with little memory come first: they get into every corner.
func Random(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 0xc0ffee))
	ms := func(from, to int) time.Duration { return time.Duration(from+r.IntN(to-from+1)) * time.Millisecond }
	chance := func(p float64) bool { return r.Float64() < p }
	some := func(p, most float64) float64 { // a probability, or 0
		if !chance(p) {
			return 0
		}
		return most * r.Float64()
	}
	sc := Scenario{
		Seed: seed, Routers: 1, Samplers: 1 + r.IntN(2), PageLen: []int{1, 2, 4, 8, 16}[r.IntN(5)],
		BatchRows: 8 << r.IntN(4), Queue: 4 + r.IntN(40), CacheIdle: ms(500, 3000), Hop: ms(1, 4) / 4,
		BatchTime: ms(2, 10), RowTime: ms(1, 4) / 8, Compile: some(0.3, 0.3), Limit: 300 * time.Second,
	}
	sc.ChunkRows, sc.Entries = 1+r.IntN(sc.BatchRows), 2+r.IntN(24)
	if chance(0.2) {
		sc.Depth = 1 + r.IntN(2)
	}
	if chance(0.3) {
		sc.TenantQueue = 1 + r.IntN(4)
	}
	layers := 6
	for range 1 + r.IntN(3) {
		var cuts []int
		for lo := 0; lo < layers; {
			if lo += 1 + r.IntN(layers); lo > layers || len(cuts) == 3 {
				lo = layers
			}
			cuts = append(cuts, lo)
		}
		sc.Replicas = append(sc.Replicas, cuts)
	}
	for range r.IntN(3) {
		sc.Spares = append(sc.Spares, r.IntN(len(sc.Replicas[0])))
	}
	if chance(0.25) {
		sc.Routers = 2
	}
	l := Load{
		Requests:  4 + r.IntN(24),
		Over:      ms(1, 1500),
		Tenants:   r.IntN(4),
		From:      1,
		To:        4 + r.IntN(60),
		Tokens:    1 + r.IntN(30),
		Long:      some(0.3, 0.3),
		Cancel:    some(0.5, 0.6),
		Slow:      some(0.3, 0.5),
		Score:     some(0.3, 0.5),
		Private:   some(0.2, 0.5),
		Priority:  some(0.4, 1),
		Speculate: some(0.5, 1),
		Sampled:   some(0.7, 1),
		Stop:      some(0.3, 0.5),
		Adapter:   some(0.2, 0.5),
	}
	if chance(0.7) {
		l.Prefixes, l.PrefixLen = 1+r.IntN(4), 2+r.IntN(50)
	}
	if chance(0.5) {
		l.EndEvery = 10 + r.IntN(40)
	}
	if chance(0.15) {
		l.Hostile = 1 + r.IntN(3)
	}
	if chance(0.3) && l.Speculate > 0 {
		sc.Draft, l.DraftModel = 1+r.IntN(2), 0.7
	}
	if seed%5 == 0 { // few requests on long links, so that draft tokens fill the pipeline
		l.Requests, l.Tokens, l.EndEvery, l.Speculate, sc.Hop = 1+r.IntN(4), 40+r.IntN(120), 0, 1, ms(4, 40)/4
		l.Regular = r.IntN(3) > 0
		if sc.Draft == 0 {
			sc.Draft, l.DraftModel = r.IntN(2), 0.7
		}
	}
	// Pages for one to a few of the longest requests: the smaller the cache, the more often sequences
	// are preempted.
	longest := l.Tokens + max(l.To, l.PrefixLen)
	most := 1 + r.IntN(6)
	sc.Pages = max(2*sc.Routers, (longest*most*sc.Routers+sc.PageLen-1)/sc.PageLen)
	sc.Load, sc.Hedge = l, drawHedge(seed)
	sc.drawFaults(r, ms, chance, some)
	return sc
}

// drawFaults adds faults to two thirds of the scenarios.
func (sc *Scenario) drawFaults(r *rand.Rand, ms func(int, int) time.Duration, chance func(float64) bool,
	some func(p, most float64) float64,
) {
	sc.Jitter, sc.Repeat = some(0.3, 0.05), some(0.3, 0.1)
	if chance(0.1) {
		sc.Load.Poison = 1 + r.IntN(2)
	}
	if chance(0.1) {
		sc.Load.Hang = 1 + r.IntN(2)
	}
	if chance(0.35) {
		return
	}
	sc.Loss, sc.Refuse = some(0.15, 0.01), some(0.3, 0.05)
	shards := sc.Draft + len(sc.Spares)
	for _, cuts := range sc.Replicas {
		shards += len(cuts)
	}
	nodes := shards + sc.Samplers + sc.Routers
	for range r.IntN(6) {
		f := Fault{At: ms(0, 4000), Kind: Kind(r.IntN(6)), Node: r.IntN(nodes), Other: r.IntN(nodes), For: ms(10, 6000)}
		switch f.Kind {
		case Slow:
			f.By = 2 + 30*r.Float64()
		case Clock:
			f.By = -5 + 15*r.Float64()
		}
		sc.Faults = append(sc.Faults, f)
	}
	if chance(0.3) {
		sc.drawBreaks(r, ms, nodes, shards)
	}
}

// drawBreaks adds faults that pipelines may outlive: streams that break while requests arrive, and shards
// that are gone for a moment or for good.
func (sc *Scenario) drawBreaks(r *rand.Rand, ms func(int, int) time.Duration, nodes, shards int) {
	for range 1 + r.IntN(8) {
		f := Fault{At: ms(0, 2000), Kind: Break, Node: r.IntN(nodes)}
		if r.IntN(3) == 0 {
			f = Fault{At: f.At, Kind: Kill, Node: r.IntN(shards), For: ms(5, 4000)}
		}
		sc.Faults = append(sc.Faults, f)
	}
}

// Fair draws a scenario in which tenants always have waiting requests, and all bounds on their service are
// checked.
func Fair(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 0xfa1))
	sc := Scenario{
		Seed: seed, Routers: 1, Samplers: 1, Replicas: [][]int{{2, 4}}, PageLen: 4, BatchRows: 16, ChunkRows: 8,
		Entries: 2 + r.IntN(6), Queue: 1000, CacheIdle: time.Second, Hop: time.Millisecond / 2,
		BatchTime: 3 * time.Millisecond, RowTime: time.Millisecond / 4, Limit: 300 * time.Second, Fair: true,
	}
	sc.Load = Load{Requests: 250, Over: 300 * time.Millisecond, Tenants: 2 + r.IntN(4), From: 1, To: 2 + r.IntN(40),
		Tokens: 1 + r.IntN(20), Skewed: seed%2 == 1}
	sc.Pages = 16 + r.IntN(16)
	return sc
}

// Large is a fleet of 1,000 shards with 10,000 requests, of which some processes are killed, frozen, slow or
// cut off.
func Large(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 0x1a2e))
	sc := Scenario{
		Seed: seed, Routers: 2, Samplers: 8, Pages: 128, PageLen: 8, BatchRows: 64, ChunkRows: 64, Entries: 64,
		Queue: 64, CacheIdle: 2 * time.Second, Hop: time.Millisecond / 2, BatchTime: 8 * time.Millisecond,
		RowTime: time.Millisecond / 4, Limit: 300 * time.Second,
	}
	for range 500 {
		sc.Replicas = append(sc.Replicas, []int{3, 6})
	}
	sc.Load = Load{Requests: 10000, Over: 4 * time.Second, Tenants: 10, From: 8, To: 64, Tokens: 24, Prefixes: 50,
		PrefixLen: 40, Cancel: 0.05, Sampled: 0.5, Priority: 0.1}
	for range 60 {
		sc.Faults = append(sc.Faults, Fault{At: time.Duration(r.IntN(4000)) * time.Millisecond, Kind: Kind(r.IntN(4)),
			Node: r.IntN(1008), Other: r.IntN(1010), For: time.Duration(100+r.IntN(4000)) * time.Millisecond,
			By: 2 + 20*r.Float64()})
	}
	return sc
}
