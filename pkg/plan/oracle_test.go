package plan_test

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// oracle computes the best plans for one model by trying everything: all sets of hosts in all orders with all
// cuts. It has the cost model in its plainest form.
type oracle struct {
	r plan.Request
	m plan.Model
}

const (
	oracleBatch   = 8 // rows of a full batch
	oracleRowPart = 0.25
)

func (o *oracle) mean() float64 {
	sum := 0.0
	for _, n := range o.m.Layers {
		sum += float64(n)
	}
	return sum / float64(len(o.m.Layers))
}

// stage returns the time of a token and of a full batch in a stage, and whether it fits.
func (o *oracle) stage(h *plan.Host, lo, hi int) (token, batch float64, fits bool) {
	bytes, work := int64(0), 0.0
	for _, n := range o.m.Layers[lo:hi] {
		bytes += n + o.m.KVBytes*int64(o.m.KVPositions)
		work += float64(n) / o.mean()
	}
	send := 0.0
	if lo == 0 {
		bytes += o.m.Embedding
	} else if h.Mbps > 0 {
		send = float64(o.m.HiddenBytes) * 8 / h.Mbps / 1000
	}
	if hi == len(o.m.Layers) {
		work += float64(o.m.Head) / o.mean()
		if !o.m.Tied || lo > 0 {
			bytes += o.m.Head
		}
	}
	row := h.RowMS
	if row == 0 {
		row = h.LayerMS * oracleRowPart
	}
	return h.HopMS + send + h.LayerMS*work, max((h.LayerMS+(oracleBatch-1)*row)*work, oracleBatch*send),
		float64(bytes) <= math.Floor(float64(h.Memory)*0.8)
}

// sets returns the least time of a token and of a full batch for chains over exactly the hosts of each set.
func (o *oracle) sets() (token, batch []float64) {
	n := len(o.r.Hosts)
	token, batch = make([]float64, 1<<n), make([]float64, 1<<n)
	for i := range token {
		token[i], batch[i] = math.Inf(1), math.Inf(1)
	}
	var walk func(mask, lo int, sum, slowest float64)
	walk = func(mask, lo int, sum, slowest float64) {
		if lo == len(o.m.Layers) {
			token[mask], batch[mask] = min(token[mask], sum), min(batch[mask], slowest)
			return
		}
		for i := range o.r.Hosts {
			h := &o.r.Hosts[i]
			if mask>>i&1 != 0 || slices.Contains(o.m.Avoid, h.ID) || o.m.Zone != "" && o.m.Zone != h.Zone {
				continue
			}
			if mask > 0 && !o.r.Mix && h.Class != o.r.Hosts[bits.TrailingZeros(uint(mask))].Class {
				continue
			}
			for hi := lo + 1; hi <= len(o.m.Layers); hi++ {
				if t, b, fits := o.stage(h, lo, hi); fits {
					walk(mask|1<<i, hi, sum+t, max(slowest, b))
				}
			}
		}
	}
	walk(0, 0, o.r.RouterMS, 0)
	for mask := range token {
		if o.m.AtMost > 0 && bits.OnesCount(uint(mask)) > o.m.AtMost {
			token[mask], batch[mask] = math.Inf(1), math.Inf(1)
		}
	}
	return token, batch
}

// best returns the objective of the best plan: the time of a token, the rate of all pipelines in batches in a
// millisecond, or the number of hosts and the time. It is infinite or 0 if there is none.
func (o *oracle) best() (value float64, hosts int) {
	token, batch := o.sets()
	pins := 0
	for i, h := range o.r.Hosts {
		if slices.Contains(o.m.Pin, h.ID) {
			pins |= 1 << i
		}
	}
	value = math.Inf(1)
	switch o.r.Goal {
	case plan.Latency:
		for mask, t := range token {
			if mask&pins == pins {
				value = min(value, t)
			}
		}
	case plan.FewestHosts:
		hosts = 99
		for mask, t := range token {
			if n := bits.OnesCount(uint(mask)); mask&pins == pins && !math.IsInf(t, 1) &&
				(n < hosts || n == hosts && t < value) {
				value, hosts = t, n
			}
		}
	case plan.Throughput:
		// The sum over any division of some hosts into chains, but if a number of replicas is wanted, then only
		// over those with as many chains as possible.
		var divide func(free, used int, sum float64, count int)
		value = 0
		most := 0
		divide = func(free, used int, sum float64, count int) {
			if used&pins == pins && (o.m.Replicas == 0 || count <= o.m.Replicas) {
				if o.m.Replicas > 0 && count > most {
					value, most = 0, count
				}
				if o.m.Replicas == 0 || count == most {
					value = max(value, sum)
				}
			}
			if free == 0 {
				return
			}
			low := free & -free
			divide(free&^low, used, sum, count)
			rest := free &^ low
			for sub := rest; ; sub = (sub - 1) & rest {
				if b := batch[sub|low]; !math.IsInf(b, 1) {
					divide(rest&^sub, used|sub|low, sum+1/b, count+1)
				}
				if sub == 0 {
					return
				}
			}
		}
		divide(1<<len(o.r.Hosts)-1, 0, 0, 0)
	}
	return value, hosts
}

// check returns the objective of a plan after checking that the plan is one.
func (o *oracle) check(t *testing.T, p *plan.Plan) (value float64, hosts int) {
	t.Helper()
	if len(p.Pipelines) == 0 {
		if len(p.Uncovered) != 1 {
			t.Fatalf("no pipeline, and uncovered are %v", p.Uncovered)
		}
		if o.r.Goal == plan.Throughput {
			return 0, 0
		}
		return math.Inf(1), 99
	}
	seen := map[string]bool{}
	for _, l := range p.Pipelines {
		sum, slowest, at, class := o.r.RouterMS, 0.0, 0, ""
		for i, s := range l.Stages {
			k := slices.IndexFunc(o.r.Hosts, func(h plan.Host) bool { return h.ID == s.Host })
			if k < 0 || seen[s.Host] || s.Lo != at || s.Hi <= s.Lo {
				t.Fatalf("stage %d of %+v: host or layers", i, l)
			}
			seen[s.Host], at = true, s.Hi
			h := &o.r.Hosts[k]
			token, batch, fits := o.stage(h, s.Lo, s.Hi)
			if !fits || float64(s.Memory) > 0.8*float64(h.Memory) {
				t.Fatalf("stage %d of %+v: %d bytes do not fit in %d", i, l, s.Memory, h.Memory)
			}
			if slices.Contains(o.m.Avoid, s.Host) || o.m.Zone != "" && h.Zone != o.m.Zone ||
				i > 0 && !o.r.Mix && h.Class != class {
				t.Fatalf("stage %d of %+v: the host is not allowed", i, l)
			}
			class = h.Class
			sum, slowest = sum+token, max(slowest, batch)
		}
		if at != len(o.m.Layers) || o.m.AtMost > 0 && len(l.Stages) > o.m.AtMost {
			t.Fatalf("pipeline %+v ends at %d of %d layers", l, at, len(o.m.Layers))
		}
		if got := l.Predicted.TokenMS; math.Abs(got-sum) > 1e-9*sum {
			t.Fatalf("predicted %v ms a token, want %v", got, sum)
		}
		if got := l.Predicted.SaturatedTPS; math.Abs(got-oracleBatch*1000/slowest) > 1e-9*got {
			t.Fatalf("predicted %v tokens/s, want %v", got, oracleBatch*1000/slowest)
		}
		hosts += len(l.Stages)
		if o.r.Goal == plan.Throughput {
			value += 1 / slowest
		} else {
			value = sum
		}
	}
	for _, id := range o.m.Pin {
		if !seen[id] {
			t.Fatalf("host %s is pinned and not used", id)
		}
	}
	if len(p.LeftOut)+len(seen) != len(o.r.Hosts) {
		t.Fatalf("%d hosts are used and %d left out, of %d", len(seen), len(p.LeftOut), len(o.r.Hosts))
	}
	return value, hosts
}

func pick[T any](rnd *rand.Rand, of ...T) T { return of[rnd.IntN(len(of))] }

// randomCase returns a small request for one model.
func randomCase(rnd *rand.Rand) *oracle {
	m := plan.Model{Name: "m", Tied: rnd.IntN(2) == 0, KVBytes: 1000, HiddenBytes: 4096, KVPositions: 100,
		MaxKVPositions: 1000, Embedding: rnd.Int64N(2e6)}
	m.Head = m.Embedding
	if !m.Tied {
		m.Head = rnd.Int64N(3e6)
	}
	uneven := rnd.IntN(2) == 0
	for range 1 + rnd.IntN(6) {
		n := int64(1e6)
		if uneven {
			n += rnd.Int64N(1e6)
		}
		m.Layers = append(m.Layers, n)
	}
	r := plan.Request{Goal: pick(rnd, plan.Latency, plan.Latency, plan.Throughput, plan.FewestHosts),
		Mix: rnd.IntN(3) == 0, RouterMS: pick(rnd, 0, 0.5)}
	classes := 1 + rnd.IntN(4)/3
	for i := range 1 + rnd.IntN(5) {
		r.Hosts = append(r.Hosts, plan.Host{
			ID: fmt.Sprint("h", i), Memory: rnd.Int64N(pick[int64](rnd, 5e6, 10e6, 20e6)),
			LayerMS: math.Exp(rnd.Float64()*4 - 2),
			RowMS:   pick(rnd, 0, 0.1), HopMS: pick(rnd, 0, 0.1, rnd.Float64()*3), Mbps: pick(rnd, 0, 0, 10.0, 100),
			Zone: fmt.Sprint(rnd.IntN(3)), Class: fmt.Sprint(rnd.IntN(classes)),
		})
	}
	if rnd.IntN(6) == 0 {
		m.Pin = append(m.Pin, r.Hosts[rnd.IntN(len(r.Hosts))].ID)
	}
	if rnd.IntN(6) == 0 {
		m.Avoid = append(m.Avoid, pick(rnd, "h1", "h9"))
	}
	if rnd.IntN(10) == 0 {
		m.Zone = "1"
	}
	if rnd.IntN(5) == 0 {
		m.AtMost = 1 + rnd.IntN(3)
	}
	if r.Goal == plan.Throughput && rnd.IntN(3) == 0 {
		m.Replicas = 1 + rnd.IntN(2)
	}
	r.Models = []plan.Model{m}
	return &oracle{r, m}
}

func TestPlace_AsGoodAsTryingAll(t *testing.T) {
	const cases = 4000
	for _, c := range []struct {
		name  string
		place func(plan.Request) (*plan.Plan, error)
		equal float64 // the least part of the cases in which it has to be the best plan
		near  float64 // the least part within 5 %
	}{
		{"exact", plan.Place, 1, 1},
		{"approximate", plan.Approximate, 0.9, 0.95},
	} {
		t.Run(c.name, func(t *testing.T) {
			equal, near, feasible, missed, worst := 0, 0, 0, 0, 1.0
			for seed := range uint64(cases) {
				o := randomCase(rand.New(rand.NewPCG(seed, 1)))
				p, err := c.place(o.r)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				got, hosts := o.check(t, p)
				want, wantHosts := o.best()
				ratio := got / want
				switch o.r.Goal {
				case plan.Throughput:
					ratio = want / got
				case plan.FewestHosts:
					if hosts > wantHosts {
						ratio = 2
					}
				}
				if math.IsInf(want, 1) || want == 0 {
					if len(p.Pipelines) > 0 {
						t.Fatalf("seed %d: a plan where there is none: %+v", seed, p)
					}
					continue
				}
				feasible++
				if len(p.Pipelines) == 0 {
					missed++
					continue
				}
				if ratio < 1-1e-9 {
					if c.equal < 1 && o.m.Replicas > 1 { // it has found fewer pipelines
						continue
					}
					t.Fatalf("seed %d: %v is better than the best, %v: %+v", seed, got, want, p)
				}
				if ratio < 1+1e-6 {
					equal++
				} else if c.equal == 1 {
					t.Errorf("seed %d: goal %v is %v, best %v", seed, o.r.Goal, got, want)
				}
				if ratio < 1.05 {
					near++
				}
				worst = max(worst, ratio)
			}
			t.Logf("%d cases with a plan: %d best, %d within 5 %%, %d not found, worst %.3f", feasible, equal, near,
				missed, worst)
			if float64(equal) < c.equal*float64(feasible) || float64(near) < c.near*float64(feasible) {
				t.Error("too few are good")
			}
		})
	}
}

func TestPlace_ManyHostsAlmostAsGoodAsTheExactSearch(t *testing.T) {
	near, worst, feasible, missed := 0, 1.0, 0, 0
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		o := randomCase(rnd)
		o.m.Layers = nil
		for range 12 + rnd.IntN(13) {
			o.m.Layers = append(o.m.Layers, 1e6+rnd.Int64N(3e5))
		}
		o.m.Pin, o.m.Avoid, o.m.Zone, o.m.Replicas = nil, nil, "", 0
		o.r.Models, o.r.Mix = []plan.Model{o.m}, true
		o.r.Hosts = nil
		for i := range 6 {
			o.r.Hosts = append(o.r.Hosts, plan.Host{ID: fmt.Sprint("h", i), Memory: 5e6 + rnd.Int64N(30e6),
				LayerMS: math.Exp(rnd.Float64()*3 - 2), HopMS: rnd.Float64()})
		}
		exact, err := plan.Place(o.r)
		if err != nil {
			t.Fatal(err)
		}
		want, wantHosts := o.check(t, exact)
		fast, err := plan.Approximate(o.r)
		if err != nil {
			t.Fatal(err)
		}
		got, hosts := o.check(t, fast)
		if len(exact.Pipelines) == 0 {
			continue
		}
		feasible++
		if len(fast.Pipelines) == 0 {
			missed++
			continue
		}
		ratio := got / want
		switch o.r.Goal {
		case plan.Throughput:
			ratio = want / got
		case plan.FewestHosts:
			ratio = max(ratio, float64(hosts)/float64(wantHosts))
		}
		if worst = max(worst, ratio); ratio < 1.05 {
			near++
		}
	}
	t.Logf("%d cases with a plan: %d within 5 %%, %d not found, worst %.3f", feasible, near, missed, worst)
	if near*20 < feasible*19 {
		t.Error("too few are good")
	}
}
